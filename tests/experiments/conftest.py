"""Images that several kinds of run are tried on."""

import numpy as np
import pytest

from tests.data.folders import write_image

NAMES = ("ant", "bee", "cat", "dog", "elk")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
  """Five classes of eight images, each with a tint of its own."""
  root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
  for name, tint in zip(NAMES, rng.integers(0, 120, (len(NAMES), 3)), strict=True):
    for n in range(8):
      pixels = (rng.integers(0, 130, (20, 20, 3)) + tint).astype(np.uint8)
      write_image(root / name / f"{n}.png", pixels)
  return root
