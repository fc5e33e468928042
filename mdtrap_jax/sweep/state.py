"""How far the cells of a sweep are, by what lies in its place.

A cell is done when its runs have all the episodes that their config asks for, tested on all that
it names; one that failed has a note that says why, until somebody runs it to its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mdtrap_jax import config as settings
from mdtrap_jax.report import all_way, tables
from mdtrap_jax.run.lines import read_episodes
from mdtrap_jax.sweep.cells import Cell
from mdtrap_jax.sweep.place import Place

STATES = ("done", "running", "failed", "begun", "open")


class State(NamedTuple):
  """How far a cell is."""

  name: str  # one of `STATES`
  episodes: int  # that are finished, of all its runs
  wanted: int | None  # of all its runs; None where its config cannot be right
  note: str = ""  # who runs it, or why it failed


def state_of(place: Place, cell: Cell, root: Path | None = None, held: bool = False) -> State:
  """A cell's state; reads what its runs left.

  Args:
    place: of the sweep.
    cell: one of its cells.
    root: of `place.runs()`, where it is known.
    held: whether this process is who runs it.

  Raises:
    OSError, ValueError: a file of a run is damaged.
  """
  try:
    config = cell.resolve()
  except (OSError, ValueError) as error:
    return State("failed", 0, None, str(error))
  runs, wanted = settings.variants(config), wanted_episodes(config)
  folder = (root or place.runs(cell)) / cell.name
  counts = [_count(folder / name, all_way.examinations(config)) for name in runs]
  # The summary is what a run writes last.
  complete = all(
    count >= wanted and (folder / name / "summary.json").is_file()
    for name, count in zip(runs, counts, strict=True)
  )
  about = State("open", sum(counts), wanted * len(runs))
  if not held and (holder := place.holder(cell)):
    return about._replace(name="running", note=holder)
  if complete:
    return about._replace(name="done")
  if failure := place.failure(cell):
    return about._replace(name="failed", note=str(failure.get("error", "")))
  return about._replace(name="begun" if sum(counts) else "open")


def _count(folder: Path, exams: Sequence[str]) -> int:
  """Finished episodes of a run that were tested on what is asked for."""
  if not (folder / "episodes.jsonl").is_file():
    return 0
  lines = read_episodes(folder)
  return min((len(all_way.of_examination(lines, exam)) for exam in exams), default=len(lines))


def wanted_episodes(config) -> int:
  """Of one run of a resolved config: all seeds and domains together."""
  return config.get("episodes", 1) * config.get("seeds", 1) * len(config.get("domains", ("",)))


def table(place: Place, cells: Sequence[Cell]) -> str:
  """What is done, running, failed, begun and open, as text."""
  root = place.runs()
  states = {cell.name: state_of(place, cell, root) for cell in cells}
  rows = [(name, state.name, _episodes(state), state.note or "–") for name, state in states.items()]
  count = {name: sum(state.name == name for state in states.values()) for name in STATES}
  summary = ", ".join(f"{count[name]} {name}" for name in STATES if count[name])
  return f"{tables.text(('cell', 'state', 'episodes', 'note'), rows)}\n{summary} of {len(cells)}"


def _episodes(state: State) -> str:
  return f"{state.episodes}/{'–' if state.wanted is None else state.wanted}"
