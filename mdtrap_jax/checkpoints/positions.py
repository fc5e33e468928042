"""Resamples a square grid of position embeddings, as each original implementation does it."""

from __future__ import annotations

import math

import numpy as np


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
  d = np.abs(distance)
  near = (a + 2) * d**3 - (a + 3) * d**2 + 1
  far = a * (d**3 - 5 * d**2 + 8 * d - 4)
  return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _linear(distance: np.ndarray) -> np.ndarray:
  return np.maximum(1 - np.abs(distance), 0.0)


def _half_pixel(new: int, old: int, kernel, support: float, antialias: bool) -> np.ndarray:
  """Weights `[new, old]` with pixel centers at half integers, as torch's `interpolate`."""
  scale = old / new
  width = max(scale, 1.0) if antialias else 1.0
  weights = np.zeros((new, old))
  for row, center in zip(weights, (np.arange(new) + 0.5) * scale - 0.5, strict=True):
    reach = support * width
    taps = np.arange(math.floor(center - reach), math.ceil(center + reach) + 1)
    values = kernel((taps - center) / width)
    if antialias:  # weights beyond the edge are dropped, the others rescaled
      inside = (taps >= 0) & (taps < old)
      taps, values = taps[inside], values[inside] / values[inside].sum()
    np.add.at(row, np.clip(taps, 0, old - 1), values)
  return weights


def _corners(new: int, old: int) -> np.ndarray:
  """Bilinear weights `[new, old]` with the corners held fixed, as `scipy.ndimage.zoom`."""
  centers = np.arange(new) * ((old - 1) / max(new - 1, 1))
  return _linear(centers[:, None] - np.arange(old)[None])


METHODS = {
  # torch's interpolate(mode="bicubic"): Hugging Face
  "bicubic": lambda new, old: _half_pixel(new, old, lambda d: _cubic(d, -0.75), 2, False),
  # the same with antialias=True: open_clip, timm
  "bicubic-antialias": lambda new, old: _half_pixel(new, old, lambda d: _cubic(d, -0.5), 2, True),
  # torch's interpolate(mode="bilinear"): PE-Core
  "bilinear": lambda new, old: _half_pixel(new, old, _linear, 1, False),
  # scipy.ndimage.zoom(order=1): big_vision
  "corners": _corners,
}


def resample(grid: np.ndarray, size: int, method: str) -> np.ndarray:
  """Resamples embeddings `[old², W]` to `[size², W]`, both row by row.

  Raises:
    ValueError: an unknown method.
  """
  if method not in METHODS:
    raise ValueError(f"method={method!r}: choose one of {sorted(METHODS)}.")
  old = math.isqrt(grid.shape[0])
  weights = METHODS[method](size, old)
  square = grid.reshape(old, old, -1)
  return np.einsum("ai,bj,ijw->abw", weights, weights, square).reshape(size * size, -1)
