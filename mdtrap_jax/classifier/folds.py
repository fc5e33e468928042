"""How good a classifier is on images it has not seen, when there are none to spare: by folds.

Every image is predicted by a model that was adapted to the other folds, once or, with `R`
repeats, once for each of `R` ways to deal out the images. All folds are adapted side by side;
zero-shot and nearest centroids are measured on the same ones.
Legend: `n` images, `C` classes, `K` folds, `R` repeats.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mdtrap_jax.classifier import described
from mdtrap_jax.classifier.estimator import FewShotClassifier, softmax
from mdtrap_jax.classifier.task import Setting
from mdtrap_jax.data import labeled
from mdtrap_jax.data.draws import shuffle
from mdtrap_jax.data.names import listed
from mdtrap_jax.data.read_labeled import read_labeled
from mdtrap_jax.data.task import Task
from mdtrap_jax.data.tasks import PADDING
from mdtrap_jax.report import classification
from mdtrap_jax.report.assessment import Assessment
from mdtrap_jax.report.classification import Interval, Scores

BASELINES = ("zero_shot", "ncc")


class Validated(NamedTuple):
  """One method on the held-out images."""

  cosines: np.ndarray  # [R, n, C] to the classes; NaN for an image in no fold
  probabilities: np.ndarray  # [R, n, C]; each fold's by the temperature of the other folds
  temperature: float  # fitted on all of them
  scores: Scores  # of the images that are in a fold
  accuracy_at: Mapping[int, Interval]  # by step


class CrossValidation(NamedTuple):
  """What the folds say."""

  name: str  # of the images
  classes: np.ndarray  # [C] labels
  files: Sequence[str]  # [n]
  items: Sequence[Any]  # [n] paths or images
  labels: np.ndarray  # [n] places in `classes`
  folds: np.ndarray  # [R, n] fold in which an image was held out; -1: never, the class has no other
  methods: Mapping[str, Validated]  # the classifier's own first
  notes: Sequence[str]  # what could not be done
  about: Mapping[str, str]  # what was validated, in words
  anchor: str  # of the classifier's method, see `described.anchor`
  command: str  # that repeats it

  def assessment(self) -> Assessment:
    """What a report shows."""
    own, found = next(iter(self.methods.items()))
    used, repeats = np.flatnonzero(self.folds[0] >= 0), len(self.folds)
    labels = np.tile(self.labels[used], repeats)
    rows, cosines = np.tile(used, repeats), found.cosines[:, used].reshape(len(labels), -1)
    probabilities = found.probabilities[:, used].reshape(len(labels), -1)
    folds = int(self.folds.max()) + 1
    return Assessment(
      title=f"How good is {own} on {described.short(self.name)}?",
      how=f"{folds}-fold cross-validation: every image was predicted by a model that was adapted "
      "to the other folds and had not seen it" + _repeated(repeats) + ".",
      names=[str(label) for label in self.classes.tolist()],
      files=self.files,
      items=self.items,
      rows=rows,
      outcomes=classification.outcomes(labels, probabilities),
      closeness=cosines[np.arange(len(labels)), labels],
      anchor=self.anchor,
      scores={name: method.scores for name, method in self.methods.items()},
      curves={"held-out images": found.accuracy_at},
      facts={**self.about, "temperature": f"{found.temperature:.3g}, fitted on held-out images"},
      command=self.command,
      notes=self.notes,
      tables={"crossval.csv": to_csv(self)},
    )

  def write_report(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Writes `report.html`, its figures and tables into a new folder; see `assessment.write`."""
    self.assessment().write_report(folder, overwrite=overwrite)


