"""Runs side by side: means with intervals, and paired differences on common episodes.

`python -m mdtrap_jax.run.results DIR…` prints the table. A directory of runs stands for all the
runs below it. The first run is what the others are compared with.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from mdtrap_jax.run import results
from mdtrap_jax.run.results import Accuracy

HEADER = (
  "run",
  "episodes",
  "failed",
  "zero-shot (%)",
  "adapted (%)",
  "difference (points)",
  "common",
)


class Row(NamedTuple):
  """One run of a comparison."""

  name: str
  episodes: int
  failed: int
  zero_shot: Accuracy
  accuracy: Accuracy
  difference: Accuracy | None  # to the first run, on the episodes that both finished


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
  """The run directories among `paths` and below them, in order.

  Raises:
    FileNotFoundError: a path that holds no run.
  """
  runs = []
  for path in map(Path, paths):
    below = sorted(file.parent for file in path.rglob("episodes.jsonl"))
    if not below:
      raise FileNotFoundError(
        f"{path} holds no episodes.jsonl, nor does any directory below "
        "it: give the --workdir of a run."
      )
    runs += below
  return runs


def compare(paths: Sequence[str | Path]) -> list[Row]:
  """One row a run; differences are paired, on episodes with equal data in both runs.

  A run that shares no episode with the first one (other data, seed, ways or shots) has
  `common` 0 and no difference.
  """
  runs = [_finished(path) for path in paths]
  rows = []
  for path, run in zip(paths, runs, strict=True):
    difference = None
    if run is not runs[0]:
      common = [e for e in run.keys() & runs[0].keys() if _same_data(run[e], runs[0][e])]
      difference = results.mean_and_ci(
        [run[e]["accuracy"] - runs[0][e]["accuracy"] for e in common]
      )
    lines = results.read_episodes(path)
    rows.append(
      Row(
        name=_short_name(path, paths),
        episodes=len(lines),
        failed=len(lines) - len(run),
        zero_shot=results.mean_and_ci([line["zero_shot_accuracy"] for line in run.values()]),
        accuracy=results.accuracy_of(run.values()),
        difference=difference,
      )
    )
  return rows


def _finished(path: str | Path) -> dict[int, dict]:
  return {line["episode"]: line for line in results.read_episodes(path) if line["status"] == "ok"}


def _same_data(one: dict, other: dict) -> bool:
  return all(one.get(field) == other.get(field) for field in ("class_names", "support", "query"))


def _short_name(path: str | Path, paths: Sequence[str | Path]) -> str:
  """The parts of a path in which it differs from the others."""
  parts = [Path(p).resolve().parts for p in paths]
  shared = 0
  while len(set(p[: shared + 1] for p in parts)) == 1 and shared < min(map(len, parts)) - 1:
    shared += 1
  return str(Path(*Path(path).resolve().parts[shared:]))


def _cells(row: Row) -> tuple[str, ...]:
  percent = lambda a: f"{100 * a.mean:.2f} ± {100 * a.ci95:.2f}" if a.episodes else "–"
  difference = common = "–"
  if row.difference is not None:
    common = str(row.difference.episodes)
    if row.difference.episodes:
      difference = f"{100 * row.difference.mean:+.2f} ± {100 * row.difference.ci95:.2f}"
  return (
    row.name,
    str(row.episodes),
    str(row.failed),
    percent(row.zero_shot),
    percent(row.accuracy),
    difference,
    common,
  )


def format_text(rows: Sequence[Row]) -> str:
  """The table for a terminal."""
  table = [HEADER, *map(_cells, rows)]
  widths = [max(map(len, column)) for column in zip(*table, strict=True)]
  return "\n".join(
    "  ".join(
      cell.ljust(w) if i == 0 else cell.rjust(w)
      for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
    )
    for cells in table
  )


def format_markdown(rows: Sequence[Row]) -> str:
  """The table for a README."""
  lines = [HEADER, ("---", *["---:"] * (len(HEADER) - 1)), *map(_cells, rows)]
  return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def format_csv(rows: Sequence[Row]) -> str:
  """The numbers for a spreadsheet: fractions, not percent; empty where there is none."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(
    [
      "run",
      "episodes",
      "failed",
      "zero_shot_mean",
      "zero_shot_ci95",
      "accuracy_mean",
      "accuracy_ci95",
      "difference_mean",
      "difference_ci95",
      "common_episodes",
    ]
  )
  pair = lambda a: [a.mean, a.ci95] if a is not None and a.episodes else ["", ""]
  for row in rows:
    writer.writerow(
      [
        row.name,
        row.episodes,
        row.failed,
        *pair(row.zero_shot),
        *pair(row.accuracy),
        *pair(row.difference),
        row.difference.episodes if row.difference else "",
      ]
    )
  return text.getvalue().rstrip("\n")


FORMATS = {"text": format_text, "markdown": format_markdown, "csv": format_csv}


def main(arguments: Sequence[str] | None = None) -> int:
  """The command line of `python -m mdtrap_jax.run.results`."""
  parser = argparse.ArgumentParser(
    prog="python -m mdtrap_jax.run.results", description=__doc__.splitlines()[0]
  )
  parser.add_argument("paths", nargs="+", metavar="DIR", help="work directories of runs")
  parser.add_argument("--format", choices=sorted(FORMATS), default="text")
  options = parser.parse_args(arguments)
  try:
    print(FORMATS[options.format](compare(find_runs(options.paths))))
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  return 0
