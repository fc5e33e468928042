"""How good a classifier is on labeled images: accuracy with intervals, calibration, confusion.

Legend: `n` images, `C` classes.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

BINS = 15  # of confidence, for the calibration error
_GOLDEN = (math.sqrt(5) - 1) / 2


class Interval(NamedTuple):
  """A share with its 95 % interval by Wilson's score."""

  value: float
  low: float
  high: float


class ClassScore(NamedTuple):
  """One class; a share without cases is `None`."""

  name: str
  images: int  # that are of the class
  predicted: int  # that are said to be
  correct: int
  recall: Interval | None
  precision: Interval | None


class Scores(NamedTuple):
  """Of `n` images."""

  images: int
  accuracy: Interval
  balanced_accuracy: float  # mean recall of the classes that have images
  log_loss: float  # nats an image
  ece: float  # expected calibration error, in `BINS` bins of equal width
  classes: list[ClassScore]
  confusion: np.ndarray  # [C, C]: true class, predicted class


def wilson(successes: int, cases: int, z: float = 1.959964) -> Interval | None:
  """A share with its interval, which stays within [0, 1] and is honest at both ends.

  >>> wilson(0, 0) is None
  True
  """
  if not cases:
    return None
  share, spread = successes / cases, z * z / cases
  center = share + spread / 2
  half = z * math.sqrt(share * (1 - share) / cases + spread / (4 * cases))
  low, high = ((center + sign * half) / (1 + spread) for sign in (-1, 1))
  # The ends are exact at none and at all.
  return Interval(share, low if successes else 0.0, high if successes < cases else 1.0)


def score(names: Sequence[str], labels: np.ndarray, probabilities: np.ndarray) -> Scores:
  """All measures.

  Args:
    names: `[C]`.
    labels: `[n]`, places in `names`; `n` at least 1.
    probabilities: `[n, C]`.
  """
  predicted, ways = probabilities.argmax(1), len(names)
  confusion = np.zeros((ways, ways), int)
  np.add.at(confusion, (labels, predicted), 1)
  correct, images, said = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
  classes = [
    ClassScore(name, int(n), int(m), int(k), wilson(int(k), int(n)), wilson(int(k), int(m)))
    for name, n, m, k in zip(names, images, said, correct, strict=True)
  ]
  return Scores(
    images=len(labels),
    accuracy=wilson(int(correct.sum()), len(labels)),
    balanced_accuracy=float(np.mean([c.recall.value for c in classes if c.recall])),
    log_loss=log_loss(probabilities, labels),
    ece=calibration_error(probabilities, labels),
    classes=classes,
    confusion=confusion,
  )


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
  """Mean of `-log p(true class)`, in nats; of a probability of 0, that of the least float."""
  own = probabilities[np.arange(len(labels)), labels]
  return float(-np.log(np.maximum(own, np.finfo(np.float64).tiny)).mean())


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
  """`Σ_b n_b/n |accuracy_b - confidence_b|` over bins of equal width of the top probability."""
  confidence, hit = probabilities.max(1), probabilities.argmax(1) == labels
  place = np.minimum((confidence * bins).astype(int), bins - 1)
  differences = np.bincount(place, hit - confidence, minlength=bins)
  return float(np.abs(differences).sum() / len(labels))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
  """The temperature in [1/100, 100] by which `logits / T` has the least log loss.

  Args:
    logits: `[n, C]`, of images that the model was not fitted on.
    labels: `[n]`.
  """
  own = logits[np.arange(len(labels)), labels]

  def loss(log_temperature):
    scaled = logits / math.exp(log_temperature)
    top = scaled.max(1)
    norm = top + np.log(np.exp(scaled - top[:, None]).sum(1))
    return (norm - own / math.exp(log_temperature)).mean()

  # Convex in 1/T, so with one minimum in log T too: golden-section search.
  low, high = -math.log(100), math.log(100)
  while high - low > 1e-6:
    step = _GOLDEN * (high - low)
    if loss(high - step) <= loss(low + step):
      high = low + step
    else:
      low = high - step
  return math.exp((low + high) / 2)


def to_json(scores: Scores) -> dict[str, Any]:
  """What JSON files say."""
  named = lambda interval: interval and interval._asdict()
  classes = [
    row._asdict() | {"recall": named(row.recall), "precision": named(row.precision)}
    for row in scores.classes
  ]
  return scores._asdict() | {
    "accuracy": named(scores.accuracy),
    "classes": classes,
    "confusion": scores.confusion.tolist(),
  }


def format_text(scores: Scores) -> str:
  """A table for the terminal."""
  percent = lambda value: "–" if value is None else f"{100 * value:.1f}"
  span = lambda i: "–" if i is None else f"{percent(i.value)} [{percent(i.low)}, {percent(i.high)}]"
  width = max(len(row.name) for row in scores.classes)
  lines = [
    f"accuracy {span(scores.accuracy)} % of {scores.images} images, balanced "
    f"{percent(scores.balanced_accuracy)} %, log loss {scores.log_loss:.3f}, "
    f"calibration error {scores.ece:.3f}",
    f"{'class':<{width}}  images  recall (%)           precision (%)",
  ]
  lines += [
    f"{row.name:<{width}}  {row.images:>6}  {span(row.recall):<20} {span(row.precision)}"
    for row in scores.classes
  ]
  return "\n".join(lines)


def to_csv(rows: Sequence[Sequence[Any]]) -> str:
  """Rows as CSV."""
  text = io.StringIO()
  csv.writer(text, lineterminator="\n").writerows(rows)
  return text.getvalue()


def class_table(scores: Scores) -> str:
  """`per_class.csv`: counts, recall and precision with their intervals."""
  ends = lambda interval: ["", "", ""] if interval is None else [f"{v:.4f}" for v in interval]
  header = ["class", "images", "predicted", "correct"]
  header += [
    f"{measure}{end}" for measure in ("recall", "precision") for end in ("", "_low", "_high")
  ]
  rows = [
    [row.name, row.images, row.predicted, row.correct, *ends(row.recall), *ends(row.precision)]
    for row in scores.classes
  ]
  return to_csv([header, *rows])
