"""How good a classifier is on images it has not seen, when there are none to spare: by folds.

Every image is predicted once, by a model that was adapted to the other folds. Folds are adapted
side by side; zero-shot and nearest centroids are measured on the same ones.
Legend: `n` images, `C` classes, `K` folds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mdtrap_jax.classifier.estimator import FewShotClassifier, softmax
from mdtrap_jax.classifier.task import Setting
from mdtrap_jax.data import labeled
from mdtrap_jax.data.draws import shuffle
from mdtrap_jax.data.names import listed
from mdtrap_jax.data.read_labeled import read_labeled
from mdtrap_jax.data.task import Task
from mdtrap_jax.data.tasks import PADDING
from mdtrap_jax.report import classification
from mdtrap_jax.report.classification import Scores

BASELINES = ("zero_shot", "ncc")


class Validated(NamedTuple):
  """One method on the held-out images."""

  probabilities: np.ndarray  # [n, C]; each fold's by the temperature of the other folds
  temperature: float  # fitted on all of them
  scores: Scores  # of the images that are in a fold


class CrossValidation(NamedTuple):
  """What the folds say."""

  classes: np.ndarray  # [C] labels
  files: Sequence[str]  # [n]
  labels: np.ndarray  # [n] places in `classes`
  folds: np.ndarray  # [n] fold in which an image was held out; -1: never, the class has no other
  methods: Mapping[str, Validated]  # the classifier's own first
  notes: Sequence[str]  # what could not be done


def cross_validate(
  classifier: FewShotClassifier,
  X: Any,
  y: Any = None,
  folds: int = 5,
  *,
  report: Callable[[float], None] = lambda done: None,
) -> CrossValidation:
  """Validates a classifier's settings; the classifier itself is not fitted.

  Args:
    classifier: whose settings are tried.
    X: as in `FewShotClassifier.fit`.
    y: likewise.
    folds: `K`; the images of a class are dealt out to them evenly.
    report: told which share of the classifier's own method is done.

  Raises:
    OSError, ValueError: as `fit`, or nothing can be validated.
  """
  data = read_labeled(X, y)
  classes, labels = np.unique(data.labels, return_inverse=True)
  counts = np.bincount(labels)
  if counts.max(initial=0) < 2:
    raise ValueError(
      f"{data.name}: every class has one image, so nothing can be validated; fit without folds, or "
      "give at least two images of some class."
    )
  assigned = assign_folds(labels, folds, classifier.seed)
  small = [f"{classes[c]} ({counts[c]})" for c in np.flatnonzero(counts < folds)]
  notes = [f"classes with fewer than {folds} images: {listed(small)}"] if small else []
  setting = classifier.prepare(data)
  pixels = labeled.decode_all(data.items, setting.preprocessing)
  methods = {}
  for name in dict.fromkeys((classifier.method, *BASELINES)):
    own = name == classifier.method
    if not own:
      try:
        setting = _baseline(classifier, name).prepare(data)
      except ValueError as error:  # such as names that are the same to the text encoder
        notes.append(f"{name} is left out: {error}")
        continue
    cosines = held_out(setting, pixels, labels, assigned, report if own else lambda done: None)
    methods[name] = _validated(
      setting.scale * cosines.astype(np.float64), labels, assigned, classes
    )
  return CrossValidation(classes, data.files, labels, assigned, methods, notes)


def assign_folds(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
  """The fold of each image, `[n]`: in every class, and in all, as even as can be.

  Args:
    labels: `[n]`, from 0.
    folds: `K`, at least 2.
    seed: of the order.

  Returns:
    0 to `K-1`; -1 for the only image of a class, which is always trained on.

  Raises:
    ValueError: fewer than two folds, or more than there are images to hold out.
  """
  counts = np.bincount(labels)
  most = int(counts[counts > 1].sum())
  if not 2 <= folds <= most:
    raise ValueError(f"folds={folds}: give 2 to {most}, the images that can be held out.")
  bits = np.random.Philox(key=np.array([seed, 0], np.uint64))
  assigned, dealt = np.full(len(labels), -1), 0
  for label in np.flatnonzero(counts > 1):
    rows = shuffle(bits, np.flatnonzero(labels == label))
    assigned[rows] = (dealt + np.arange(len(rows))) % folds
    dealt += len(rows)
  return assigned


def held_out(
  setting: Setting,
  pixels: np.ndarray,
  labels: np.ndarray,
  folds: np.ndarray,
  report: Callable[[float], None],
) -> np.ndarray:
  """Cosines `[n, C]` of each image by the model that did not see it; NaN for one in no fold.

  Raises:
    ValueError: a fold became non-finite.
  """
  ways, count = int(labels.max()) + 1, int(folds.max()) + 1
  rows, order = setting.rows(pixels), np.argsort(labels, kind="stable")
  trained = [order[folds[order] != fold] for fold in range(count)]
  queries = [np.flatnonzero(folds == fold) for fold in range(count)]
  out, most, done = np.full((len(labels), ways), np.nan, np.float32), max(map(len, queries)), 0
  # The sizes of folds differ by one at most: two shapes, and no row that counts twice.
  for size in sorted(set(map(len, trained))):
    chosen = [fold for fold in range(count) if len(trained[fold]) == size]
    tasks = [_task(setting, rows, labels, trained[f], queries[f], most) for f in chosen]
    reach = lambda share, before=done, added=tasks: report((before + share * len(added)) / count)
    adapted = setting.adapt(tasks, reach)
    if not adapted.ok.all():
      raise ValueError(f"{setting.method_name} became non-finite; lower the learning rate.")
    cosines = adapted.evaluations[max(adapted.evaluations)].cosines
    for fold, found in zip(chosen, cosines, strict=True):
      out[queries[fold]] = found[: len(queries[fold])]
    done += len(chosen)
  return out


def _task(setting, rows, labels, support, query, most) -> Task:
  """One fold, its queries padded to `most` rows."""
  filled = np.pad(query, (0, most - len(query)), "edge")
  query_labels = np.pad(labels[query], (0, most - len(query)), constant_values=PADDING)
  return setting.task(rows[support], labels[support], rows[filled], query_labels)


def _baseline(classifier: FewShotClassifier, method: str) -> FewShotClassifier:
  """A classifier for comparison, of the same images and model."""
  kept = ("data.", "model.")  # fields that both kinds of config have
  config = {k: v for k, v in (classifier.config or {}).items() if k.startswith(kept)}
  settings = {"method": method, "steps": None, "learning_rate": None, "config": config}
  return FewShotClassifier(**classifier.get_params() | settings)


def _validated(logits, labels, folds, classes) -> Validated:
  """Calibrated out of fold: no temperature has seen the image that it is used on."""
  used = folds >= 0
  temperature = lambda rows: classification.fit_temperature(logits[rows], labels[rows])
  probabilities = np.full(logits.shape, np.nan)
  for fold in range(int(folds.max()) + 1):
    own = folds == fold
    probabilities[own] = softmax(logits[own] / temperature(used & ~own))
  scores = classification.score(list(map(str, classes)), labels[used], probabilities[used])
  return Validated(probabilities, temperature(used), scores)


def to_csv(validation: CrossValidation) -> str:
  """`crossval.csv`: a line an image; images in no fold have no prediction."""
  names = [str(label) for label in validation.classes.tolist()]
  own, *others = validation.methods
  header = ["file", "fold", "label", "prediction", "probability"]
  rows = [header + [f"p:{name}" for name in names] + [f"{name} prediction" for name in others]]
  table = {name: found.probabilities for name, found in validation.methods.items()}
  for row, (file, fold, label) in enumerate(
    zip(validation.files, validation.folds, validation.labels, strict=True)
  ):
    if fold < 0:
      rows.append([file, "", names[label]] + [""] * (len(rows[0]) - 3))
      continue
    chances = table[own][row]
    said = [names[table[name][row].argmax()] for name in (own, *others)]
    shown = [f"{chance:.6f}" for chance in (chances.max(), *chances)]
    rows.append([file, fold, names[label], said[0], *shown, *said[1:]])
  return classification.to_csv(rows)


def format_text(validation: CrossValidation) -> str:
  """A table for the terminal: one line a method, then the notes."""
  count = int((validation.folds >= 0).sum())
  folds = int(validation.folds.max()) + 1
  lines = [
    f"{count} images held out once each, in {folds} folds:",
    "method      accuracy (95 %)        balanced  log loss  calibration error",
  ]
  for name, found in validation.methods.items():
    scores, (value, low, high) = found.scores, found.scores.accuracy
    span = f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}] %"
    lines.append(
      f"{name:<11} {span:<22} {100 * scores.balanced_accuracy:>6.1f} %  {scores.log_loss:>8.3f}  "
      f"{scores.ece:>8.3f}"
    )
  return "\n".join([*lines, *validation.notes])