def cross_validate(
  classifier: FewShotClassifier,
  X: Any,
  y: Any = None,
  folds: int = 5,
  *,
  repeats: int = 1,
  report: Callable[[float], None] = lambda done: None,
) -> CrossValidation:
  """Validates a classifier's settings; the classifier itself is not fitted.

  Args:
    classifier: whose settings are tried.
    X: as in `FewShotClassifier.fit`.
    y: likewise.
    folds: `K`; the images of a class are dealt out to them evenly.
    repeats: `R`, how often they are dealt out, each time in another order.
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
  if repeats < 1:
    raise ValueError(f"repeats={repeats}: give at least 1.")
  assigned = np.stack([assign_folds(labels, folds, classifier.seed, r) for r in range(repeats)])
  small = [f"{classes[c]} ({counts[c]})" for c in np.flatnonzero(counts < folds)]
  notes = [f"classes with fewer than {folds} images: {listed(small)}"] if small else []
  if alone := [str(classes[c]) for c in np.flatnonzero(counts == 1)]:
    notes.append(f"never held out, being the only image of their class: {listed(alone)}")
  setting = classifier.prepare(data)
  steps = setting.method(len(labels), len(classes)).steps
  about = described.facts(classifier, setting, data, steps)
  anchor = described.anchor(setting)
  pixels = labeled.decode_all(data.items, setting.preprocessing)
  methods = {}
  for name in dict.fromkeys((classifier.method, *BASELINES)):
    own = name == classifier.method
    if not own:
      try:
        setting = baseline(classifier, name).prepare(data)
      except ValueError as error:  # such as names that are the same to the text encoder
        notes.append(f"{name} is left out: {error}")
        continue
    by_step = held_out(setting, pixels, labels, assigned, report if own else lambda done: None)
    methods[name] = _validated(by_step, setting.scale, labels, assigned, classes)
  if repeats > 1:
    notes.append(_spread(methods[classifier.method], labels, assigned[0] >= 0))
  call = f"cross_validate({described.call(classifier)}, {data.name!r}, folds={folds}"
  call += f", repeats={repeats})" if repeats > 1 else ")"
  return CrossValidation(
    data.name,
    classes,
    data.files,
    data.items,
    labels,
    assigned,
    methods,
    notes,
    about,
    anchor,
    call,
  )


def assign_folds(labels: np.ndarray, folds: int, seed: int, repeat: int = 0) -> np.ndarray:
  """The fold of each image, `[n]`: in every class, and in all, as even as can be.

  Args:
    labels: `[n]`, from 0.
    folds: `K`, at least 2.
    seed: of the order.
    repeat: which of several orders.

  Returns:
    0 to `K-1`; -1 for the only image of a class, which is always trained on.

  Raises:
    ValueError: fewer than two folds, or more than there are images to hold out.
  """
  counts = np.bincount(labels)
  most = int(counts[counts > 1].sum())
  if not 2 <= folds <= most:
    raise ValueError(f"folds={folds}: give 2 to {most}, the images that can be held out.")
  bits = np.random.Philox(key=np.array([seed, repeat], np.uint64))
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
) -> dict[int, np.ndarray]:
  """Cosines `[R, n, C]` of each image by models that did not see it, by step; NaN: in no fold.

  Raises:
    ValueError: a fold became non-finite.
  """
  ways = int(labels.max()) + 1
  rows, order = setting.rows(pixels), np.argsort(labels, kind="stable")
  every = [(r, fold) for r in range(len(folds)) for fold in range(int(folds.max()) + 1)]
  trained = [order[folds[r, order] != fold] for r, fold in every]
  queries = [np.flatnonzero(folds[r] == fold) for r, fold in every]
  most, done = max(map(len, queries)), 0.0
  out: dict[int, np.ndarray] = {}
  # The sizes of folds differ by one at most: two shapes, and no row that counts twice.
  for size in sorted(set(map(len, trained))):
    chosen = [i for i, kept in enumerate(trained) if len(kept) == size]
    tasks = [_task(setting, rows, labels, trained[i], queries[i], most) for i in chosen]
    part = len(tasks) / len(every)
    reach = lambda share, before=done, part=part: report(before + share * part)
    adapted = setting.adapt(tasks, reach)
    if not adapted.ok.all():
      raise ValueError(f"{setting.method_name} became non-finite; lower the learning rate.")
    for step, found in adapted.evaluations.items():
      empty = np.full((len(folds), len(labels), ways), np.nan, np.float32)
      into = out.setdefault(step, empty)
      for i, cosines in zip(chosen, found.cosines, strict=True):
        into[every[i][0], queries[i]] = cosines[: len(queries[i])]
    done += part
  return out


def _task(setting, rows, labels, support, query, most) -> Task:
  """One fold, its queries padded to `most` rows."""
  filled = np.pad(query, (0, most - len(query)), "edge")
  query_labels = np.pad(labels[query], (0, most - len(query)), constant_values=PADDING)
  return setting.task(rows[support], labels[support], rows[filled], query_labels)


def baseline(classifier: FewShotClassifier, method: str) -> FewShotClassifier:
  """A classifier to compare with, of the same model and prompts."""
  kept = ("data.", "model.")  # fields that both kinds of config have
  config = {k: v for k, v in (classifier.config or {}).items() if k.startswith(kept)}
  settings = {"method": method, "steps": None, "learning_rate": None, "config": config}
  return FewShotClassifier(**classifier.get_params() | settings)


def _validated(by_step, scale, labels, folds, classes) -> Validated:
  """Calibrated out of fold: no temperature has seen the image that it is used on."""
  steps, used = sorted(by_step), folds[0] >= 0
  cosines, images = by_step[steps[-1]], int(used.sum())
  logits = scale * cosines.astype(np.float64)
  temperature = lambda rows, true: classification.fit_temperature(rows, true)
  probabilities = np.full(logits.shape, np.nan)
  for r, assigned in enumerate(folds):
    for fold in range(int(assigned.max()) + 1):
      own, others = assigned == fold, used & (assigned != fold)
      fitted = temperature(logits[r, others], labels[others])
      probabilities[r, own] = softmax(logits[r, own] / fitted)
  pooled = lambda rows: rows[:, used].reshape(len(folds) * images, -1)
  true = np.tile(labels[used], len(folds))
  scores = classification.score(list(map(str, classes)), true, pooled(probabilities), images)
  accuracy_at = {
    step: classification.wilson(
      (pooled(by_step[step]).argmax(1) == true).sum() / len(folds), images
    )
    for step in steps
  }
  return Validated(cosines, probabilities, temperature(pooled(logits), true), scores, accuracy_at)


def _spread(own: Validated, labels: np.ndarray, used: np.ndarray) -> str:
  hits = own.probabilities[:, used].argmax(-1) == labels[used]
  each = ", ".join(f"{100 * share:.1f}" for share in hits.mean(1))
  return f"accuracy in each repeat: {each} %; intervals are those of {used.sum()} images"


def _repeated(repeats: int) -> str:
  return f", {repeats} times with the images dealt out otherwise" if repeats > 1 else ""


def to_csv(validation: CrossValidation) -> str:
  """`crossval.csv`: a line an image and repeat; images in no fold have no prediction."""
  names = [str(label) for label in validation.classes.tolist()]
  own, *others = validation.methods
  header = ["file", "repeat", "fold", "label", "prediction", "probability"]
  rows = [header + [f"p:{name}" for name in names] + [f"{name} prediction" for name in others]]
  table = {name: found.probabilities for name, found in validation.methods.items()}
  for row, (file, label) in enumerate(zip(validation.files, validation.labels, strict=True)):
    for repeat, fold in enumerate(validation.folds[:, row].tolist()):
      if fold < 0:
        rows.append([file, repeat, "", names[label]] + [""] * (len(rows[0]) - 4))
        continue
      chances = table[own][repeat, row]
      said = [names[table[name][repeat, row].argmax()] for name in (own, *others)]
      shown = [f"{chance:.6f}" for chance in (chances.max(), *chances)]
      rows.append([file, repeat, fold, names[label], said[0], *shown, *said[1:]])
  return classification.to_csv(rows)


def format_text(validation: CrossValidation) -> str:
  """For the terminal: a line a method, the classes by the classifier's own, then the notes."""
  repeats, count = len(validation.folds), int((validation.folds[0] >= 0).sum())
  folds = int(validation.folds.max()) + 1
  held = "once each" if repeats == 1 else f"{repeats} times each"
  lines = [
    f"{count} images held out {held}, in {folds} folds:",
    "method      accuracy (95 %)        balanced  log loss  calibration error",
  ]
  for name, found in validation.methods.items():
    scores, (value, low, high) = found.scores, found.scores.accuracy
    span = f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}] %"
    lines.append(
      f"{name:<11} {span:<22} {100 * scores.balanced_accuracy:>6.1f} %  {scores.log_loss:>8.3f}  "
      f"{scores.ece:>8.3f}"
    )
  own, found = next(iter(validation.methods.items()))
  lines += ["", f"{own}, class by class:", classification.format_classes(found.scores), ""]
  return "\n".join([*lines, *validation.notes]).rstrip()
