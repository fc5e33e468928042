"""Batches of episodes in the middle of their steps, kept on the disk.

A run that is killed goes on from the last snapshot instead of repeating the batch. Rows carry
their episodes' numbers, so that the run may go on with other batches, on other devices.

Each process writes its own, one file for a group, replaced in one step. Orbax cannot: with
several processes its handlers write NumPy arrays on process 0 alone and refuse those of one
process's devices, and its barriers wait for peers that a kill may have taken.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from mdtrap_jax import config as settings
from mdtrap_jax import files
from mdtrap_jax.run import claim, identity

_NAME = re.compile(r"[0-9a-f]{16}\.snapshot")
_PARTIAL = re.compile(rf"\.{_NAME.pattern}\.\w+\.partial")  # of `files.write`
_MAGIC = b"mdtrap_jax snapshot 1 "


class Snapshot(NamedTuple):
  """Where a batch of `E` episodes under `P` variants stands, on the host."""

  group: str  # of episodes that one program adapts
  episodes: tuple[int, ...]  # E numbers, one for each row
  step: int  # steps done
  leaves: list[np.ndarray]  # of the state, each [E, P, ...]
  evaluations: dict[int, dict[str, np.ndarray]]  # by step and name, each [E, P, ...]
  runs: tuple[str, ...] = ()  # P variants of the run that the group adapts; all, if not given

  def rows(self, episodes: Sequence[int], size: int, like: Any) -> tuple[Any, dict]:
    """State and evaluations of some episodes, with `size` rows: the last one is repeated.

    Args:
      episodes: numbers, all of them in the snapshot.
      size: rows wanted.
      like: a state; its structure is the result's.

    Raises:
      ValueError: the snapshot is of another version of the program.
    """
    structure = jax.tree.structure(like)
    if [leaf.shape[1:] for leaf in self.leaves] != [
      leaf.shape[1:] for leaf in jax.tree.leaves(like)
    ]:
      raise ValueError(
        "The snapshot in the work directory was made by another version of "
        "mdtrap_jax: remove the directory `snapshots` in it."
      )
    rows = [self.episodes.index(int(episode)) for episode in episodes]
    rows = np.array(rows + rows[-1:] * (size - len(rows)))
    state = jax.tree.unflatten(structure, [leaf[rows] for leaf in self.leaves])
    return state, jax.tree.map(lambda leaf: leaf[rows], self.evaluations)


class SnapshotDirectory:
  """The newest snapshot of each group of a run; it stays until the next one is complete."""

  def __init__(
    self,
    path: Path,
    config: Mapping[str, Mapping[str, Any]],
    *,
    seconds: float = 10.0,
    share: float = 0.05,
    push: Callable[[], None] = lambda: None,
  ):
    """Opens `path`, which is made with the first snapshot.

    Args:
      path: the directory, inside one of the run's own.
      config: what each variant computes; a snapshot of something else is refused.
      seconds: at least, from one snapshot to the next, or to the end of a short batch.
      share: of a run's time that writing snapshots may take.
      push: returns once what was written is kept, where a disk of this machine is not enough.

    Raises:
      ValueError, OSError: `path` is a link, or something else's.
    """
    self._path, self._config = path.absolute(), json.loads(json.dumps(config))
    self._interval, self._share, self._push = seconds, share, push
    self._last = time.monotonic()
    self._seconds = 0.0  # that the last one took
    self._failed = False
    claim.check(self._path)

  def restore(self, group: str, runs: Sequence[str] = ()) -> Snapshot | None:
    """The newest snapshot of a group; `None` if there is none, or, with a warning, a damaged one.

    Args:
      group: of episodes.
      runs: the variants that it adapts now; all, if not given. Others may have come or changed.

    Raises:
      ValueError: the snapshot is of a run with another config.
    """
    path = self._file(group)
    try:
      with open(claim.open_regular(path, os.O_RDONLY), "rb") as file:
        config, snapshot = _unpack(file.read())
      if snapshot.group != group:
        raise ValueError(f"of {snapshot.group!r}")
    except FileNotFoundError:
      return None
    except (OSError, ValueError) as error:
      logging.warning("the snapshot %s cannot be read (%s): its episodes start again.", path, error)
      return None
    self._check({name: self._config[name] for name in runs or self._config}, config)
    return snapshot

  def held(self, group: str) -> tuple[int, ...]:
    """The episodes of a group's newest snapshot, by its head alone: it may turn out damaged."""
    try:
      with open(claim.open_regular(self._file(group), os.O_RDONLY), "rb") as file:
        file.readline()
        return tuple(json.loads(file.readline())["episodes"])
    except (OSError, ValueError, TypeError, LookupError):
      return ()

  def begin(self) -> None:
    """A new batch begins: nothing of it would be lost yet."""
    self._last = time.monotonic()

  def due(self) -> bool:
    """Whether it is time for the next snapshot; never again once one could not be written."""
    waited = time.monotonic() - self._last
    return not self._failed and waited >= max(self._interval, self._seconds / self._share)

  def save(self, snapshot: Snapshot) -> bool:
    """Writes a snapshot and returns when it is complete.

    Returns:
      Whether it could be written. If not, a warning has said so once, and the one before is
      untouched.
    """
    before = time.monotonic()
    try:
      claim.mark(self._path)
      for partial in self._files(_PARTIAL):  # a kill's, and large
        partial.unlink()
      files.write(self._file(snapshot.group), _pack(self._config, snapshot))
      self._push()
      self._failed = False
    except OSError as error:
      if not self._failed:
        logging.warning(
          "a snapshot cannot be written to %s (%s): the run goes on without; if it is stopped, "
          "the episodes under way start again.",
          self._path,
          error.strerror or error,
        )
      self._failed = True
    self._last = time.monotonic()
    self._seconds = self._last - before
    return not self._failed

  def remove(self, group: str | None = None) -> None:
    """Deletes the snapshots of a group, or all: it is complete. Nothing else is touched."""
    for path in [*self._files(_NAME), *self._files(_PARTIAL)]:
      if group is None or path == self._file(group):
        path.unlink()
    if self._path.is_dir() and {path.name for path in self._path.iterdir()} == {claim.MARKER}:
      (self._path / claim.MARKER).unlink()
      self._path.rmdir()
    self._push()

  def close(self) -> None:
    """Lets go of the directory; snapshots stay."""

  def _file(self, group: str) -> Path:
    return self._path / f"{hashlib.sha256(group.encode()).hexdigest()[:16]}.snapshot"

  def _files(self, name: re.Pattern[str]) -> list[Path]:
    """What we made: plain files of our names, in a directory that we marked."""
    if self._path.is_symlink() or not claim.is_ours(self._path):
      return []
    ours = lambda path: name.fullmatch(path.name) and path.is_file() and not path.is_symlink()
    return [path for path in self._path.iterdir() if ours(path)]

  def _check(self, here: dict[str, Any], there: dict[str, Any]) -> None:
    changed = []
    if list(here) != list(there):  # their order is that of an axis
      changed.append(f"variants: {list(there)} there, {list(here)} here")
    for name in here:
      changed += identity.differences(here[name], there.get(name, here[name]))
    if changed:
      raise settings.ConfigMismatchError(
        f"{self._path} holds unfinished episodes of another config or other data "
        f"({'; '.join(changed)}): give another --workdir, the same config and data to go "
        "on, or remove that directory."
      )


