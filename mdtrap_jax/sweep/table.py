"""What a sweep came to: the papers' tables with intervals, the papers' numbers beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mdtrap_jax import config as settings
from mdtrap_jax.report import agreement, comparison, published, tables
from mdtrap_jax.report.published import AVERAGE, Published
from mdtrap_jax.run.lines import read_episodes, read_object
from mdtrap_jax.statistics import Accuracy, accuracy_of, paired
from mdtrap_jax.sweep.cells import Cell
from mdtrap_jax.sweep.place import Place
from mdtrap_jax.sweep.state import wanted_episodes

SUFFIXES = {"markdown": "md", "csv": "csv", "latex": "tex"}
_NONE = Accuracy(math.nan, math.nan, 0)


class Entry(NamedTuple):
  """A place in a table: a setting's runs of all seeds and variants together."""

  shots: int
  backbone: str
  method: str
  target: str
  episodes: int  # finished, over all seeds
  wanted: int
  failed: int  # of those finished
  accuracy: Accuracy
  zero_shot: Accuracy
  difference: Accuracy | None  # to the first method, on common episodes; None for that itself
  published: Published | None
  reproduces: bool  # whether the runs' configs are the published one's, and all is finished

  @property
  def agrees(self) -> bool | None:
    """With the paper; `None` for what does not reproduce it, or where we know no number."""
    return published.agrees(self.published, 100 * self.accuracy.mean) if self.reproduces else None


def entries(root: Path, cells: Sequence[Cell]) -> list[Entry]:
  """All places of the tables, each target's and then the average over them, row by row.

  Args:
    root: from which to read the runs, of `place.runs()`.
    cells: of the sweep.

  Raises:
    OSError, ValueError: a file of a run is damaged.
  """
  settings_of = lambda cell: (cell.shots, cell.backbone, cell.method)
  targets = list(dict.fromkeys(cell.target for cell in cells))
  first = cells[0].method
  found = []
  for shots, backbone, method in dict.fromkeys(map(settings_of, cells)):
    row = []
    for target in targets:
      own, theirs = (
        [c for c in cells if settings_of(c) == (shots, backbone, name) and c.target == target]
        for name in (method, first)
      )
      row.append(_entry(root, own, theirs if method != first else None))
    found += row
    if len(row) > 1:
      found.append(_average(row))
  return found


def _entry(root: Path, cells: Sequence[Cell], first: Sequence[Cell] | None) -> Entry:
  lines, accuracies = _read(root, cells)
  cell = cells[0]
  row = published.accuracy(cell.backbone, cell.target, cell.method, cell.shots)
  paths = [root / cell.name for cell in cells]
  found = row and [v for v in agreement.verdicts(paths) if v.published == row and v.complete]
  return Entry(
    shots=cell.shots,
    backbone=cell.backbone,
    method=cell.method,
    target=cell.target,
    episodes=len(lines),
    wanted=sum(wanted_episodes(config) for config in map(_resolved, cells) if config),
    failed=sum(line["status"] != "ok" for line in lines),
    accuracy=accuracy_of(lines),
    zero_shot=accuracy_of(lines, "zero_shot_accuracy"),
    difference=None if first is None else paired(_read(root, first)[1], accuracies),
    published=row,
    reproduces=bool(found) and len(found) == len(cells),
  )


def _read(root: Path, cells: Sequence[Cell]):
  """Lines of all runs, and the accuracies by what makes two episodes the same."""
  lines, accuracies = [], {}
  for cell in cells:
    config = _resolved(cell)
    for name in settings.variants(config) if config else ():
      folder = root / cell.name / name
      if (folder / "episodes.jsonl").is_file():
        own = read_episodes(folder)
        lines += own
        accuracies |= comparison.by_identity(read_object(folder / "config.json"), own)
  return lines, accuracies


def _resolved(cell: Cell):
  """A cell's config; `None` where it cannot be right, so that there are no runs of it."""
  try:
    return cell.resolve()
  except (OSError, ValueError):
    return None


