"""Reads safetensors files, one array at a time.

The library `safetensors` maps the whole file into memory; the pages it touches then count
beside the weights made of them. Here each array is read into its own buffer, used and freed.
"""

from __future__ import annotations

import json
import math
import operator
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mdtrap_jax.checkpoints.formats.arrays import StoredArray, UnusableFileError, reading

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
  size = os.path.getsize(path)
  arrays = {}
  with reading(path, "its header"), open(path, "rb") as file:
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(size - 8, 100_000_000):
      raise UnusableFileError(
        f"{path}: no safetensors file, or cut off in its header. Download it again."
      )
    header = json.loads(file.read(length))
    for name, entry in header.items():
      if name != "__metadata__":
        arrays[name] = _entry(path, name, entry, 8 + length, size)
  return arrays


def _entry(path: Path, name: str, entry: dict[str, Any], start: int, size: int) -> StoredArray:
  """One array from its entry in the header; the arrays begin at byte `start` of `size`."""
  if entry["dtype"] not in DTYPES:
    raise UnusableFileError(
      f"{path}: {name} is stored as {entry['dtype']}, which is not supported. Use the "
      "model's float16, bfloat16 or float32 release."
    )
  dtype, shape = np.dtype(DTYPES[entry["dtype"]]), tuple(map(operator.index, entry["shape"]))
  begin, end = (start + offset for offset in entry["data_offsets"])
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


def open_sharded(index: Path) -> dict[str, StoredArray]:
  """The arrays of several `.safetensors` files, as `model.safetensors.index.json` lists them.

  Raises:
    FileNotFoundError: a shard is missing.
    UnusableFileError: an array is not in the shard that the index names, or one of the files
      is damaged.
  """
  with reading(index):
    shard_of = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
  shards = {}
  for shard in sorted(set(shard_of.values())):
    if not (index.parent / shard).is_file():
      raise FileNotFoundError(
        f"{index} names the shard {shard}, which is not beside it. Download it too."
      )
    shards[shard] = open_safetensors(index.parent / shard)
  for name, shard in shard_of.items():
    if name not in shards[shard]:
      raise UnusableFileError(f"{index}: {name} is not in {shard}. Download both again.")
  return {name: shards[shard][name] for name, shard in shard_of.items()}


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
