"""Reads safetensors files, one array at a time.

The library `safetensors` maps the whole file into memory; the pages it touches then count
beside the weights made of them. Here each array is read into its own buffer, used and freed.
"""

from __future__ import annotations

import math
import operator
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mdtrap_jax.checkpoints.formats.arrays import (
  StoredArray,
  UnusableFileError,
  parse_json,
  reading,
)

DTYPES = {
  "F64": np.float64,
  "F32": np.float32,
  "F16": np.float16,
  "BF16": ml_dtypes.bfloat16,
  "F8_E4M3": ml_dtypes.float8_e4m3fn,
  "F8_E5M2": ml_dtypes.float8_e5m2,
  "I64": np.int64,
  "I32": np.int32,
  "I16": np.int16,
  "I8": np.int8,
  "U64": np.uint64,
  "U32": np.uint32,
  "U16": np.uint16,
  "U8": np.uint8,
  "BOOL": np.bool_,
}


def open_safetensors(path: Path) -> dict[str, StoredArray]:
  """The arrays of one `.safetensors` file.

  Raises:
    UnusableFileError: it is truncated or is not a safetensors file.
  """
  with reading(path, "its header"), open(path, "rb") as file:
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(size - 8, 100_000_000):
      raise UnusableFileError(
        f"{path}: no safetensors file, or cut off in its header. Download it again."
      )
    header = parse_json(file.read(length))
    header.pop("__metadata__", None)
    arrays = {n: _entry(path, n, entry, 8 + length, size) for n, entry in header.items()}
    _check_ranges(path, header, size - 8 - length)
  return arrays


def _check_ranges(path: Path, header: dict[str, Any], size: int) -> None:
  """Refuses arrays that share bytes, and bytes that belong to none, as the format does."""
  position = 0
  for (begin, end), name in sorted((entry["data_offsets"], name) for name, entry in header.items()):
    if begin != position:
      raise UnusableFileError(
        f"{path}: {name} begins at byte {begin} of the data, but the array before it ends at "
        f"{position}: they overlap or leave a hole. Download it again."
      )
    position = end
  if position != size:
    raise UnusableFileError(
      f"{path}: {size - position} bytes after the last array belong to none. Download it again."
    )


def _entry(path: Path, name: str, entry: dict[str, Any], start: int, size: int) -> StoredArray:
  """One array from its entry in the header; the arrays begin at byte `start` of `size`."""
  if entry["dtype"] not in DTYPES:
    raise UnusableFileError(
      f"{path}: {name} is stored as {entry['dtype']}, which is not supported. Use the "
      "model's float16, bfloat16 or float32 release."
    )
  dtype, shape = np.dtype(DTYPES[entry["dtype"]]), tuple(map(operator.index, entry["shape"]))
  begin, end = (start + operator.index(offset) for offset in entry["data_offsets"])
  if min(shape, default=0) < 0 or len(shape) > 32 or begin < start:
    raise ValueError(f"the shape or the offsets of {name[:100]}")
  if end > size:
    raise UnusableFileError(
      f"{path}: truncated, {name} ends at byte {end} but the file has {size}. Download it again."
    )
  if end - begin != math.prod(shape) * dtype.itemsize:
    raise UnusableFileError(
      f"{path}: {name} has {end - begin} bytes, not those of {entry['dtype']}{list(shape)}. "
      "Download it again."
    )
  return _stored_array(path, name, begin, shape, dtype)


def _stored_array(
  path: Path, name: str, begin: int, shape: tuple[int, ...], dtype: np.dtype
) -> StoredArray:
  row = math.prod(shape[1:])  # elements

  def read() -> np.ndarray:
    with reading(path, name):
      return np.fromfile(path, dtype, math.prod(shape), offset=begin).reshape(shape)

  def read_rows(start: int, stop: int) -> np.ndarray:
    offset = begin + start * row * dtype.itemsize
    with reading(path, name):
      rows = np.fromfile(path, dtype, (stop - start) * row, offset=offset)
      return rows.reshape(stop - start, *shape[1:])

  return StoredArray(shape, dtype, read, read_rows if len(shape) > 1 else None)
