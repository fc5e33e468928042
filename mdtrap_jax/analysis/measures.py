"""Numbers that say how well images part and how well they fit their texts; NumPy, float64.

Legend: `n` images, `C` classes, `D` width. Rows come in raw and are scaled to unit length here.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from mdtrap_jax.methods import text_gap
from mdtrap_jax.methods.method import Embeddings


class Scatter(NamedTuple):
  """Visual discriminability: the smaller `within / between`, the better the classes part."""

  within: float  # mean squared distance of unit images from their class's mean
  between: float  # mean squared distance of those means from the mean of all, image by image


class Alignment(NamedTuple):
  """Mean cosines of images to texts."""

  own: float  # to the text of their class
  other: float  # to those of the other classes


def unit(rows: np.ndarray) -> np.ndarray:
  """Rows of `[n, D]` scaled to unit length."""
  rows = np.asarray(rows, np.float64)
  return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def class_means(images: np.ndarray, labels: np.ndarray, ways: int) -> np.ndarray:
  """Means of the unit rows of each class, `[C, D]`, not scaled again.

  Args:
    images: `[n, D]`.
    labels: `[n]`, every class among them.
    ways: `C`.
  """
  images = unit(images)
  return np.stack([images[labels == label].mean(0) for label in range(ways)])


def scatter(images: np.ndarray, labels: np.ndarray, ways: int) -> Scatter:
  """Within- and between-class scatter of unit images; they add up to the total.

  Args:
    images: `[n, D]`.
    labels: `[n]`.
    ways: `C`.
  """
  own = class_means(images, labels, ways)[labels]
  rows = unit(images)
  square = lambda difference: float(np.sum(difference**2, axis=-1).mean())
  return Scatter(square(rows - own), square(own - rows.mean(0)))


def nearest(images: np.ndarray, prototypes: np.ndarray, labels: np.ndarray) -> float:
  """Accuracy of the nearest prototype, by cosine.

  Args:
    images: `[n, D]`.
    prototypes: `[C, D]`.
    labels: `[n]`.
  """
  return float((np.argmax(unit(images) @ unit(prototypes).T, axis=-1) == labels).mean())


def alignment(images: np.ndarray, classes: np.ndarray, labels: np.ndarray) -> Alignment:
  """Cosines of images to the texts of their own class and of the others.

  Args:
    images: `[n, D]`.
    classes: `[C, D]`, texts.
    labels: `[n]`.
  """
  cosines = unit(images) @ unit(classes).T
  own = np.arange(len(classes)) == np.asarray(labels)[:, None]
  return Alignment(float(cosines[own].mean()), float(cosines[~own].mean()))


def retrieval(images: np.ndarray, classes: np.ndarray, labels: np.ndarray) -> float:
  """Share of the texts whose nearest image is of their class (recall at 1, text to image).

  From images to texts the same is the accuracy.

  Args:
    images: `[n, D]`.
    classes: `[C, D]`, texts.
    labels: `[n]`.
  """
  found = np.argmax(unit(classes) @ unit(images).T, axis=-1)
  return float((np.asarray(labels)[found] == np.arange(len(classes))).mean())


def present(found: Embeddings) -> Embeddings:
  """A task on the host without its padding: classes that it has, rows of those."""
  support_labels, query_labels = np.asarray(found.support_labels), np.asarray(found.query_labels)
  kept = np.unique(support_labels[support_labels >= 0])
  number = np.full(len(found.classes) + 1, -1)  # the last is padding's, -1
  number[kept] = np.arange(len(kept))
  return Embeddings(
    support=np.asarray(found.support)[support_labels >= 0],
    support_labels=number[support_labels[support_labels >= 0]],
    query=np.asarray(found.query)[query_labels >= 0],
    query_labels=number[query_labels[query_labels >= 0]],
    classes=np.asarray(found.classes)[kept],
    scale=found.scale,
  )


def measure(found: Embeddings) -> dict[str, float]:
  """All numbers of a task, of its queries unless their name says otherwise.

  Args:
    found: without padding, see `present`.
  """
  images, labels, classes = found.query, found.query_labels, found.classes
  parts = scatter(images, labels, len(classes))
  fit = alignment(images, classes, labels)
  prototypes = class_means(found.support, found.support_labels, len(classes))
  curve = shift_curve(found)
  gap = text_gap.text_gap(jnp.asarray(images), jnp.asarray(classes), jnp.asarray(labels))
  return {
    "accuracy": nearest(images, classes, labels),
    "ncc_accuracy": nearest(images, prototypes, labels),
    "scatter_within": parts.within,
    "scatter_between": parts.between,
    "scatter_ratio": parts.within / parts.between,
    "cosine_own": fit.own,
    "cosine_other": fit.other,
    "cosine_margin": fit.own - fit.other,
    "text_retrieval": retrieval(images, classes, labels),
    "gap": float(jnp.linalg.norm(gap)),
    "gap_shift": float(abs(text_gap.best_shift(curve, text_gap.SHIFTS))),
  }


def shift_curve(found: Embeddings) -> text_gap.TextShiftCurve:
  """Loss and accuracy of the queries over `text_gap.SHIFTS`.

  Args:
    found: without padding.
  """
  return text_gap.shift_texts(
    jnp.asarray(found.query, jnp.float32),
    jnp.asarray(found.classes, jnp.float32),
    jnp.asarray(found.query_labels),
    jnp.asarray(text_gap.SHIFTS),
    found.scale,
  )
