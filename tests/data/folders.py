"""Folders of small images to read in tests."""

import numpy as np
from PIL import Image

_random = np.random.default_rng(0)


def write_image(file, pixels=None):
  """Writes an image, [H, W, 3] or [H, W, 4] uint8 or one drawn at random, and returns it."""
  file.parent.mkdir(parents=True, exist_ok=True)
  if pixels is None:
    pixels = _random.integers(0, 256, (6, 5, 3), dtype=np.uint8)
  Image.fromarray(pixels).save(file)
  return pixels


def write_tree(root, *files):
  """Writes an image for each of the names."""
  for file in files:
    write_image(root / file)
  return root
