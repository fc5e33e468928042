"""What a run's lines come to: the results part of `summary.json`, and its table."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from mdtrap_jax import __version__
from mdtrap_jax.report import tables
from mdtrap_jax.run.devices import peak_memory
from mdtrap_jax.run.directory import WorkDirectory
from mdtrap_jax.run.lines import read_object
from mdtrap_jax.statistics import Accuracy, accuracy_of, are_draws, mean_and_ci

PACKAGES = ("jax", "jaxlib", "flax", "optax")


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
    ("gain", mean_and_ci(gains, are_draws(fine))),
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


def write(
  directory: WorkDirectory,
  rate: float | None,
  lines: Iterable[dict[str, Any]] | None = None,
  extras: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Writes `summary.json` and returns what it says.

  Args:
    directory: of the run.
    rate: tasks per second; `None`, where nothing was left to do, keeps the one measured before.
    lines: that count; all of the directory's when `None`.
    extras: what else to say.
  """
  if lines is None:
    lines = [line for _, line in sorted(directory.finished.items())]
  previous = directory.path / "summary.json"
  if rate is None and previous.exists():
    rate = read_object(previous).get("episodes_per_second")
  summary = {
    **summarize(lines),
    **(extras or {}),
    "episodes_per_second": rate,
    "peak_memory_bytes": peak_memory(),
    "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
    "platform": jax.default_backend(),
    "python": platform.python_version(),
    "versions": {"mdtrap_jax": __version__} | {name: version(name) for name in PACKAGES},
  }
  directory.write_json("summary.json", summary)
  return summary
