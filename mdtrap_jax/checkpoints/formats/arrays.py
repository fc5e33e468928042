"""What every reader returns: arrays by name that are read from the file only when asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class UnusableFileError(ValueError):
  """A weights file that cannot be read; the message names the file, the reason, the remedy."""


@contextlib.contextmanager
def reading(path: Path, part: str = "") -> Iterator[None]:
  """Around the parsing of a file that may be damaged: one kind of error, which names the file.

  Args:
    path: of the file.
    part: what of it is read.

  Raises:
    UnusableFileError: whatever else a parser raises when it meets bytes that make no sense.
  """
  try:
    yield
  except (UnusableFileError, MemoryError):
    raise
  except Exception as error:  # zip, pickle, JSON and msgpack readers raise a dozen kinds
    if getattr(error, "filename", None):  # the operating system refuses, and says what
      raise
    raise UnusableFileError(
      f"{path}: truncated or damaged{part and f' in {part}'}, or of another format "
      f"({type(error).__name__}: {error}). Download it again."
    ) from error


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
      array.shape, array.dtype, lambda array=array: array
    )
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
  return raw[start : start + size].view(dtype).reshape(shape)
