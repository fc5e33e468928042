"""The table of a run of heads: one row per domain, seeds together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from mdtrap_jax.report import tables
from mdtrap_jax.report.summary import accuracy_in
from mdtrap_jax.report.summary import summarize as summarize_lines


def summarize(
  lines: Iterable[dict[str, Any]], method: str, transductive: bool = False
) -> dict[str, Any]:
  """The results part of `summary.json`.

  Args:
    lines: of `episodes.jsonl`.
    method: that made them.
    transductive: whether it classifies the queries of a task together.

  Returns:
    What `summary.summarize` says of all tasks, and `domains`, a list of rows: accuracy over the
    tasks of all seeds, the same by seed, NCC's accuracy on the same tasks, the paired gain over
    it, and the gaps before and after.
  """
  lines = list(lines)
  domains = list(dict.fromkeys(line["domain"] for line in lines))
  rows = [_row([line for line in lines if line["domain"] == d], d) for d in domains]
  about = {"method": method, **({"transductive": True} if transductive else {})}
  return {**about, **summarize_lines(lines), "domains": rows}


def _row(lines: list[dict[str, Any]], domain: str) -> dict[str, Any]:
  fine = [line for line in lines if line["status"] == "ok"]
  whole = summarize_lines(lines)
  row = {"domain": domain, "tasks": whole.pop("episodes"), "failed": whole.pop("failed")}
  row |= {
    key.replace("zero_shot", "ncc"): value for key, value in whole.items() if key != "accuracy_at"
  }
  seeds = dict.fromkeys(line["seed"] for line in lines)
  row["accuracy_by_seed"] = {
    str(seed): _mean(line["accuracy"] for line in fine if line["seed"] == seed) for seed in seeds
  }
  for name in ("gap_before", "gap_after"):
    row[name] = _mean(line[name] for line in fine if line.get(name) is not None)
  return row


def format_table(summary: dict[str, Any]) -> str:
  """A summary as the table that a run ends with, in Markdown."""
  number = lambda value: "–" if value is None else f"{value:.3f}"
  title = summary["method"] + (" (transductive)" if summary.get("transductive") else "")
  gaps = any(row["gap_before"] is not None for row in summary["domains"])
  header = [
    "domain",
    "tasks",
    "failed",
    "NCC (%)",
    f"{title} (%)",
    "paired gain",
    *(("gap before", "gap after") if gaps else ()),  # of methods that have prototypes
  ]
  rows = [
    [
      row["domain"],
      row["tasks"],
      row["failed"],
      accuracy_in(row, "ncc").points(),
      accuracy_in(row, "accuracy").points(),
      accuracy_in(row, "gain").points(sign="+"),
      *((number(row["gap_before"]), number(row["gap_after"])) if gaps else ()),
    ]
    for row in summary["domains"]
  ]
  text = tables.markdown(header, rows)
  if summary.get("episodes_per_second"):
    text += f"\n{summary['episodes_per_second']:.2f} tasks per second"
  return text


def _mean(values: Iterable[float]) -> float | None:
  values = list(values)
  return float(np.mean(values)) if values and not math.isnan(np.mean(values)) else None