def _average(row: Sequence[Entry]) -> Entry:
  """Over the targets, each of which counts alike; their episodes are independent."""

  def mean(values: Sequence[Accuracy | None]) -> Accuracy:
    means, intervals, counts = zip(*(value or _NONE for value in values), strict=True)
    spread = math.sqrt(sum(interval**2 for interval in intervals)) / len(values)
    return Accuracy(sum(means) / len(values), spread, sum(counts))

  entry = row[0]
  complete = {entry.target for entry in row} == set(published.TARGETS)
  return entry._replace(
    target=AVERAGE,
    episodes=sum(entry.episodes for entry in row),
    wanted=sum(entry.wanted for entry in row),
    failed=sum(entry.failed for entry in row),
    accuracy=mean([entry.accuracy for entry in row]),
    zero_shot=mean([entry.zero_shot for entry in row]),
    difference=entry.difference and mean([entry.difference for entry in row]),
    published=published.accuracy(entry.backbone, AVERAGE, entry.method, entry.shots)
    if complete
    else None,
    reproduces=complete and all(entry.reproduces for entry in row),
  )


def format_markdown(found: Sequence[Entry]) -> str:
  """A table for each number of shots, in Markdown."""
  parts = []
  for shots, header, rows in _tables(found):
    parts.append(f"{shots}-shot accuracy in %\n\n{tables.markdown(header, rows)}")
  return "\n\n".join(parts)


def format_latex(found: Sequence[Entry]) -> str:
  """The same for a paper, with the package booktabs."""
  parts = []
  for shots, header, rows in _tables(found):
    parts.append(f"% {shots}-shot accuracy in %\n{tables.latex(header, rows)}")
  return "\n\n".join(parts)


def _tables(found: Sequence[Entry]):
  """Shots, header and rows of each: what was measured, the paper's, the paired difference."""
  for shots in dict.fromkeys(entry.shots for entry in found):
    own = [entry for entry in found if entry.shots == shots]
    targets = list(dict.fromkeys(entry.target for entry in own))
    first, rows = own[0].method, []
    for backbone, method in dict.fromkeys((entry.backbone, entry.method) for entry in own):
      row = [entry for entry in own if (entry.backbone, entry.method) == (backbone, method)]
      rows.append((backbone, method, "measured", *map(_measured, row)))
      if any(entry.published for entry in row):
        rows.append((backbone, method, "paper", *map(_paper, row)))
      if row[0].difference is not None:
        points = (entry.difference.points(sign="+") for entry in row)
        rows.append((backbone, method, f"minus {first}", *points))
    yield shots, ("backbone", "method", "", *targets), rows


def _measured(entry: Entry) -> str:
  missing = f" ({entry.episodes}/{entry.wanted})" if 0 < entry.episodes < entry.wanted else ""
  return entry.accuracy.points() + missing


def _paper(entry: Entry) -> str:
  if entry.published is None:
    return "–"
  verdict = {True: " agrees", False: " differs", None: ""}[entry.agrees]
  return f"{entry.published.value:.2f}{verdict}"


def format_csv(found: Sequence[Entry]) -> str:
  """One line a place, for a spreadsheet: fractions, not percent; empty where there is none."""
  header = (
    "shots", "backbone", "method", "target", "episodes", "wanted", "failed", "accuracy_mean",
    "accuracy_ci95", "zero_shot_mean", "zero_shot_ci95", "difference_mean", "difference_ci95",
    "common_episodes", "paper", "tolerance", "agrees",
  )  # fmt: skip
  share = lambda points: None if points is None else round(points / 100, 6)
  rows = []
  for entry in found:
    row = entry.published
    rows.append((
      *entry[:7], *entry.accuracy[:2], *entry.zero_shot[:2], *(entry.difference or [None] * 3),
      row and share(row.value), row and share(row.tolerance),
      None if entry.agrees is None else ("no", "yes")[entry.agrees],
    ))  # fmt: skip
  return tables.csv(header, rows).rstrip("\n")


FORMATS = {"markdown": format_markdown, "csv": format_csv, "latex": format_latex}


def write(place: Place, found: Sequence[Entry]) -> str:
  """Writes all formats into the sweep's `tables/`, whose name it returns.

  Raises:
    ValueError, OSError: something else has that name, or it cannot be written.
  """
  for name, form in FORMATS.items():
    place.write(f"table.{SUFFIXES[name]}", form(found) + "\n")
  return f"{place.name}/tables"
