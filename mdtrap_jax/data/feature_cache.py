"""Feature sets on disk, each in a folder of its own that appears whole or not at all.

The folder is named after the hash of everything that decides the features, so that no two share
one. In it are `features.npy`, `labels.npy`, `identity.json` (what decided them, and the hashes of
the arrays) and a file that marks the folder as this program's. A folder without that mark is
never written to, moved or removed, and of one with it only these four files are removed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from mdtrap_jax import files
from mdtrap_jax.data.feature_files import load_array

_MARK, _MAGIC = ".mdtrap_jax", "mdtrap_jax made this folder and may remove it.\n"
_ARRAYS, IDENTITY = ("features.npy", "labels.npy"), "identity.json"
_READABLE = 40  # characters of each name that are kept in the folder's, for people
_ABANDONED = 24 * 3600.0  # seconds after which what a killed process left half-made is removed


def folder_name(identity: dict[str, Any]) -> str:
  """One part of a path, different for every identity.

  Args:
    identity: everything that decides the features, in types that JSON knows; `model` and
      `domain` are also shown.
  """
  readable = (re.sub(r"[^A-Za-z0-9]+", "-", str(identity[key])) for key in ("model", "domain"))
  digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
  return "_".join([*(name.strip("-")[:_READABLE] or "x" for name in readable), digest])


def load(folder: Path, identity: dict[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
  """Features and labels in a folder; `None`, with a warning if they are damaged, to make anew.

  Args:
    folder: in the cache, of this `folder_name`.
    identity: what would decide the features now.

  Raises:
    FileExistsError: what is there was not made, or not alone, by this program.
  """
  if not os.path.lexists(folder):
    return None
  try:
    if not _is_ours(folder):
      raise ValueError("it has no mark")
    described = json.loads((folder / IDENTITY).read_text(encoding="utf-8"))
    there = dict(zip(_ARRAYS, files.digests(folder / name for name in _ARRAYS), strict=True))
    if described != {**identity, "sha256": there}:
      raise ValueError("the arrays are not those that were stored")
    return load_array(folder / "features.npy", "r"), load_array(folder / "labels.npy")
  except (OSError, ValueError, RecursionError) as error:
    if not _is_ours(folder) or set(os.listdir(folder)) - {*_ARRAYS, IDENTITY, _MARK}:
      raise FileExistsError(
        f"{folder} holds what this program did not make, and is left alone: move it away, or set "
        "another --config.data.cache_dir."
      ) from error
    logging.warning("%s is damaged and is made again: %s", folder, error)
    return None


def store(folder: Path, features: np.ndarray, labels: np.ndarray, identity: dict[str, Any]) -> None:
  """Writes a feature set aside and gives it its name in one step.

  What another process has put there meanwhile stays, if it is whole.

  Raises:
    OSError: the disk is full or the cache cannot be written.
  """
  folder.parent.mkdir(parents=True, exist_ok=True)
  for left in folder.parent.glob(f".{folder.name}.*"):
    with contextlib.suppress(OSError):
      if time.time() - left.lstat().st_mtime > _ABANDONED:
        _remove(left)
  aside = lambda: folder.with_name(f".{folder.name}.{secrets.token_hex(8)}")
  partial = aside()
  try:
    partial.mkdir()
    (partial / _MARK).write_text(_MAGIC)
    for name, array in zip(_ARRAYS, (features, labels), strict=True):
      np.save(partial / name, array)
    there = dict(zip(_ARRAYS, files.digests(partial / name for name in _ARRAYS), strict=True))
    (partial / IDENTITY).write_text(json.dumps({**identity, "sha256": there}, indent=2) + "\n")
    if os.path.lexists(folder) and load(folder, identity) is None:
      damaged = aside()
      with contextlib.suppress(FileNotFoundError):  # another process was quicker
        folder.rename(damaged)
        _remove(damaged)
    partial.rename(folder)
  except OSError as error:
    if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # the latter: another was first
      raise
  finally:
    _remove(partial)


def _is_ours(folder: Path) -> bool:
  """A real folder, no link to one, with our mark in it."""
  mark = folder / _MARK
  try:
    return (
      not folder.is_symlink() and not mark.is_symlink() and mark.is_file()
    ) and mark.read_bytes() == _MAGIC.encode()
  except OSError:
    return False


def _remove(folder: Path) -> None:
  """Removes a folder of ours, unless somebody has put something of theirs into it."""
  if _is_ours(folder):
    for name in (*_ARRAYS, IDENTITY, _MARK):
      (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
      folder.rmdir()
