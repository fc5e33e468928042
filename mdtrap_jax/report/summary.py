"""What a run's lines come to: the results part of `summary.json`, and its table."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from mdtrap_jax.report import tables
from mdtrap_jax.statistics import Accuracy, accuracy_of, mean_and_ci


def summarize(lines: Iterable[dict[str, Any]]) -> dict[str, Any]:
  """The results part of `summary.json` from lines of `episodes.jsonl`.

  Episodes that failed are counted and take no part in the means. What cannot be told, such as
  the interval of one episode, is `None`.
  """
  lines = list(lines)
  fine = [line for line in lines if line["status"] == "ok"]
  gains = [
    line["accuracy"] - line["zero_shot_accuracy"]
    for line in fine
    if line.get("zero_shot_accuracy") is not None
  ]
  summary: dict[str, Any] = {"episodes": len(lines), "failed": len(lines) - len(fine)}
  for name, value in (
    ("accuracy", accuracy_of(fine)),
    ("zero_shot", accuracy_of(fine, "zero_shot_accuracy")),
    ("gain", mean_and_ci(gains)),
  ):
    summary[f"{name}_mean"] = None if math.isnan(value.mean) else value.mean
    summary[f"{name}_ci95"] = None if math.isnan(value.ci95) else value.ci95
  marks: dict[str, list[float]] = {}
  for line in fine:
    for mark, accuracy in line.get("accuracy_at", {}).items():
      if accuracy is not None:
        marks.setdefault(mark, []).append(accuracy)
  summary["accuracy_at"] = {mark: float(np.mean(values)) for mark, values in marks.items()}
  return summary


def accuracy_in(summary: dict[str, Any], name: str) -> Accuracy:
  """A mean and interval of a summary: `accuracy`, `zero_shot`, `gain`; NaN for `None`."""
  number = lambda value: math.nan if value is None else value
  mean, ci95 = number(summary[f"{name}_mean"]), number(summary[f"{name}_ci95"])
  return Accuracy(mean, ci95, summary.get("episodes", 0) - summary.get("failed", 0))


def format_summary(summary: dict[str, Any]) -> str:
  """A summary as the small table that a run ends with."""
  rows = [
    ("failed", summary["failed"]),
    ("zero-shot accuracy (%)", accuracy_in(summary, "zero_shot").points()),
    ("adapted accuracy (%)", accuracy_in(summary, "accuracy").points()),
    ("paired gain (points)", accuracy_in(summary, "gain").points(sign="+")),
  ]
  rows += [
    (f"  after {mark} steps (%)", f"{100 * value:.2f}")
    for mark, value in summary["accuracy_at"].items()
  ]
  if summary.get("episodes_per_second"):
    rows.append(("episodes per second", f"{summary['episodes_per_second']:.2f}"))
  return tables.text(("episodes", summary["episodes"]), rows)
