"""What was measured of a run's tasks, as means over them with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mdtrap_jax.analysis import measures
from mdtrap_jax.analysis.readapt import Readapted
from mdtrap_jax.statistics import mean_and_ci


class Band(NamedTuple):
  """A curve's mean over tasks with its 95 % interval."""

  mean: np.ndarray  # [x], NaN where no task has a number
  ci95: np.ndarray  # [x], half width; NaN for fewer than two


class Analysis(NamedTuple):
  """A run's numbers."""

  tasks: int
  agreeing: int  # tasks whose accuracy is the one that the run wrote
  measures: dict[str, dict[str, dict[str, float | None]]]  # {measure: {before, after, change}}
  shift: dict[str, dict[str, Band]]  # {before, after: {loss, accuracy}} over `text_gap.SHIFTS`
  terms: list[str]  # K
  norm: Band | None  # [T, K]
  cosine: Band | None  # [T, K, K]


def summarize(found: Sequence[Readapted], terms: Sequence[str]) -> Analysis:
  """Means over tasks.

  Args:
    found: the tasks, at least one.
    terms: of the objective, in the order of `Gradients`.
  """
  stages = {"before": [task.before for task in found], "after": [task.after for task in found]}
  numbers = {name: [measures.measure(task) for task in stage] for name, stage in stages.items()}
  curves = {name: [measures.shift_curve(task) for task in stage] for name, stage in stages.items()}
  traced = [task.gradients for task in found if task.gradients is not None]
  return Analysis(
    tasks=len(found),
    agreeing=sum(
      math.isclose(number["accuracy"], task.line["accuracy"], abs_tol=2e-6)
      for number, task in zip(numbers["after"], found, strict=True)
    ),
    measures={
      name: {
        "before": _number([n[name] for n in numbers["before"]]),
        "after": _number([n[name] for n in numbers["after"]]),
        "change": _number(
          [b[name] - a[name] for a, b in zip(numbers["before"], numbers["after"], strict=True)]
        ),
      }
      for name in numbers["before"][0]
    },
    shift={
      name: {part: band([getattr(curve, part) for curve in own]) for part in ("loss", "accuracy")}
      for name, own in curves.items()
    },
    terms=list(terms),
    norm=band([g.norm for g in traced]) if traced else None,
    cosine=band([g.cosine for g in traced]) if traced else None,
  )


def band(rows: Sequence[Any]) -> Band:
  """Mean and interval over the first axis, of the numbers that are finite."""
  rows = np.stack([np.asarray(row, np.float64) for row in rows])
  known = np.isfinite(rows)
  count = known.sum(0)
  mean = np.where(known, rows, 0).sum(0) / np.where(count, count, np.nan)
  square = np.where(known, (rows - mean) ** 2, 0).sum(0) / np.where(count, count, np.nan)
  return Band(mean, np.where(count > 1, 1.96 * np.sqrt(square / np.maximum(count, 1)), np.nan))


def _number(values: Sequence[float]) -> dict[str, float | None]:
  found = mean_and_ci(values)
  return {"mean": found.mean, "ci95": None if math.isnan(found.ci95) else found.ci95}
