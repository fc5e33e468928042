"""Images and texts in the plane."""

import importlib.util

import numpy as np
import pytest

from mdtrap_jax.analysis import projection


def test_principal_components_by_hand():
  # Variance 2 along the third axis, 1/2 along the first, none along the second.
  rows = np.array([[1.0, 7.0, 2.0], [1.0, 7.0, -2.0], [-1.0, 7.0, 2.0], [-1.0, 7.0, -2.0]])
  plane = projection.principal_components(rows)
  np.testing.assert_allclose(plane.points, rows[:, [2, 0]], atol=1e-12)
  assert plane.about == "principal components (80% and 20% of the variance)"


def test_umap_says_what_to_install_where_it_is_missing(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ModuleNotFoundError, match="umap-learn"):
    projection.require_umap()
