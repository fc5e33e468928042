"""Reads `flax_model.msgpack` files, one array at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import BinaryIO

import msgpack
import numpy as np
from flax import serialization

from mdtrap_jax.checkpoints.formats.arrays import StoredArray, reading

_ARRAYS = (1, 3)  # Flax's extension codes of arrays and of NumPy scalars
_HEAD = 512  # bytes that surely hold an array's shape and dtype


def open_msgpack(path: Path) -> dict[str, StoredArray]:
  """The arrays of a tree of dictionaries as Flax serializes it.

  Raises:
    UnusableFileError: it is truncated or holds something else.
  """
  arrays = {}
  with reading(path), open(path, "rb") as file, open(path, "rb") as peek:
    # No limit on what one array may need; the default of 100 MB is less than an embedding.
    unpacker = msgpack.Unpacker(file, max_buffer_size=2**32 - 1)
    _walk(path, unpacker, peek, (), arrays)
  return arrays


def _walk(
  path: Path,
  unpacker: msgpack.Unpacker,
  peek: BinaryIO,
  parents: tuple[str, ...],
  arrays: dict[str, StoredArray],
) -> None:
  """Records where each array of one dictionary lies; reads none."""
  for _ in range(unpacker.read_map_header()):
    name = (*parents, unpacker.unpack())
    begin = unpacker.tell()
    peek.seek(begin)
    head = peek.read(_HEAD)
    if head[0] & 0xF0 == 0x80 or head[0] in (0xDE, 0xDF):
      _walk(path, unpacker, peek, name, arrays)
      continue
    unpacker.skip()
    end = unpacker.tell()
    shape, dtype = _shape_and_dtype(head)
    full_name = ".".join(name)
    if (
      dtype.hasobject
      or not 0 <= math.prod(shape) * dtype.itemsize <= end - begin
      or min(shape, default=0) < 0
    ):
      raise ValueError(f"{full_name} does not have the bytes of {dtype}{list(shape)}")
    if full_name in arrays:
      raise ValueError(f"two arrays are named {full_name}")
    arrays[full_name] = StoredArray(shape, dtype, _reader(path, full_name, begin, end))


def _shape_and_dtype(head: bytes) -> tuple[tuple[int, ...], np.dtype]:
  """Decodes the beginning of Flax's array extension, `[shape, dtype name, bytes]`."""
  sizes = {0xC7: 3, 0xC8: 4, 0xC9: 6}  # ext 8, 16 and 32: bytes before the payload
  start = sizes.get(head[0], 2)  # else a fixext
  if head[start - 1] not in _ARRAYS:
    raise ValueError(f"an extension of type {head[start - 1]} where an array should be")
  unpacker = msgpack.Unpacker()
  unpacker.feed(head[start:])
  unpacker.read_array_header()
  return tuple(unpacker.unpack()), np.dtype(unpacker.unpack())


def _reader(path: Path, name: str, begin: int, end: int):
  def read() -> np.ndarray:
    with reading(path, name), open(path, "rb") as file:
      file.seek(begin)
      return np.asarray(serialization.msgpack_restore(file.read(end - begin)))

  return read
