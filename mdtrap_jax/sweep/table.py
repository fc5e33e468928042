"""What a sweep came to: the papers' tables with intervals, the papers' numbers beside them."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mdtrap_jax import config as settings
from mdtrap_jax.report import agreement, all_way, comparison, published, tables
from mdtrap_jax.report.published import AVERAGE, Published
from mdtrap_jax.run.lines import read_episodes, read_object
from mdtrap_jax.statistics import Accuracy, accuracy_of, paired
from mdtrap_jax.sweep.cells import Cell
from mdtrap_jax.sweep.place import Place
from mdtrap_jax.sweep.state import wanted_episodes

SUFFIXES = {"markdown": "md", "csv": "csv", "latex": "tex"}
_NONE = Accuracy(math.nan, math.nan, 0)


class Row(NamedTuple):
  """The runs that a row of a table is made of."""

  method: str
  variant: str  # of its config's; "" without
  name: str  # METHOD or METHOD/VARIANT
  exam: str  # what a run on all classes is tested on; "" of episodes

  def label(self, transductive: bool = False) -> str:
    """Its name in the table."""
    about = "transductive" if transductive else self.exam
    return self.name if about in ("", "test") else f"{self.name} ({about})"


class Entry(NamedTuple):
  """A place in a table: a setting's runs of all seeds together."""

  shots: int
  backbone: str
  method: str  # the row's label
  target: str
  episodes: int  # finished, over all seeds
  wanted: int
  failed: int  # of those finished
  accuracy: Accuracy
  zero_shot: Accuracy
  differences: Mapping[str, Accuracy]  # to each reference but itself, on common episodes
  published: Published | None
  reproduces: bool  # whether the runs' configs are the published one's, and all is finished

  @property
  def agrees(self) -> bool | None:
    """With the paper; `None` for what does not reproduce it, or where we know no number."""
    return published.agrees(self.published, 100 * self.accuracy.mean) if self.reproduces else None


def entries(root: Path, cells: Sequence[Cell], references: Sequence[str] = ()) -> list[Entry]:
  """All places of the tables, each target's and then the average over them, row by row.

  Runs that are tested on several things have a row for each; base and new classes are followed by
  the harmonic mean of the two, under the average that of the averages.

  Args:
    root: from which to read the runs, of `place.runs()`.
    cells: of the sweep.
    references: names of the rows that the others are compared with; the first row if none.

  Raises:
    OSError, ValueError: a file of a run is damaged.
  """
  rows, found = _rows(cells), []
  references = references or [row.name for row in rows[:1]]
  references = [row for row in rows if row.name in references]
  targets = list(dict.fromkeys(cell.target for cell in cells))
  for setting in dict.fromkeys((cell.shots, cell.backbone) for cell in cells):
    own = [cell for cell in cells if (cell.shots, cell.backbone) == setting]
    columns = [
      _column(root, [cell for cell in own if cell.target == target], rows, references)
      for target in targets
    ]
    base = []
    for row, line in zip(rows, zip(*columns, strict=True), strict=True):
      line = [*line, _average(row, line)] if len(line) > 1 else list(line)
      found += line
      if row.exam == "new":
        found += map(functools.partial(_harmonic_mean, row), base, line)
      base = line
  return found


def _rows(cells: Sequence[Cell]) -> list[Row]:
  """One for each method, or for each variant of its config, or for each examination."""
  rows = []
  for method in dict.fromkeys(cell.method for cell in cells):
    configs = (_resolved(cell) for cell in cells if cell.method == method)
    config = next(filter(None, configs), None)
    variants = settings.variants(config) if config else ("",)
    exams = (config and all_way.examinations(config)) or ("",)
    for variant, exam in itertools.product(variants, exams):
      rows.append(Row(method, variant, f"{method}/{variant}" if variant else method, exam))
  return rows


def _column(
  root: Path, cells: Sequence[Cell], rows: Sequence[Row], references: Sequence[Row]
) -> list[Entry]:
  """The entries of one target, of all rows."""
  of = lambda row: [cell for cell in cells if cell.method == row.method]
  theirs = {row: _read(root, of(row), row)[1] for row in references}
  return [
    _entry(root, of(row), row, {r.name: a for r, a in theirs.items() if r.exam == row.exam})
    for row in rows
  ]


def _entry(
  root: Path, cells: Sequence[Cell], row: Row, references: Mapping[str, Mapping[Hashable, float]]
) -> Entry:
  lines, accuracies = _read(root, cells, row)
  cell, configs = cells[0], [config for config in map(_resolved, cells) if config]
  known = _published(row, cell.backbone, cell.target, cell.shots)
  paths = [root / cell.name / row.variant for cell in cells]
  found = known and [v for v in agreement.verdicts(paths) if v.published == known and v.complete]
  transductive = any(config.get("method") in comparison.TRANSDUCTIVE for config in configs)
  return Entry(
    shots=cell.shots,
    backbone=cell.backbone,
    method=row.label(transductive),
    target=cell.target,
    episodes=len(lines),
    wanted=sum(map(wanted_episodes, configs)),
    failed=sum(line["status"] != "ok" for line in lines),
    accuracy=accuracy_of(lines),
    zero_shot=accuracy_of(lines, "zero_shot_accuracy"),
    differences={
      name: paired(theirs, accuracies, few=bool(row.exam))
      for name, theirs in references.items()
      if name != row.name
    },
    published=known,
    reproduces=bool(found) and len(found) == len(cells),
  )


