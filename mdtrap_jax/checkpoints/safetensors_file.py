"""Reads safetensors files, one array at a time.

The library `safetensors` maps the whole file into memory; the pages it touches then count
beside the weights made of them. Here each array is read into its own buffer, used and freed.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import ml_dtypes
import numpy as np

from mdtrap_jax.checkpoints.arrays import StoredArray

DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_}


def open_safetensors(path: Path) -> dict[str, StoredArray]:
  """The arrays of one `.safetensors` file.

  Raises:
    ValueError: the file is truncated or is not a safetensors file.
  """
  size = os.path.getsize(path)
  with open(path, "rb") as file:
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(size - 8, 100_000_000):
      raise ValueError(
          f"{path}: no safetensors file, or cut off in its header. Download it again.")
    try:
      header = json.loads(file.read(length))
    except ValueError as error:
      raise ValueError(
          f"{path}: the safetensors header is no JSON ({error}). Download it again.") from error
  header.pop("__metadata__", None)
  arrays = {}
  for name, entry in header.items():
    if not {"dtype", "shape", "data_offsets"} <= set(entry):
      raise ValueError(f"{path}: the safetensors header says too little about {name}.")
    if entry["dtype"] not in DTYPES:
      raise ValueError(
          f"{path}: {name} is stored as {entry['dtype']}, which is not supported. Use the "
          "model's float16, bfloat16 or float32 release.")
    dtype, shape = np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"])
    begin, end = (8 + length + offset for offset in entry["data_offsets"])
    if end > size:
      raise ValueError(
          f"{path}: truncated, {name} ends at byte {end} but the file has {size}. "
          "Download it again.")
    if end - begin != math.prod(shape) * dtype.itemsize:
      raise ValueError(f"{path}: {name} has {end - begin} bytes, not those of "
                       f"{entry['dtype']}{list(shape)}. Download it again.")
    arrays[name] = _stored_array(path, begin, shape, dtype)
  return arrays


def open_sharded(index: Path) -> dict[str, StoredArray]:
  """The arrays of several `.safetensors` files, as `model.safetensors.index.json` lists them.

  Raises:
    FileNotFoundError: a shard is missing.
    ValueError: an array is not in the shard that the index names.
  """
  shard_of = json.loads(index.read_text())["weight_map"]
  shards = {}
  for shard in sorted(set(shard_of.values())):
    if not (index.parent / shard).is_file():
      raise FileNotFoundError(
          f"{index} names the shard {shard}, which is not beside it. Download it too.")
    shards[shard] = open_safetensors(index.parent / shard)
  for name, shard in shard_of.items():
    if name not in shards[shard]:
      raise ValueError(f"{index}: {name} is not in {shard}. Download both again.")
  return {name: shards[shard][name] for name, shard in shard_of.items()}


def _stored_array(
    path: Path, begin: int, shape: tuple[int, ...], dtype: np.dtype
) -> StoredArray:
  row = math.prod(shape[1:])  # elements

  def read() -> np.ndarray:
    return np.fromfile(path, dtype, math.prod(shape), offset=begin).reshape(shape)

  def read_rows(start: int, stop: int) -> np.ndarray:
    offset = begin + start * row * dtype.itemsize
    return np.fromfile(path, dtype, (stop - start) * row, offset=offset).reshape(-1, *shape[1:])

  return StoredArray(shape, dtype, read, read_rows if len(shape) > 1 else None)
