"""The parts of a data set that is used with all its classes, and what is drawn of them.

Legend: `C` classes, `K` shots, `V` validation images of a class.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mdtrap_jax.data.class_selection import ClassSubset
from mdtrap_jax.data.draws import shuffle
from mdtrap_jax.data.source import Source

MOST_VALIDATION = 4  # images of a class, as CoOp takes them: min(K, 4)
_HALVES = ("train", "test")


class Parts(NamedTuple):
  """Where images of a data set are drawn and tested; the classes are the same in all."""

  train: Source
  val: Source  # may be `train`: its images then come after those of the support
  test: Source


def halves(source: Source) -> Parts:
  """Of a source without a published split, a random half of each class to draw from."""
  bits = np.random.Philox(key=np.array([0, 0], np.uint64))
  labels = {part: np.full_like(source.labels, -1) for part in _HALVES}
  for label in range(len(source.class_names)):
    rows = shuffle(bits, np.flatnonzero(source.labels == label))
    for part, chosen in zip(_HALVES, np.array_split(rows, 2), strict=True):
      labels[part][chosen] = label
  train, test = (_relabeled(source, labels[part]) for part in _HALVES)
  return Parts(train, train, test)


def _relabeled(source: Source, labels: np.ndarray) -> Source:
  part = ClassSubset(source, source.class_names)
  part.labels = labels
  return part


def draw(parts: Parts, shots: int, seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
  """`K` support images `[C, K]` and `min(K, 4)` others `[C, V]` of every class, as indices.

  Args:
    parts: to draw from.
    shots: `K`.
    seed: of the task.
    number: of the task; all randomness follows from both.
  """
  classes = range(len(parts.train.class_names))
  shared = parts.val is parts.train
  support, validation = [], []
  for label in classes:
    bits = np.random.Philox(key=np.array([seed, number], np.uint64), counter=[0, 0, 0, label])
    rows = shuffle(bits, np.flatnonzero(parts.train.labels == label))
    support.append(rows[:shots])
    rest = rows[shots:] if shared else np.flatnonzero(parts.val.labels == label)
    validation.append(rest if shared else shuffle(bits, rest))
  count = min(MOST_VALIDATION, shots, *(len(rows) for rows in validation))
  return np.array(support), np.array([rows[:count] for rows in validation], np.int64)
