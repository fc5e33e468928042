"""Batches of episodes in the middle of their steps, kept on the disk by Orbax.

A run that is killed goes on from the last snapshot instead of repeating the batch. Rows carry
their episodes' numbers, so that the run may go on with other batches, on other devices.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from mdtrap_jax import config as settings
from mdtrap_jax.methods.finetune import Evaluation

SHARE = 0.05  # of a run's time that writing snapshots may take
SECONDS = 10.0  # at least, from one to the next, or to the end of a short batch


class Snapshot(NamedTuple):
  """Where a batch of `E` episodes under `P` variants stands, on the host."""

  episodes: tuple[int, ...]  # E numbers, one for each row
  step: int  # steps done
  leaves: list[np.ndarray]  # of the state, each [E, P, ...]
  evaluations: dict[int, Evaluation]  # by step; leaves [E, P, ...]

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
  """The newest snapshot of a run; an older one stays until the newer is complete."""

  def __init__(self, path: Path, config: dict[str, dict[str, Any]]):
    """Opens `path`, which is made with the first snapshot.

    Args:
      path: the directory.
      config: what each variant computes; a snapshot of something else is refused.
    """
    self._path, self._config = path.absolute(), config
    self._manager: ocp.CheckpointManager | None = None
    self._last = time.monotonic()
    self._seconds = 0.0  # that the last one took

  def restore(self) -> Snapshot | None:
    """The newest snapshot that can be read, or `None`.

    Raises:
      ValueError: the snapshot is of a run with another config.
    """
    for number in sorted(self._numbers(), reverse=True):
      try:
        read = self._open().restore(
          number,
          args=ocp.args.Composite(arrays=ocp.args.StandardRestore(), about=ocp.args.JsonRestore()),
        )
        about, arrays = read["about"], read["arrays"]
        self._check(about["config"])
        leaves = [arrays["state"][str(i)] for i in range(len(arrays["state"]))]
        evaluations = {
          int(step): Evaluation(**value) for step, value in arrays["evaluations"].items()
        }
        return Snapshot(tuple(about["episodes"]), about["step"], leaves, evaluations)
      except settings.ConfigMismatchError:
        raise
      except (ValueError, OSError, KeyError, TypeError) as error:  # damaged, in some way
        logging.warning(
          "the snapshot %s cannot be read (%s): its episodes start again.",
          self._path / str(number),
          str(error).splitlines()[0],
        )
    return None

  def begin(self) -> None:
    """A new batch begins: nothing of it would be lost yet."""
    self._last = time.monotonic()

  def due(self) -> bool:
    """Whether it is time for the next snapshot."""
    return time.monotonic() - self._last >= max(SECONDS, self._seconds / SHARE)

  def save(self, snapshot: Snapshot) -> None:
    """Writes a snapshot and returns when it is complete.

    Raises:
      OSError: the disk is full; the snapshot before is untouched.
    """
    before = time.monotonic()
    arrays = {
      "state": {str(i): np.asarray(leaf) for i, leaf in enumerate(snapshot.leaves)},
      "evaluations": {str(step): value._asdict() for step, value in snapshot.evaluations.items()},
    }
    about = {"config": self._config, "episodes": list(snapshot.episodes), "step": snapshot.step}
    self._open().save(
      max(self._numbers(), default=-1) + 1,
      args=ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), about=ocp.args.JsonSave(about)),
    )
    self._last = time.monotonic()
    self._seconds = self._last - before

  def remove(self) -> None:
    """Deletes all snapshots: the run is complete."""
    self.close()
    shutil.rmtree(self._path, ignore_errors=True)

  def close(self) -> None:
    """Lets go of the directory; snapshots stay."""
    if self._manager is not None:
      self._manager.close()
      self._manager = None

  def _numbers(self) -> list[int]:
    """Of the complete snapshots; Orbax renames a directory to its number when it is."""
    if not self._path.is_dir():
      return []
    return [int(path.name) for path in self._path.iterdir() if path.name.isdigit()]

  def _open(self) -> ocp.CheckpointManager:
    if self._manager is None:
      self._path.mkdir(parents=True, exist_ok=True)
      process = jax.process_index()
      self._manager = ocp.CheckpointManager(
        self._path,
        options=ocp.CheckpointManagerOptions(
          max_to_keep=1,
          create=False,
          enable_async_checkpointing=False,
          multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=process,
            active_processes={process},
            barrier_sync_key_prefix=f"snapshots{process}",
          ),
        ),
      )
    return self._manager

  def _check(self, there: dict[str, Any]) -> None:
    here = self._config
    changed = [f"variants: {sorted(there)} there, {sorted(here)} here"] * (
      here.keys() != there.keys()
    )
    for name in here.keys() & there.keys():
      changed += settings.differences(here[name], there[name])
    if changed:
      raise settings.ConfigMismatchError(
        f"{self._path} holds unfinished episodes of another config or other data "
        f"({'; '.join(changed)}): give another --workdir, the same config and data to go "
        "on, or remove that directory."
      )
