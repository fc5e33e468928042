"""Runs side by side: means with intervals, and paired differences on common episodes.

A directory of runs stands for all the runs below it. The first run is what the others are
compared with, domain by domain where a run has several.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mdtrap_jax import files
from mdtrap_jax.methods.heads import METHODS
from mdtrap_jax.report import all_way, tables
from mdtrap_jax.run import claim, store
from mdtrap_jax.run.identity import data_of
from mdtrap_jax.run.lines import read_episodes, read_object
from mdtrap_jax.statistics import Accuracy, accuracy_of, are_draws, mean_and_ci, paired

NONE = mean_and_ci(())

TRANSDUCTIVE = frozenset(name for name, found in METHODS.items() if found.transductive)


class Row(NamedTuple):
  """One run of a comparison, or one domain of it."""

  name: str
  domain: str | None  # or what was tested, of a run that is on several; None for one
  episodes: int
  failed: int
  zero_shot: Accuracy
  accuracy: Accuracy
  difference: Accuracy | None  # to the first run, on the episodes that both finished
  ncc: Accuracy = NONE  # nearest class mean of the frozen images, where a run was diagnosed


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
  """The run directories among `paths` and below them, in order, each once.

  Raises:
    FileNotFoundError: a path that holds no run.
  """
  runs: dict[Path, Path] = {}
  for path in map(store.readable, paths):
    below = list(_runs_below(path))
    if not below:
      raise FileNotFoundError(
        f"{path} holds no episodes.jsonl, nor does any directory below "
        "it: give the --workdir of a run."
      )
    for run in below:
      runs.setdefault(run.resolve(), run)
  return list(runs.values())


def compare(paths: Sequence[str | Path]) -> list[Row]:
  """One row a run, or a domain or examination of a run; differences are paired, on equal episodes.

  Episodes are equal if images, seed, number, classes, support and query are. A run that shares
  none with the first one, or of whose images nothing is known, has a difference of 0 episodes.

  Raises:
    ValueError, OSError: a file of a run cannot be read, or is damaged.
  """
  first, rows = None, []
  for name, path in zip(_short_names(paths), paths, strict=True):
    config, lines = _config(Path(path)), read_episodes(path)
    if config.get("experiment") == "heads" and config.get("method") in TRANSDUCTIVE:
      name += " (transductive)"
    exams = {exam: all_way.of_examination(lines, exam) for exam in all_way.examined(lines)}
    for exam, own in exams.items():
      rows.append(_row(name, exam, config, own, first and first.get(exam, {})))
    domains = () if exams else dict.fromkeys(line.get("domain") for line in lines) or (None,)
    for domain in domains:
      own = [line for line in lines if line.get("domain") == domain]
      rows.append(_row(name, domain, config, own, first and first.get(None, {})))
    if first is None:
      every = exams or {None: lines}
      first = {exam: by_identity(config, own) for exam, own in every.items()}
  return rows


def _config(path: Path) -> dict[str, Any]:
  file = path / "config.json"
  return read_object(file) if file.exists() else {}


def _row(name, domain, config, lines, first) -> Row:
  return Row(
    name=name,
    domain=domain,
    episodes=len(lines),
    failed=sum(line["status"] != "ok" for line in lines),
    zero_shot=accuracy_of(lines, "zero_shot_accuracy"),
    accuracy=accuracy_of(lines),
    difference=None
    if first is None
    else paired(first, by_identity(config, lines), are_draws(lines)),
    ncc=accuracy_of(lines, "ncc_accuracy_before"),
  )


def by_identity(
  config: Mapping[str, Any], lines: Iterable[Mapping[str, Any]]
) -> dict[Hashable, float]:
  """Accuracies of the episodes that did not fail, by what makes two episodes the same.

  Episodes of images that are not known by their content are nobody's equal.
  """
  data: dict[str | None, str] = {}
  accuracies = {}
  for line in lines:
    domain = line.get("domain")
    if domain not in data:
      found = data_of(config.get("source"), domain)
      data[domain] = "" if found is None else repr(found)
    if line["status"] != "ok" or not data[domain]:
      continue
    key = (
      data[domain],
      line.get("seed", config.get("seed")),
      line.get("task", line["episode"]),
      repr([line.get(field) for field in ("class_names", "support", "query")]),
    )
    accuracies[key] = line["accuracy"]
  return accuracies


def _runs_below(path: Path) -> Iterator[Path]:
  """Directories with episodes; those of a run's own business are passed over."""
  for folder, subfolders, names in os.walk(path):
    if "episodes.jsonl" in names or claim.is_ours(Path(folder)):
      subfolders[:] = [name for name in subfolders if not files.is_reserved(name)]
    subfolders.sort()
    if "episodes.jsonl" in names:
      yield Path(folder)


def _short_names(paths: Sequence[str | Path]) -> list[str]:
  """The parts of each path in which it differs from the others."""
  parts = [Path(path).resolve().parts for path in paths]
  shared = 0
  while len({p[: shared + 1] for p in parts}) == 1 and shared < min(map(len, parts)) - 1:
    shared += 1
  return [str(Path(*p[shared:])) for p in parts]


def _cells(row: Row, diagnosed: bool) -> tuple[Any, ...]:
  difference = row.difference
  return (
    row.name,
    *((row.domain,) if row.domain is not None else ()),
    row.episodes,
    row.failed,
    row.zero_shot.points(),
    *((row.ncc.points(),) if diagnosed else ()),
    row.accuracy.points(),
    *(("–", "–") if difference is None else (difference.points(sign="+"), difference.episodes)),
  )


def _format(write: Callable[..., str], rows: Sequence[Row]) -> str:
  header = ["run", "episodes", "failed", "zero-shot (%)", "adapted (%)", "difference (points)"]
  if any(row.domain is not None for row in rows):
    header.insert(1, "tested on")
    rows = [row._replace(domain=row.domain or "–") for row in rows]
  if diagnosed := any(row.ncc.episodes for row in rows):
    header.insert(header.index("adapted (%)"), "NCC (%)")
  return write([*header, "common"], [_cells(row, diagnosed) for row in rows])


def format_text(rows: Sequence[Row]) -> str:
  """The table for a terminal."""
  return _format(tables.text, rows)


def format_markdown(rows: Sequence[Row]) -> str:
  """The table for a README."""
  return _format(tables.markdown, rows)


def format_csv(rows: Sequence[Row]) -> str:
  """The numbers for a spreadsheet: fractions, not percent; empty where there is none."""
  header = (
    "run", "episodes", "failed", "zero_shot_mean", "zero_shot_ci95", "accuracy_mean",
    "accuracy_ci95", "difference_mean", "difference_ci95", "common_episodes", "domain",
    "ncc_mean", "ncc_ci95",
  )  # fmt: skip
  numbers = lambda row: (*row.zero_shot[:2], *row.accuracy[:2], *(row.difference or [None] * 3))
  cells = [
    (row.name, row.episodes, row.failed, *numbers(row), row.domain, *row.ncc[:2]) for row in rows
  ]
  return tables.csv(header, cells).rstrip("\n")


FORMATS = {"text": format_text, "markdown": format_markdown, "csv": format_csv}
