"""Reads big_vision's `.npz` checkpoints, one array at a time."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np

from mdtrap_jax.checkpoints.formats.archive import open_archive
from mdtrap_jax.checkpoints.formats.arrays import BFLOAT16, StoredArray, UnusableFileError, reading


def open_npz(path: Path) -> dict[str, StoredArray]:
  """The arrays of a NumPy archive, their names with "." for "/".

  Raises:
    UnusableFileError: it is truncated, is no such archive, or holds pickled objects.
  """
  arrays = {}
  with reading(path), open_archive(path) as archive:
    for member in archive.infolist():
      with archive.open(member) as file:
        shape, _, dtype = _header(file)
        begin = file.tell()
      if dtype.hasobject:
        raise UnusableFileError(f"{path}: {member.filename} holds pickled objects, not numbers.")
      # NumPy would first make room for whatever the header claims.
      if min(shape, default=0) < 0 or begin + math.prod(shape) * dtype.itemsize != member.file_size:
        raise UnusableFileError(
          f"{path}: damaged, {member.filename} does not have the bytes of {dtype}{list(shape)}. "
          "Download it again."
        )
      # NumPy has no name for bfloat16, so big_vision's are stored as two anonymous bytes.
      dtype = BFLOAT16 if dtype == np.dtype("V2") else dtype
      name = member.filename.removesuffix(".npy").replace("/", ".")
      if name in arrays:
        raise UnusableFileError(f"{path}: two of its arrays are named {name}.")
      arrays[name] = StoredArray(shape, dtype, _reader(path, member.filename, dtype))
  return arrays


def _header(file) -> tuple[tuple[int, ...], bool, np.dtype]:
  readers = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
  }
  return readers[np.lib.format.read_magic(file)](file)


def _reader(path: Path, member: str, dtype: np.dtype):
  def read() -> np.ndarray:
    with reading(path, member), zipfile.ZipFile(path) as archive, archive.open(member) as file:
      return np.lib.format.read_array(file, allow_pickle=False).view(dtype)

  return read
