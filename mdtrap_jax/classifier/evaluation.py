"""How good a fitted classifier is on labeled images that it was not fitted on."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from mdtrap_jax.classifier import described, folds
from mdtrap_jax.classifier.choices import ZERO_SHOT
from mdtrap_jax.classifier.estimator import FewShotClassifier
from mdtrap_jax.classifier.task import Fitted, Setting
from mdtrap_jax.data import labeled
from mdtrap_jax.data.labeled import Labeled
from mdtrap_jax.data.read_labeled import read_labeled
from mdtrap_jax.report import classification
from mdtrap_jax.report.assessment import Assessment
from mdtrap_jax.report.classification import softmax


def evaluate(
  classifier: FewShotClassifier,
  X: Any,
  y: Any = None,
  *,
  report: Callable[[float], None] = lambda done: None,
) -> Assessment:
  """Predicts labeled images and says how good the predictions are.

  Args:
    classifier: fitted, or loaded.
    X: as in `FewShotClassifier.fit`, of images that it was not fitted on.
    y: likewise.
    report: told from time to time which share of the images is done.

  Returns:
    What `write_report` makes a page of.

  Raises:
    OSError, ValueError: as `FewShotClassifier.score`, or an image that cannot be read.
  """
  data = read_labeled(X, y)
  labels, parts, done = classifier.indices(data), [], 0
  base, notes = _unadapted(classifier, data)
  passes = 1 + (base is not None)
  for batch, cosines in classifier.stream(data.items):
    parts.append(cosines)
    done += len(batch)
    report(done / len(labels) / passes)
  cosines, rows = np.concatenate(parts), np.arange(len(labels))
  probabilities = classifier.probabilities(cosines)
  names = list(map(str, classifier.classes_.tolist()))
  scores = classification.score(names, labels, probabilities)
  methods = {classifier.method: scores}
  if base:
    chances = softmax(base.scale * _cosines(base, data, lambda share: report((1 + share) / 2)))
    methods[ZERO_SHOT] = classification.score(names, labels, chances)
  about = {"model": classifier.model, "data": data.name, "method": classifier.method}
  about |= {"temperature": classifier.temperature_, **classification.to_json(scores)}
  steps = max(classifier.accuracy_at_)
  facts = described.facts(classifier, classifier.setting, data, steps)
  return Assessment(
    title=f"How good is {classifier.method} on {described.short(data.name)}?",
    how=f"Every image was predicted once by a classifier that had been fitted to "
    f"{sum(classifier.counts_)} images before; make sure that none of those is among these.",
    names=names,
    files=data.files,
    items=data.items,
    rows=rows,
    outcomes=classification.outcomes(labels, probabilities),
    closeness=cosines[rows, labels],
    anchor=described.anchor(classifier.setting),
    scores=methods,
    curves={},
    facts=facts | {"temperature": f"{classifier.temperature_:.3g}"},
    notes=notes,
    command=f"evaluate({described.call(classifier)}, {data.name!r})",
    tables={
      "evaluation.json": json.dumps(about, indent=2, ensure_ascii=False) + "\n",
      "predictions.csv": _predictions(data.files, names, labels, probabilities),
    },
  )


def _unadapted(classifier: FewShotClassifier, data: Labeled) -> tuple[Setting | None, list[str]]:
  """The model as it was before adapting, or why it cannot tell the classes apart by their names."""
  if classifier.method == ZERO_SHOT:
    return None, []
  classes = Labeled(data.name, (), classifier.classes_, ())
  try:
    return folds.baseline(classifier, ZERO_SHOT).prepare(classes), []
  except ValueError as error:  # such as names that are the same to the text encoder
    return None, [f"{ZERO_SHOT} is left out: {error}"]


def _cosines(setting: Setting, data: Labeled, report: Callable[[float], None]) -> np.ndarray:
  """Cosines `[n, C] float64` of zero-shot, in constant memory but for them."""
  size, parts = setting.config.model.batch_size, []
  for start in range(0, len(data.items), size):
    pixels = labeled.decode_all(data.items[start : start + size], setting.preprocessing)
    parts.append(setting.cosines(Fitted({}, setting.prompts.text), pixels))
    report(min(1.0, (start + size) / len(data.items)))
  return np.concatenate(parts).astype(np.float64)


def _predictions(files, names, labels, probabilities) -> str:
  """A line an image."""
  header = ["file", "label", "prediction", "probability", *(f"p:{name}" for name in names)]
  rows = [
    [file, names[label], names[row.argmax()], *(f"{p:.6f}" for p in (row.max(), *row))]
    for file, label, row in zip(files, labels, probabilities, strict=True)
  ]
  return classification.to_csv([header, *rows])
