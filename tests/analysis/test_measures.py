"""Scatter, alignment, retrieval and padding, by hand."""

import numpy as np
import pytest

from mdtrap_jax.analysis import measures
from mdtrap_jax.methods.method import Embeddings

# Two classes: unit images at 0° and 90° of one, both at 180° of the other.
IMAGES = np.array([[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0], [-3.0, 0.0]])
LABELS = np.array([0, 0, 1, 1])


def test_scatter_by_hand():
  found = measures.scatter(IMAGES, LABELS, 2)
  # Means (½, ½) and (-1, 0), of all (-¼, ¼). Within: ½, ½, 0, 0. Between: (¾)² + (¼)² for all.
  assert found.within == pytest.approx(0.25)
  assert found.between == pytest.approx(0.625)
  unit = measures.unit(IMAGES)
  total = np.sum((unit - unit.mean(0)) ** 2, axis=-1).mean()
  assert found.within + found.between == pytest.approx(total)


def test_alignment_and_retrieval_by_hand():
  texts = np.array([[0.0, 1.0], [0.0, -2.0]])
  # Cosines to the two texts: 0, 0; 1, -1; 0, 0; 0, 0.
  assert measures.alignment(IMAGES, texts, LABELS) == pytest.approx((0.25, -0.25))
  assert measures.nearest(IMAGES, texts, LABELS) == 0.5  # of equals the first text
  # Nearest to the first text is image 1; to the second image 0, of the wrong class.
  assert measures.retrieval(IMAGES, texts, LABELS) == 0.5
  prototypes = measures.class_means(IMAGES, LABELS, 2)
  np.testing.assert_allclose(prototypes, [[0.5, 0.5], [-1.0, 0.0]])
  assert measures.nearest(IMAGES, prototypes, LABELS) == 1.0


def test_padding_and_absent_classes_count_nowhere():
  junk = np.full((1, 2), 9.0)
  texts = np.array([[1.0, 0.0], [7.0, 7.0], [-1.0, 0.5]])
  padded = Embeddings(
    support=np.concatenate([IMAGES, junk]),
    support_labels=np.array([0, 0, 2, 2, -1]),
    query=np.concatenate([junk, IMAGES]),
    query_labels=np.array([-1, 0, 0, 2, 2]),
    classes=texts,
    scale=np.float32(10),
  )
  plain = Embeddings(IMAGES, LABELS, IMAGES, LABELS, texts[[0, 2]], np.float32(10))
  found = measures.present(padded)
  for ours, theirs in zip(found, plain, strict=True):
    np.testing.assert_array_equal(ours, theirs)
  numbers = measures.measure(found)
  assert numbers["scatter_ratio"] == pytest.approx(0.25 / 0.625)
  # The image at 90° has a cosine of 0 to its text and .45 to the other.
  assert (numbers["accuracy"], numbers["ncc_accuracy"]) == (0.75, 1.0)
  # Mean image (-¼, ¼), mean text ((1, 0) + (-2, 1)/√5) / 2.
  gap = np.hypot(-0.25 - (1 - 2 / 5**0.5) / 2, 0.25 - 0.5 / 5**0.5)
  assert numbers["gap"] == pytest.approx(gap, rel=1e-5)
