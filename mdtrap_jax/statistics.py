"""Means over episodes with their intervals, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special


class Accuracy(NamedTuple):
  """A mean over episodes with its confidence interval."""

  mean: float  # in [0, 1]; NaN without episodes
  ci95: float  # half width, of `mean_and_ci`; NaN for fewer than two
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


def mean_and_ci(values: Sequence[float], few: bool = False) -> Accuracy:
  """Mean and 95 % interval of per-episode values (or of paired differences).

  Args:
    values: of `E` episodes.
    few: whether the interval is Student's, for a handful of draws. Otherwise it is 1.96 · std / √E,
      as the papers report it of hundreds; of three draws that would hold in three of four cases.
  """
  values = np.asarray(values, np.float64)
  count = len(values)
  if not count:
    return Accuracy(math.nan, math.nan, 0)
  if count == 1:  # has no spread: its interval is unknown and not zero
    return Accuracy(float(values[0]), math.nan, 1)
  quantile = special.stdtrit(count - 1, 0.975) if few else 1.96
  ci95 = quantile * values.std(ddof=int(few)) / math.sqrt(count)
  return Accuracy(float(values.mean()), float(ci95), count)


def accuracy_of(lines: Iterable[dict[str, Any]], field: str = "accuracy") -> Accuracy:
  """Mean of a field of `episodes.jsonl` over the episodes that did not fail and have it."""
  fine = [line for line in lines if line["status"] == "ok" and line.get(field) is not None]
  return mean_and_ci([line[field] for line in fine], are_draws(fine))


def are_draws(lines: Iterable[Mapping[str, Any]]) -> bool:
  """Whether lines are of runs on all classes, which test a handful of draws."""
  return any("tests" in line for line in lines)


def paired(
  first: Mapping[Hashable, float], second: Mapping[Hashable, float], few: bool = False
) -> Accuracy:
  """Mean of `second - first` over the episodes that both have; `few` as in `mean_and_ci`."""
  return mean_and_ci([second[key] - first[key] for key in first if key in second], few)
