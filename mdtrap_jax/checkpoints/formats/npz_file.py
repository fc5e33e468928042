"""Reads big_vision's `.npz` checkpoints, one array at a time."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from mdtrap_jax.checkpoints.formats.arrays import BFLOAT16, StoredArray, UnusableFileError, reading


def open_npz(path: Path) -> dict[str, StoredArray]:
  """The arrays of a NumPy archive, their names with "." for "/".

  Raises:
    UnusableFileError: it is truncated, is no such archive, or holds pickled objects.
  """
  arrays = {}
  with reading(path), zipfile.ZipFile(path) as archive:
    for member in archive.namelist():
      with archive.open(member) as file:
        shape, _, dtype = _header(file)
      if dtype.hasobject:
        raise UnusableFileError(f"{path}: {member} holds pickled objects, not numbers.")
      # NumPy has no name for bfloat16, so big_vision's are stored as two anonymous bytes.
      dtype = BFLOAT16 if dtype == np.dtype("V2") else dtype
      name = member.removesuffix(".npy").replace("/", ".")
      arrays[name] = StoredArray(shape, dtype, _reader(path, member, dtype))
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
