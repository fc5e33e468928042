"""The table of a run of heads: one row per domain, seeds together, and comparisons of runs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from mdtrap_jax.run import results


def summarize(lines: Iterable[dict[str, Any]], method: str) -> dict[str, Any]:
  """The results part of `summary.json`.

  Args:
    lines: of `episodes.jsonl`.
    method: that made them.

  Returns:
    What `results.summarize` says of all tasks, and `domains`, a list of rows: accuracy over the
    tasks of all seeds, the same by seed, NCC's accuracy on the same tasks, the paired gain over
    it, and the gaps before and after.
  """
  lines = list(lines)
  domains = list(dict.fromkeys(line["domain"] for line in lines))
  rows = [_row([line for line in lines if line["domain"] == d], d) for d in domains]
  return {"method": method, **results.summarize(lines), "domains": rows}


def _row(lines: list[dict[str, Any]], domain: str) -> dict[str, Any]:
  fine = [line for line in lines if line["status"] == "ok"]
  whole = results.summarize(lines)
  row = {"domain": domain, "tasks": whole.pop("episodes"), "failed": whole.pop("failed")}
  row |= {
    key.replace("zero_shot", "ncc"): value for key, value in whole.items() if key != "accuracy_at"
  }
  seeds = dict.fromkeys(line["seed"] for line in lines)
  row["accuracy_by_seed"] = {
    str(seed): _mean(line["accuracy"] for line in fine if line["seed"] == seed) for seed in seeds
  }
  for name in ("gap_before", "gap_after"):
    row[name] = _mean(line[name] for line in fine)
  return row


def compare(
  first: Iterable[dict[str, Any]], second: Iterable[dict[str, Any]]
) -> dict[str, results.Accuracy]:
  """Paired differences of two runs' accuracies, `second - first`, by domain.

  Args:
    first: lines of `episodes.jsonl`.
    second: likewise; tasks that one run lacks, or that failed in one, are left out.

  Raises:
    ValueError: a task of the same identity has other images in the other run.
  """
  identity = lambda line: (line["domain"], line["seed"], line["task"])
  there = {identity(line): line for line in first if line["status"] == "ok"}
  differences: dict[str, list[float]] = {}
  for line in second:
    other = there.get(identity(line))
    if line["status"] != "ok" or other is None:
      continue
    if (line["support"], line["query"]) != (other["support"], other["query"]):
      raise ValueError(
        f"{line['domain']}, seed {line['seed']}, task {line['task']}: the two "
        "runs drew different images, so they cannot be paired."
      )
    differences.setdefault(line["domain"], []).append(line["accuracy"] - other["accuracy"])
  return {domain: results.mean_and_ci(values) for domain, values in differences.items()}


def format_table(summary: dict[str, Any]) -> str:
  """A summary as the table that a run ends with, in Markdown."""
  percent = lambda row, name: (
    "–"
    if row[f"{name}_mean"] is None
    else f"{100 * row[f'{name}_mean']:.2f} ± {100 * row[f'{name}_ci95']:.2f}"
  )
  number = lambda value: "–" if value is None else f"{value:.3f}"
  header = [
    "domain",
    "tasks",
    "failed",
    "NCC (%)",
    f"{summary['method']} (%)",
    "paired gain",
    "gap before",
    "gap after",
  ]
  rows = [
    [
      row["domain"],
      str(row["tasks"]),
      str(row["failed"]),
      percent(row, "ncc"),
      percent(row, "accuracy"),
      percent(row, "gain"),
      number(row["gap_before"]),
      number(row["gap_after"]),
    ]
    for row in summary["domains"]
  ]
  widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
  line = lambda cells: (
    "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"
  )
  text = [line(header), line(["-" * width for width in widths]), *map(line, rows)]
  if summary.get("episodes_per_second"):
    text.append(f"{summary['episodes_per_second']:.2f} tasks per second")
  return "\n".join(text)


def _mean(values: Iterable[float]) -> float | None:
  values = list(values)
  return float(np.mean(values)) if values and not math.isnan(np.mean(values)) else None
