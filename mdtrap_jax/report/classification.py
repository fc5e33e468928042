"""How good a classifier is on labeled images: accuracy with intervals, calibration, confusion.

Legend: `n` images, `m` predictions of them (`n`, or more where images are predicted repeatedly),
`C` classes. Intervals are those of `n` images: predicting an image again tells nothing new.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

BINS = 15  # of confidence, for the calibration error
PAGE = "report.html"
# The files of a report.
FILES = frozenset({PAGE, "per_class.csv", "confusion.csv"}) | {
  f"{figure}.{form}" for figure in ("confusion", "reliability", "steps") for form in ("png", "svg")
}
SHOWN = 50  # classes in a terminal
_BIN_IMAGES, _MOST_BINS = 7, 10  # of a reliability diagram
_GOLDEN = (math.sqrt(5) - 1) / 2


class Interval(NamedTuple):
  """A share with its 95 % interval by Wilson's score."""

  value: float
  low: float
  high: float


class Outcomes(NamedTuple):
  """What was said of images whose class is known."""

  labels: np.ndarray  # [m] true class
  predicted: np.ndarray  # [m] likeliest class
  confidence: np.ndarray  # [m] probability of `predicted`
  likelihood: np.ndarray  # [m] probability of the true class


class Bin(NamedTuple):
  """Predictions of like confidence."""

  predictions: int
  confidence: float  # their mean
  accuracy: Interval


class ClassScore(NamedTuple):
  """One class, in predictions; a share without cases is `None`."""

  name: str
  images: int  # predictions of images of the class
  predicted: int  # that say it is the class
  correct: int
  recall: Interval | None
  precision: Interval | None


class Scores(NamedTuple):
  """Of `n` images."""

  images: int
  predictions: int  # m
  accuracy: Interval
  balanced_accuracy: float  # mean recall of the classes that have images
  log_loss: float  # nats an image
  ece: float  # expected calibration error, in `BINS` bins of equal width
  classes: list[ClassScore]
  confusion: np.ndarray  # [C, C]: true class, predicted class


def wilson(successes: float, cases: float, z: float = 1.959964) -> Interval | None:
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


def softmax(logits: np.ndarray) -> np.ndarray:
  """Of rows `[n, C]`."""
  powers = np.exp(logits - logits.max(axis=1, keepdims=True))
  return powers / powers.sum(axis=1, keepdims=True)


def outcomes(labels: np.ndarray, probabilities: np.ndarray) -> Outcomes:
  """Of labels `[m]` and probabilities `[m, C]`."""
  rows = np.arange(len(labels))
  predicted = probabilities.argmax(1)
  return Outcomes(labels, predicted, probabilities[rows, predicted], probabilities[rows, labels])


def score(
  names: Sequence[str], labels: np.ndarray, probabilities: np.ndarray, images: int | None = None
) -> Scores:
  """All measures.

  Args:
    names: `[C]`.
    labels: `[m]`, places in `names`; `m` at least 1.
    probabilities: `[m, C]`.
    images: `n`; `m` if `None`.
  """
  return tally(names, outcomes(labels, probabilities), images)


def tally(names: Sequence[str], said: Outcomes, images: int | None = None) -> Scores:
  """`score` of outcomes."""
  ways, count = len(names), len(said.labels)
  images = count if images is None else images
  confusion = np.zeros((ways, ways), int)
  np.add.at(confusion, (said.labels, said.predicted), 1)
  share = lambda k, cases: wilson(int(k) * images / count, int(cases) * images / count)
  correct, actual, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
  classes = [
    ClassScore(name, int(n), int(m), int(k), share(k, n), share(k, m))
    for name, n, m, k in zip(names, actual, predicted, correct, strict=True)
  ]
  return Scores(
    images=images,
    predictions=count,
    accuracy=share(correct.sum(), count),
    balanced_accuracy=float(np.mean([c.recall.value for c in classes if c.recall])),
    log_loss=log_loss(said),
    ece=calibration_error(said),
    classes=classes,
    confusion=confusion,
  )


