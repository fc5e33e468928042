"""What every reader returns: arrays by name that are read from the file only when asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class StoredArray(NamedTuple):
  """One array of a checkpoint. Reading it costs its own size, and nothing is kept."""

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]
  read_rows: Callable[[int, int], np.ndarray] | None = None  # [start, stop), where cheap

  @property
  def is_float(self) -> bool:
    """Whether the numbers are floating point of 16 bits or more, as weights must be."""
    return self.dtype in (np.float16, BFLOAT16, np.float32, np.float64)


Arrays = Mapping[str, StoredArray]  # names with "." between their parts


def in_memory(flat: Mapping[str, np.ndarray]) -> dict[str, StoredArray]:
  """Arrays that are already loaded, in the form that the readers return."""
  arrays = {}
  for name, array in flat.items():
    array = np.asarray(array)
    arrays[name.replace("/", ".")] = StoredArray(
        array.shape, array.dtype, lambda array=array: array)
  return arrays


def normalized(arrays: Arrays) -> dict[str, StoredArray]:
  """Names without what training put before all of them: `module.`, big_vision's `params.`."""
  named = dict(arrays)
  if named and all(name.startswith("module.") for name in named):
    named = {name.removeprefix("module."): array for name, array in named.items()}
  return {name.removeprefix("params."): array for name, array in named.items()}


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """An uninitialized array at an address that JAX's CPU backend can share without a copy."""
  dtype = np.dtype(dtype)
  size = int(np.prod(shape)) * dtype.itemsize
  raw = np.empty(size + 64, np.uint8)
  start = -raw.ctypes.data % 64
  return raw[start:start + size].view(dtype).reshape(shape)
