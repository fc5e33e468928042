"""A run's files: `config.json`, `episodes.jsonl` and `summary.json` in its work directory.

Every finished episode is one line, flushed to disk before the next batch starts; a line cut
short by a kill is found and dropped, and its episode runs again with the same outcome.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ml_collections
from absl import logging

from mdtrap_jax import config as settings
from mdtrap_jax import files
from mdtrap_jax.run import claim, identity, lines, predictions


class WorkDirectory:
  """The files of one run; holds a lock so that two runs cannot write to them at once."""

  def __init__(
    self,
    path: str | Path,
    config: ml_collections.ConfigDict,
    source: dict[str, Any] | None = None,
    *,
    variant: str = "",
    process: int = 0,
    push: Callable[[], None] = lambda: None,
  ):
    """Claims a directory for a resolved config, new or to be resumed.

    Args:
      path: of the run, `--workdir`; made if need be. It may be a link.
      config: resolved.
      source: what the images and weights are (see `run/identity.py`).
      variant: the subdirectory of one of several variants.
      process: which of several processes this is; others than 0 write to `process-N`.
      push: returns once what was written is kept, where a disk of this machine is not enough.

    Raises:
      ValueError: the directory belongs to a run of another config or other data, to something
        else, or holds a line that is no episode. Nothing of it has changed.
      OSError: it cannot be written, or another process is using it.
    """
    self.path, self._push = claim.claim(path, variant, process), push
    self._lock = claim.open_regular(self.path / ".lock", os.O_RDWR | os.O_CREAT)
    try:
      fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      self.close()
      raise OSError(
        f"{self.path} is in use by another run: wait for it or give another --workdir."
      ) from error
    try:
      self.finished = self._repair()
      self.predictions = None
      if config.get("predictions"):
        if not process:
          predictions.check(self.path, Path(path).resolve(), self.finished)
        self.predictions = predictions.Log(self.path)
      self._write_config(json.loads(settings.to_json(config)) | {"source": source})
    except BaseException:
      self.close()
      raise

  def close(self) -> None:
    """Releases the directory."""
    if self._lock >= 0:
      os.close(self._lock)
      self._lock = -1

  def __enter__(self) -> WorkDirectory:
    return self

  def __exit__(self, *exception) -> None:
    self.close()

  def append(self, episodes: Iterable[dict[str, Any]]) -> None:
    """Adds finished episodes to `episodes.jsonl` and returns once they are on the disk and pushed.

    Those that are there already are passed over: a batch that was written for one variant when
    a kill came is run again for the others.

    Raises:
      OSError: the disk is full; what was there before is untouched.
    """
    new = {line["episode"]: line for line in episodes if line["episode"] not in self.finished}
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in new.values()).encode()
    path = self.path / "episodes.jsonl"
    descriptor = claim.open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    size = os.fstat(descriptor).st_size
    try:
      while text:
        text = text[os.write(descriptor, text) :]
      os.fsync(descriptor)
    except BaseException as error:  # of a full disk, or of Ctrl-C in the middle
      os.ftruncate(descriptor, size)
      if isinstance(error, OSError):
        raise _explain(error, path) from error
      raise
    finally:
      os.close(descriptor)
    self.finished |= new
    self._push()

  def write_json(self, name: str, value: dict[str, Any] | str) -> None:
    """Replaces a file in one step: a reader sees the old one or the new one."""
    text = value if isinstance(value, str) else json.dumps(value, indent=2) + "\n"
    path = self.path / name
    try:
      files.write(path, text)
    except OSError as error:
      raise _explain(error, path) from error

  def folder(self, name: str) -> Path:
    """A subdirectory of this run's own, made if need be: `events`, `figures`.

    Raises:
      ValueError, OSError: something else has that name.
    """
    claim.mark(self.path / name)
    return self.path / name

  def _write_config(self, config: dict[str, Any]) -> None:
    """Writes `config.json`; refuses where finished episodes are of something else."""
    path = self.path / "config.json"
    config = json.loads(json.dumps(config))  # as it will be read
    if self.finished:
      try:
        there = lines.parse_object(_read(path), path)
      except FileNotFoundError as error:
        raise ValueError(
          f"{self.path} has episodes.jsonl but no config.json, so it cannot be "
          "told what made them: give another --workdir."
        ) from error
      check_same(config, there, self.path)
    self.write_json("config.json", config)
    self.config = config

  def _repair(self) -> dict[int, dict[str, Any]]:
    """Reads `episodes.jsonl`, cutting off what a kill left half-written."""
    path = self.path / "episodes.jsonl"
    try:
      descriptor = claim.open_regular(path, os.O_RDWR)
    except FileNotFoundError:
      return {}
    with open(descriptor, "rb+") as file:
      finished, good = lines.parse_episodes(file, path)
      if good < os.fstat(descriptor).st_size:
        logging.warning(
          "%s ended in a half-written line (a killed run): dropped, its episode runs again.", path
        )
        os.ftruncate(descriptor, good)
    return finished


def check_same(here: dict[str, Any], there: dict[str, Any], path: Path) -> None:
  """Refuses to go on with, or to mix in, what another config or other data made.

  Args:
    here: what `config.json` says of this run.
    there: what it says in `path`.
    path: for the message.

  Raises:
    settings.ConfigMismatchError: says what differs.
  """
  if changed := identity.differences(here, there):
    raise settings.ConfigMismatchError(
      f"{path} holds a run of another config or other data ({'; '.join(changed)}): give "
      "another --workdir, or the same config and data to resume it."
    )


def _read(path: Path) -> bytes:
  with open(claim.open_regular(path, os.O_RDONLY), "rb") as file:
    return file.read()


def _explain(error: OSError, path: Path) -> OSError:
  if error.errno in (errno.ENOSPC, errno.EDQUOT):
    return OSError(
      error.errno,
      f"the disk is full; {path} keeps what was finished. Free some "
      "space and run the same command again to go on",
    )
  return error