def log_loss(said: Outcomes) -> float:
  """Mean of `-log p(true class)`, in nats; of a probability of 0, that of the least float."""
  return float(-np.log(np.maximum(said.likelihood, np.finfo(np.float64).tiny)).mean())


def calibration_error(said: Outcomes, bins: int = BINS) -> float:
  """`Σ_b m_b/m |accuracy_b - confidence_b|` over bins of equal width of the top probability."""
  hit = said.predicted == said.labels
  place = np.minimum((said.confidence * bins).astype(int), bins - 1)
  differences = np.bincount(place, hit - said.confidence, minlength=bins)
  return float(np.abs(differences).sum() / len(said.labels))


def reliability(said: Outcomes, images: int) -> list[Bin]:
  """Bins of equal counts by rising confidence; fewer where there are few images.

  Args:
    said: of the predictions.
    images: `n`.
  """
  count = len(said.labels)
  order = np.argsort(said.confidence, kind="stable")
  bins = []
  for rows in np.array_split(order, min(max(images // _BIN_IMAGES, 1), _MOST_BINS)):
    hits, share = int((said.predicted == said.labels)[rows].sum()), images / count
    right = wilson(hits * share, len(rows) * share)
    bins.append(Bin(len(rows), float(said.confidence[rows].mean()), right))
  return bins


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


def counted(scores: Scores) -> str:
  """What the counts of classes are of."""
  return "images" if scores.predictions == scores.images else "predictions"


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
  """For the terminal: a line of all, and a table of the classes."""
  return (
    f"accuracy {span(scores.accuracy)} % of {scores.images} images, balanced "
    f"{100 * scores.balanced_accuracy:.1f} %, log loss {scores.log_loss:.3f}, "
    f"calibration error {scores.ece:.3f}\n{format_classes(scores)}"
  )


def format_classes(scores: Scores) -> str:
  """A table of the classes for the terminal; `SHOWN` of them at most."""
  shown, count = scores.classes[:SHOWN], counted(scores)
  width = max(5, *(len(row.name) for row in shown))
  lines = [f"{'class':<{width}}  {count}  recall (%)           precision (%)"]
  lines += [
    f"{row.name:<{width}}  {row.images:>{len(count)}}  {span(row.recall):<20} {span(row.precision)}"
    for row in shown
  ]
  if len(scores.classes) > SHOWN:
    lines.append(f"and {len(scores.classes) - SHOWN} classes more")
  return "\n".join(lines)


def span(interval: Interval | None) -> str:
  """`66.7 [30.0, 90.3]`, in percent; `–` where there is none."""
  return "–" if interval is None else "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * v for v in interval))


def to_csv(rows: Sequence[Sequence[Any]]) -> str:
  """Rows as CSV."""
  text = io.StringIO()
  csv.writer(text, lineterminator="\n").writerows(rows)
  return text.getvalue()


def confusion_table(scores: Scores) -> str:
  """`confusion.csv`: predictions, true class by predicted class."""
  names = [row.name for row in scores.classes]
  rows = [[name, *row] for name, row in zip(names, scores.confusion.tolist(), strict=True)]
  return to_csv([["true \\ predicted", *names], *rows])


def class_table(scores: Scores) -> str:
  """`per_class.csv`: counts, recall and precision with their intervals."""
  ends = lambda interval: ["", "", ""] if interval is None else [f"{v:.4f}" for v in interval]
  header = ["class", counted(scores), "predicted", "correct"]
  header += [
    f"{measure}{end}" for measure in ("recall", "precision") for end in ("", "_low", "_high")
  ]
  rows = [
    [row.name, row.images, row.predicted, row.correct, *ends(row.recall), *ends(row.precision)]
    for row in scores.classes
  ]
  return to_csv([header, *rows])
