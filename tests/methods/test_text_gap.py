"""The gap between images and texts, by hand, and shifts of it."""

import jax.numpy as jnp
import numpy as np

from mdtrap_jax.methods import text_gap
from mdtrap_jax.methods.method import Embeddings
from mdtrap_jax.objectives.losses import cosine_cross_entropy

IMAGE = jnp.array([[3.0, 0.0], [0.0, 2.0], [0.0, 1.0]])
TEXT = jnp.array([[0.0, -4.0], [3.0, 4.0]])
LABELS = jnp.array([0, 1, 1])


def test_the_gap_by_hand():
  # Unit images (1, 0), (0, 1), (0, 1); their texts (0, -1), (.6, .8), (.6, .8).
  gap = text_gap.text_gap(IMAGE, TEXT, LABELS)
  np.testing.assert_allclose(gap, [(1 - 1.2) / 3, (2 + 1 - 1.6) / 3], atol=1e-6)


def test_shifts_against_numpy():
  shifts = np.array([-0.4, 0.0, 0.7], np.float32)
  curve = text_gap.shift_texts(IMAGE, TEXT, LABELS, shifts, 5.0)
  unit = lambda rows: rows / np.linalg.norm(rows, axis=-1, keepdims=True)
  image, text = unit(np.asarray(IMAGE, np.float64)), unit(np.asarray(TEXT, np.float64))
  gap = image.mean(0) - text[np.asarray(LABELS)].mean(0)
  for k, shift in enumerate(shifts):
    move = shift / 2 * gap / np.linalg.norm(gap)
    logits = 5 * unit(image - move) @ unit(text + move).T
    chosen = logits[np.arange(3), np.asarray(LABELS)]
    loss = np.mean(np.log(np.exp(logits).sum(1)) - chosen)
    np.testing.assert_allclose(curve.loss[k], loss, rtol=1e-5)
    accuracy = np.mean(logits.argmax(1) == np.asarray(LABELS))
    np.testing.assert_allclose(curve.accuracy[k], accuracy)
  own = cosine_cross_entropy(IMAGE, TEXT, LABELS, 5.0)
  np.testing.assert_allclose(curve.loss[1], own, rtol=1e-6)


def test_the_best_shift_undoes_a_gap_that_was_made():
  """Three directions in a plane, moved off it to one side for texts, to the other for images."""
  angle = 2 * jnp.pi / 3 * jnp.arange(3)
  plane = jnp.stack([jnp.cos(angle), jnp.sin(angle), jnp.zeros(3)], -1)
  off = jnp.array([[0.0, 0.0, 0.4]])
  image, text = plane + off, plane - off
  found = Embeddings(image, jnp.arange(3), image, jnp.arange(3), text, jnp.float32(4))
  extras = text_gap.diagnose(found)
  # Each is .4/√1.16 off the plane, where classes differ most.
  apart = 2 * 0.4 / 1.16**0.5
  np.testing.assert_allclose(extras["gap"], apart, rtol=1e-5)
  np.testing.assert_allclose(extras["gap_shift"], apart, atol=0.013)  # half a step of the shifts
  assert extras["ncc_accuracy"] == 1.0
  aligned = text_gap.diagnose(found._replace(classes=image))
  np.testing.assert_allclose([aligned["gap"], aligned["gap_shift"]], 0, atol=1e-5)
