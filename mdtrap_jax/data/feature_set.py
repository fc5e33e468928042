"""What a data set of features is, and the checks that it can be right."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from mdtrap_jax.data.hierarchy import Hierarchy

_ROWS_AT_ONCE = 4096  # so that a memory map is never read whole
_MANY_CLASSES = 10_000  # unnamed ones, of which most have no image: the labels are something else
_NAMED = 5  # in a message


class FeatureSet(NamedTuple):
  """A data set as an extractor sees it."""

  name: str
  features: np.ndarray  # [n, ...] float, or uint8 images [n, S, S, 3]; may be a memory map
  labels: np.ndarray  # [n] int32, into class_names; -1 for an image left out
  class_names: tuple[str, ...]
  hierarchy: Hierarchy | None = None  # of the classes, if the data set has one


def check_features(
  name: str,
  features: np.ndarray,
  labels: np.ndarray,
  class_names: Sequence[str] | None,
  hierarchy: Hierarchy | None = None,
) -> FeatureSet:
  """Makes a feature set of arrays that can be right.

  Args:
    name: of the set, in messages.
    features: `[n, ...]`; integers, but for uint8 images `[n, S, S, 3]`, become float32.
    labels: `[n]` integers of any kind; negative ones leave an image out.
    class_names: one for each label; numbers when `None`.
    hierarchy: of the classes, if the data set has one.

  Raises:
    ValueError: features that are no numbers, have no width or are NaN or infinite, labels that
      do not fit the features or the names, or two classes of one name.
  """
  labels = np.asarray(labels)
  if features.ndim < 2 or labels.shape != features.shape[:1]:
    raise ValueError(
      f"{name}: features of shape {list(features.shape)} and labels of shape "
      f"{list(labels.shape)}; they must be [n, …] and [n]."
    )
  if not features.size:
    raise ValueError(f"{name}: features of shape {list(features.shape)} hold nothing.")
  features = _numbers(name, features)
  names = _check_labels(name, labels, class_names)
  if features.dtype.kind == "f":
    _check_finite(name, features)
  labels = np.where(labels < 0, np.int32(-1), labels.astype(np.int32))
  return FeatureSet(name, features, labels, names, hierarchy)


def feature_content(found: FeatureSet) -> dict[str, tuple[int, str]]:
  """What each class holds, so that a resumed run can say what has changed since.

  Returns:
    `{class name: (count, hex digest of its rows in their order)}`. One entry more, `order of the
    rows`, tells which rows are whose, as the indices in results count through all of them.
  """
  kind = f"{found.features.dtype} {found.features.shape[1:]}".encode()
  digests = [hashlib.sha256(kind) for _ in found.class_names]
  for start in range(0, len(found.labels), _ROWS_AT_ONCE):
    labels = found.labels[start : start + _ROWS_AT_ONCE]
    rows = np.asarray(found.features[start : start + _ROWS_AT_ONCE])
    for label in np.unique(labels[labels >= 0]):
      digests[label].update(np.ascontiguousarray(rows[labels == label]))
  counts = np.bincount(found.labels[found.labels >= 0], minlength=len(digests))
  content = {
    name: (int(count), digest.hexdigest())
    for name, count, digest in zip(found.class_names, counts, digests, strict=True)
  }
  order = hashlib.sha256(np.ascontiguousarray(found.labels, "<i4")).hexdigest()
  return content | {"order of the rows": (len(found.labels), order)}


def _numbers(name: str, features: np.ndarray) -> np.ndarray:
  """The features as floats that JAX knows, or as uint8 images."""
  images = features.dtype == np.uint8 and features.ndim == 4 and features.shape[-1] == 3
  if images or features.dtype in (np.float16, np.float32, np.float64):
    return features
  if features.dtype.kind not in "iufb":
    raise ValueError(f"{name}: features are {features.dtype}; they must be floats.")
  with np.errstate(over="ignore"):  # what does not fit becomes infinite, and that is an error
    return features.astype(np.float32)


def _check_labels(
  name: str, labels: np.ndarray, class_names: Sequence[str] | None
) -> tuple[str, ...]:
  """The names of the classes, after all that may be wrong with the labels."""
  if labels.dtype.kind not in "iu":
    raise ValueError(f"{name}: labels are {labels.dtype}; they must be integers.")
  present, counts = np.unique(labels, return_counts=True)
  largest = int(present[-1])
  if class_names is None:
    if largest >= max(len(labels), _MANY_CLASSES):
      raise ValueError(
        f"{name}: the largest label is {largest}, but there are only {len(labels)} rows. Labels "
        "number the classes from 0: np.unique(labels, return_inverse=True)[1] does."
      )
    class_names = range(largest + 1)
  names = tuple(str(n) for n in class_names)
  if largest >= len(names):
    raise ValueError(
      f"{name}: the largest label is {largest}, but there are only {len(names)} class names."
    )
  if twice := sorted(n for n, count in Counter(names).items() if count > 1):
    raise ValueError(f"{name}: the class names {_some(twice)} occur twice.")
  missing = np.setdiff1d(np.arange(len(names)), present)
  if len(missing):
    logging.warning(
      "%s: no image has the label of %s; such classes are never drawn.",
      name,
      _some([names[label] for label in missing]),
    )
  if not (present >= 0).any():
    raise ValueError(f"{name}: all {counts.sum()} labels are negative: every row is left out.")
  return names


def _check_finite(name: str, features: np.ndarray) -> None:
  for start in range(0, len(features), _ROWS_AT_ONCE):
    rows = np.asarray(features[start : start + _ROWS_AT_ONCE])
    bad = np.flatnonzero(~np.isfinite(rows).all(tuple(range(1, rows.ndim))))
    if len(bad):
      raise ValueError(
        f"{name}: the features of row {start + bad[0]} are NaN or infinite "
        f"({len(bad)} such rows near it). Compute them again."
      )


def _some(names: Sequence[str]) -> str:
  rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
  return ", ".join(names[:_NAMED]) + rest
