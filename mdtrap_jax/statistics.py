"""Means over episodes with their intervals, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Accuracy(NamedTuple):
  """A mean over episodes with its confidence interval."""

  mean: float  # in [0, 1]; NaN without episodes
  ci95: float  # half width: 1.96 · std / √E, as the papers report it; NaN for fewer than two
  episodes: int  # E

  def points(self, digits: int = 2, sign: str = "") -> str:
    """`12.34 ± 0.56`, in percent; `–` stands for what so few episodes cannot tell.

    Args:
      digits: after the point.
      sign: "+" for a difference.
    """
    if math.isnan(self.mean):
      return "–"
    interval = "–" if math.isnan(self.ci95) else f"{100 * self.ci95:.{digits}f}"
    return f"{100 * self.mean:{sign}.{digits}f} ± {interval}"

  def __str__(self) -> str:
    return f"{self.points()} %"


def mean_and_ci(values: Sequence[float]) -> Accuracy:
  """Mean and 95 % interval of per-episode values (or of paired differences)."""
  values = np.asarray(values, np.float64)
  if not len(values):
    return Accuracy(math.nan, math.nan, 0)
  # One value has no spread: its interval is unknown and not zero.
  ci95 = 1.96 * values.std() / math.sqrt(len(values)) if len(values) > 1 else math.nan
  return Accuracy(float(values.mean()), float(ci95), len(values))


def accuracy_of(lines: Iterable[dict[str, Any]], field: str = "accuracy") -> Accuracy:
  """Mean of a field of `episodes.jsonl` over the episodes that did not fail and have it."""
  fine = (line.get(field) for line in lines if line["status"] == "ok")
  return mean_and_ci([value for value in fine if value is not None])


def paired(first: Mapping[Hashable, float], second: Mapping[Hashable, float]) -> Accuracy:
  """Mean of `second - first` over the episodes that both have."""
  return mean_and_ci([second[key] - first[key] for key in first if key in second])
