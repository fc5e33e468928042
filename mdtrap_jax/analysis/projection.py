"""Images and texts in the plane: principal components, or UMAP where it is installed."""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

import numpy as np


class Plane(NamedTuple):
  """Rows in two dimensions."""

  points: np.ndarray  # [n, 2]
  about: str  # what the axes are, for a figure


def principal_components(rows: np.ndarray) -> Plane:
  """The two directions of the largest variance; signs are such that a row is the same always.

  Args:
    rows: `[n, D]`, `n` and `D` at least 2.
  """
  centered = np.asarray(rows, np.float64) - np.mean(rows, axis=0)
  _, sizes, directions = np.linalg.svd(centered, full_matrices=False)
  largest = np.argmax(np.abs(directions), axis=1)  # the sign of a direction means nothing
  directions = directions * np.sign(directions[np.arange(len(directions)), largest])[:, None]
  share = (sizes**2 / np.sum(sizes**2))[:2]
  about = "principal components ({:.0%} and {:.0%} of the variance)".format(*share)
  return Plane(centered @ directions[:2].T, about)


def require_umap() -> None:
  """Raises ModuleNotFoundError, in one line, where UMAP is missing."""
  if importlib.util.find_spec("umap") is None:
    raise ModuleNotFoundError("--map=umap needs umap-learn", name="umap")


def umap(rows: np.ndarray) -> Plane:
  """UMAP by cosine, with a fixed seed.

  Args:
    rows: `[n, D]`.

  Raises:
    ModuleNotFoundError: it is not installed; see `require_umap`.
  """
  from umap import UMAP

  neighbors = min(15, len(rows) - 1)
  found = UMAP(n_neighbors=neighbors, metric="cosine", random_state=0, n_jobs=1).fit_transform(rows)
  return Plane(np.asarray(found, np.float64), "UMAP, cosine")


PROJECTIONS = {"pca": principal_components, "umap": umap}
