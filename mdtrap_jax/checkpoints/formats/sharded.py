"""Reads weights in several files, with the index that says which array lies in which."""

from __future__ import annotations

from pathlib import Path

from mdtrap_jax.checkpoints.formats.arrays import (
  StoredArray,
  UnusableFileError,
  read_json,
  reading,
)
from mdtrap_jax.checkpoints.formats.safetensors_file import open_safetensors
from mdtrap_jax.checkpoints.formats.torch_file import open_torch


def shards(index: Path) -> list[Path]:
  """The files that an index names.

  Raises:
    FileNotFoundError: one of them is missing.
    UnusableFileError: the index is damaged, or names files of another folder.
  """
  files = [index.parent / name for name in sorted(set(_shard_of(index).values()))]
  for file in files:
    if not file.exists():
      raise FileNotFoundError(
        f"{index} names the shard {file.name}, which is not beside it. Download it too."
      )
  return files


def open_sharded(index: Path) -> dict[str, StoredArray]:
  """The arrays of several files, as `model.safetensors.index.json` (or `.bin`) lists them.

  Raises:
    FileNotFoundError: a shard is missing.
    UnusableFileError: an array is not in the shard that the index names, or one of the files
      is damaged.
  """
  shard_of, opened = _shard_of(index), {}
  for file in shards(index):
    is_torch = file.suffix == ".bin"
    opened[file.name] = open_torch(file).arrays if is_torch else open_safetensors(file)
  for name, shard in shard_of.items():
    if name not in opened[shard]:
      raise UnusableFileError(f"{index}: {name} is not in {shard}. Download both again.")
  return {name: opened[shard][name] for name, shard in shard_of.items()}


def _shard_of(index: Path) -> dict[str, str]:
  content = read_json(index)
  with reading(index):
    shard_of = dict(content["weight_map"])
    for shard in shard_of.values():
      if not shard or Path(shard).name != shard:
        raise ValueError(f"the shard {shard!r} lies in another folder")
  return shard_of