def _pack(config: dict[str, Any], snapshot: Snapshot) -> bytes:
  """A line with the SHA-256 of all that follows, a line of JSON, and the arrays' bytes."""
  arrays = [np.asarray(leaf) for leaf in snapshot.leaves]
  names = []
  for step, evaluation in snapshot.evaluations.items():
    for name, value in evaluation.items():
      names.append([int(step), name])
      arrays.append(np.asarray(value))
  about = {
    "config": {name: config[name] for name in snapshot.runs or config},
    "runs": snapshot.runs,
    "group": snapshot.group,
    "episodes": [int(episode) for episode in snapshot.episodes],
    "step": int(snapshot.step),
    "leaves": len(snapshot.leaves),
    "evaluations": names,
    "arrays": [[array.dtype.name, array.shape] for array in arrays],
  }
  raw = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays]
  payload = [json.dumps(about).encode(), b"\n", *raw]
  digest = hashlib.sha256()
  for part in payload:
    digest.update(part)
  return b"".join([_MAGIC, digest.hexdigest().encode(), b"\n", *payload])


def _unpack(content: bytes) -> tuple[dict[str, Any], Snapshot]:
  """Config and snapshot of a file.

  Raises:
    ValueError: a bit of it has changed, or it is no such file.
  """
  start = len(_MAGIC) + 65
  if not content.startswith(_MAGIC) or content[start - 1 : start] != b"\n":
    raise ValueError("damaged, or of another version")
  payload = memoryview(content)[start:]
  if hashlib.sha256(payload).hexdigest().encode() != content[len(_MAGIC) : start - 1]:
    raise ValueError("damaged")
  # From here on it is what `_pack` wrote.
  end = content.index(b"\n", start) + 1
  about, arrays = json.loads(content[start:end]), []
  for name, shape in about["arrays"]:
    dtype, count = np.dtype(name), math.prod(shape)
    array = np.frombuffer(content, dtype, count, end) if count else np.zeros(0, dtype)
    arrays.append(array.reshape(shape))
    end += array.nbytes
  evaluations: dict[int, dict[str, np.ndarray]] = {}
  for (step, name), value in zip(about["evaluations"], arrays[about["leaves"] :], strict=True):
    evaluations.setdefault(step, {})[name] = value
  leaves = arrays[: about["leaves"]]
  about["episodes"], about["runs"] = tuple(about["episodes"]), tuple(about["runs"])
  fixed = {field: about[field] for field in ("group", "episodes", "step", "runs")}
  return about["config"], Snapshot(leaves=leaves, evaluations=evaluations, **fixed)
