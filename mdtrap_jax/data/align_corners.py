"""The resizing of Meta-Dataset's reader: TensorFlow 1's bilinear rule with `align_corners=True`.

The corners of the image stay corners. Between them every pixel is mixed of its four neighbors
alone, without antialiasing, and nothing is rounded to bytes.
"""

import numpy as np


def resize_align_corners(image: np.ndarray, size: int) -> np.ndarray:
  """Resizes to a square, giving up the aspect ratio.

  Row `i` of the result lies at `i·(H-1)/(S-1)` of the image, columns likewise; a result of one
  pixel is the image's first. All arithmetic is in float32, columns before rows, as there.

  Args:
    image: uint8 `[H, W, 3]`.
    size: Side `S` of the result in pixels.

  Returns:
    float32 `[S, S, 3]`, on the scale of the image, 0 to 255.

  Raises:
    ValueError: If the image has no pixels.
  """
  height, width = image.shape[:2]
  if not height * width:
    raise ValueError(f"An image of {height}×{width} pixels cannot be resized.")
  top, bottom, down = _neighbors(height, size)
  left, right, across = _neighbors(width, size)
  rows = np.unique(np.concatenate([top, bottom]))  # of a large image, few take part
  pixels = image[rows]
  pixels = _mix(pixels[:, left], pixels[:, right], across[:, None])
  return _mix(
    pixels[np.searchsorted(rows, top)], pixels[np.searchsorted(rows, bottom)], down[:, None, None]
  )


def _neighbors(length: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Of each of `size` places: the pixels before and behind it, and the share of the latter."""
  scale = np.float32(length - 1) / np.float32(size - 1) if size > 1 else np.float32(0)
  place = np.arange(size, dtype=np.float32) * scale
  before = np.floor(place)
  behind = np.minimum(np.ceil(place), length - 1)  # rounding may carry the last one over the edge
  return before.astype(int), behind.astype(int), place - before


def _mix(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
  first = first.astype(np.float32)
  return first + (second.astype(np.float32) - first) * share
