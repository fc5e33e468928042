"""How far the cells of a sweep are, and who runs them, by what lies in the sweep's directory.

A cell is done when its runs have all the episodes that their config asks for. Who runs a cell holds
a lock on a file of the sweep, which the kernel lets go when the process ends, however it does; a
cell that failed leaves a line that says why, until somebody runs it to its end.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mdtrap_jax import config as settings
from mdtrap_jax import files
from mdtrap_jax.report import tables
from mdtrap_jax.run import claim
from mdtrap_jax.run.lines import read_episodes, read_object
from mdtrap_jax.sweep.cells import Cell

STATES = ("done", "running", "failed", "begun", "open")


class State(NamedTuple):
  """How far a cell is."""

  name: str  # one of `STATES`
  episodes: int  # that are finished, of all its runs
  wanted: int | None  # of all its runs; None where its config cannot be right
  note: str = ""  # who runs it, or why it failed


def state_of(workdir: Path, cell: Cell, held: bool = False) -> State:
  """A cell's state; reads what its runs left.

  Args:
    workdir: of the sweep.
    cell: one of its cells.
    held: whether this process is who runs it.

  Raises:
    OSError, ValueError: a file of a run is damaged.
  """
  folder, failure = workdir / cell.name, _read(_file(workdir, cell, "failed"))
  try:
    config = cell.resolve()
    runs, wanted = settings.variants(config), wanted_episodes(config)
  except (OSError, ValueError) as error:
    return State("failed", 0, None, str(error))
  counts = [
    len(read_episodes(folder / name)) if (folder / name / "episodes.jsonl").is_file() else 0
    for name in runs
  ]
  # The summary is what a run writes last.
  complete = all(
    count >= wanted and (folder / name / "summary.json").is_file()
    for name, count in zip(runs, counts, strict=True)
  )
  about = State("open", sum(counts), wanted * len(runs))
  if not held and (holder := _holder(workdir, cell)):
    return about._replace(name="running", note=holder)
  if complete:
    return about._replace(name="done")
  if failure:
    return about._replace(name="failed", note=str(failure.get("error", "")))
  return about._replace(name="begun" if sum(counts) else "open")


def wanted_episodes(config) -> int:
  """Of one run of a resolved config: all seeds and domains together."""
  return config.get("episodes", 1) * config.get("seeds", 1) * len(config.get("domains", ("",)))


@contextlib.contextmanager
def taken(workdir: Path, cell: Cell) -> Iterator[int | None]:
  """While this process has a cell to itself; `None` if another has.

  Yields:
    A descriptor that holds the lock. A process that inherits it holds the cell too.
  """
  descriptor = claim.open_regular(_file(workdir, cell, "lock"), os.O_RDWR | os.O_CREAT)
  try:
    if not _locked(descriptor):
      yield None
      return
    about = {"host": socket.gethostname(), "process": os.getpid(), "since": time.time()}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(about).encode(), 0)
    yield descriptor
  finally:
    os.close(descriptor)


def _locked(descriptor: int, tries: int = 5) -> bool:
  """Locks a file; who only looks whether it is locked holds it for a moment, too."""
  for _ in range(tries):
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
      return True
    except BlockingIOError:
      time.sleep(0.1)
  return False


def note_failure(workdir: Path, cell: Cell, error: str) -> None:
  """Leaves a line that says why a cell failed; an empty one removes it."""
  path = _file(workdir, cell, "failed")
  if error:
    files.write(path, json.dumps({"error": error, "when": time.time()}) + "\n")
  else:
    path.unlink(missing_ok=True)


def failed_since(workdir: Path, cell: Cell, moment: float) -> bool:
  """Whether another process found a cell to fail after a moment, in seconds since the epoch."""
  failure = _read(_file(workdir, cell, "failed"))
  return bool(failure) and failure.get("when", 0.0) > moment


def table(workdir: Path, cells: Sequence[Cell]) -> str:
  """What is done, running, failed, begun and open, as text."""
  states = {cell.name: state_of(workdir, cell) for cell in cells}
  rows = [(name, state.name, _episodes(state), state.note or "–") for name, state in states.items()]
  count = {name: sum(state.name == name for state in states.values()) for name in STATES}
  summary = ", ".join(f"{count[name]} {name}" for name in STATES if count[name])
  return f"{tables.text(('cell', 'state', 'episodes', 'note'), rows)}\n{summary} of {len(cells)}"


def _episodes(state: State) -> str:
  return f"{state.episodes}/{'–' if state.wanted is None else state.wanted}"


def _holder(workdir: Path, cell: Cell) -> str:
  """Who holds a cell; empty if nobody does."""
  try:
    descriptor = claim.open_regular(_file(workdir, cell, "lock"), os.O_RDONLY)
  except FileNotFoundError:
    return ""
  try:
    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return ""
  except BlockingIOError:
    about = _read(_file(workdir, cell, "lock"))
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(about.get("since", time.time())))
    return f"on {about.get('host', '?')}, process {about.get('process', '?')}, since {since}"
  finally:
    os.close(descriptor)


def _file(workdir: Path, cell: Cell, kind: str) -> Path:
  return workdir / ".sweep" / f"{cell.name.replace('/', ',')}.{kind}"


def _read(path: Path) -> dict:
  """An object of ours, or nothing while somebody writes it."""
  try:
    return read_object(path)
  except (OSError, ValueError):
    return {}