def _read(root: Path, cells: Sequence[Cell], row: Row):
  """Lines of a row's runs, and the accuracies by what makes two episodes the same."""
  lines, accuracies = [], {}
  for cell in cells:
    folder = root / cell.name / row.variant
    if (folder / "episodes.jsonl").is_file():
      own = read_episodes(folder)
      if row.exam:
        own = all_way.of_examination(own, row.exam)
      lines += own
      accuracies |= comparison.by_identity(read_object(folder / "config.json"), own)
  return lines, accuracies


def _resolved(cell: Cell):
  """A cell's config; `None` where it cannot be right, so that there are no runs of it."""
  try:
    return cell.resolve()
  except (OSError, ValueError):
    return None


def _published(row: Row, backbone: str, target: str, shots: int) -> Published | None:
  """What papers say of a place; all that we know of them is of episodes."""
  return None if row.exam else published.accuracy(backbone, target, row.name, shots)


def _average(row: Row, entries: Sequence[Entry]) -> Entry:
  """Over the targets, each of which counts alike; their episodes are independent."""

  def mean(values: Sequence[Accuracy | None]) -> Accuracy:
    means, intervals, counts = zip(*(value or _NONE for value in values), strict=True)
    spread = math.sqrt(sum(interval**2 for interval in intervals)) / len(values)
    return Accuracy(sum(means) / len(values), spread, sum(counts))

  entry = entries[0]
  complete = {entry.target for entry in entries} == set(published.TARGETS)
  return entry._replace(
    target=AVERAGE,
    episodes=sum(entry.episodes for entry in entries),
    wanted=sum(entry.wanted for entry in entries),
    failed=sum(entry.failed for entry in entries),
    accuracy=mean([entry.accuracy for entry in entries]),
    zero_shot=mean([entry.zero_shot for entry in entries]),
    differences={
      name: mean([entry.differences[name] for entry in entries]) for name in entry.differences
    },
    published=_published(row, entry.backbone, AVERAGE, entry.shots) if complete else None,
    reproduces=complete and all(entry.reproduces for entry in entries),
  )


def _harmonic_mean(row: Row, base: Entry, new: Entry) -> Entry:
  """Of the means, as papers have it; what it may vary by is not known."""
  of = lambda a, b: Accuracy(
    all_way.harmonic_mean(a.mean, b.mean), math.nan, min(a.episodes, b.episodes)
  )
  return new._replace(
    method=row._replace(exam="harmonic mean").label(),
    accuracy=of(base.accuracy, new.accuracy),
    zero_shot=of(base.zero_shot, new.zero_shot),
    differences={},
  )


def format_markdown(found: Sequence[Entry]) -> str:
  """Tables for each number of shots, in Markdown."""
  parts = (f"{title}\n\n{tables.markdown(header, rows)}" for title, header, rows in _tables(found))
  return "\n\n".join(parts)


def format_latex(found: Sequence[Entry]) -> str:
  """The same for a paper, with the package booktabs."""
  parts = (f"% {title}\n{tables.latex(header, rows)}" for title, header, rows in _tables(found))
  return "\n\n".join(parts)


def _tables(found: Sequence[Entry]) -> Iterator[tuple[str, Sequence[str], Sequence[Sequence[str]]]]:
  """Title, header and rows: what was measured beside the paper's, then the paired differences."""
  for shots in dict.fromkeys(entry.shots for entry in found):
    own = [entry for entry in found if entry.shots == shots]
    targets = list(dict.fromkeys(entry.target for entry in own))
    names = ("backbone", "method") if len({entry.backbone for entry in own}) > 1 else ("method",)
    settings_of = lambda entry, names=names: tuple(getattr(entry, name) for name in names)
    rows = [
      [entry for entry in own if settings_of(entry) == setting]
      for setting in dict.fromkeys(map(settings_of, own))
    ]
    printed = any(entry.published for entry in own)
    lines = []
    for row in rows:
      whose = ("measured",) if printed else ()
      lines.append((*settings_of(row[0]), *whose, *map(_measured, row)))
      if any(entry.published for entry in row):
        lines.append((*settings_of(row[0]), "paper", *map(_paper, row)))
    header = (*names, *(("",) if printed else ()), *targets)
    yield f"{shots}-shot accuracy in %", header, lines
    for name in _references(own):
      lines = [
        (*settings_of(row[0]), *(entry.differences[name].points(sign="+") for entry in row))
        for row in rows
        if any(entry.differences[name].episodes for entry in row if name in entry.differences)
      ]
      title = f"{shots}-shot accuracy minus that of {name} on the same episodes, in points"
      yield title, (*names, *targets), lines


def _references(found: Sequence[Entry]) -> list[str]:
  """Names of the rows that others are compared with; a row is not compared with itself."""
  longest_first = sorted(found, key=lambda entry: -len(entry.differences))
  return list(dict.fromkeys(name for entry in longest_first for name in entry.differences))


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
  names = _references(found)
  header = (
    "shots", "backbone", "method", "target", "episodes", "wanted", "failed", "accuracy_mean",
    "accuracy_ci95", "zero_shot_mean", "zero_shot_ci95",
    *(f"minus_{name}_{what}" for name in names for what in ("mean", "ci95", "episodes")),
    "paper", "tolerance", "agrees",
  )  # fmt: skip
  share = lambda points: None if points is None else round(points / 100, 6)
  rows = []
  for entry in found:
    row = entry.published
    differences = (entry.differences.get(name, [None] * 3) for name in names)
    rows.append((
      *entry[:7], *entry.accuracy[:2], *entry.zero_shot[:2], *itertools.chain(*differences),
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
