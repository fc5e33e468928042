"""The gap between images and texts, and how far from it classification would be best.

The experiment of Liang et al. (2022, section 4.2), as "Mind the Discriminability Trap" uses it:
both modalities are moved along their mean difference, and the shorter the way from where training
left them to where the loss is least, the better they are aligned. Functions of one task: `Q`
images, `C` classes, `D` width, `S` shifts.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mdtrap_jax.methods import ncc
from mdtrap_jax.methods.method import Embeddings
from mdtrap_jax.objectives.losses import cosine_cross_entropy, unit, unit_or_zero

# Lengths by which the gap is made smaller (> 0) or larger; gaps of unit vectors are 0 to 2.
SHIFTS = np.linspace(-2.0, 2.0, 161, dtype=np.float32)


class TextShiftCurve(NamedTuple):
  """What images are worth when the gap is changed by hand."""

  loss: jax.Array  # [S], cross-entropy with the texts, in nats
  accuracy: jax.Array  # [S]


def text_gap(image: jax.Array, text: jax.Array, labels: jax.Array) -> jax.Array:
  """Mean unit image minus the mean unit text of its class, `[D]`.

  Args:
    image: `[Q, D]`.
    text: `[C, D]`.
    labels: `[Q] int32`.
  """
  return (unit(image) - unit(text)[labels]).mean(0)


def shift_texts(
  image: jax.Array, text: jax.Array, labels: jax.Array, shifts: jax.Array, logit_scale: jax.Array
) -> TextShiftCurve:
  """Moves images and texts towards each other along the gap, and classifies.

  Each side moves half of a shift's length and is normalized again; a negative one moves them
  apart.

  Args:
    image: `[Q, D]`.
    text: `[C, D]`.
    labels: `[Q] int32`.
    shifts: `[S]`, lengths; 0 leaves both as they are.
    logit_scale: `s`, of the loss.
  """
  direction = unit_or_zero(text_gap(image, text, labels))[None]

  def at(shift):
    images, texts = unit(image) - 0.5 * shift * direction, unit(text) + 0.5 * shift * direction
    accuracy = (jnp.argmax(unit(images) @ unit(texts).T, axis=-1) == labels).mean()
    return TextShiftCurve(cosine_cross_entropy(images, texts, labels, logit_scale), accuracy)

  return jax.lax.map(at, jnp.asarray(shifts))


def best_shift(curve: TextShiftCurve, shifts: jax.Array) -> jax.Array:
  """The shift of the least loss, `[]`, of equals the shortest; its size is the paper's distance."""
  least = curve.loss <= curve.loss.min() + 1e-6
  return jnp.asarray(shifts)[jnp.argmin(jnp.where(least, jnp.abs(shifts), jnp.inf))]


def diagnose(found: Embeddings) -> dict[str, jax.Array]:
  """The extras of an evaluation, each `[]`.

  Returns:
    `gap`: the gap's length; `gap_shift`: the distance of the best point; `ncc_accuracy`: of the
    nearest class mean of the support images, which no text takes part in.
  """
  means = ncc.prototypes(unit(found.support), found.support_labels, len(found.classes))
  curve = shift_texts(found.query, found.classes, found.query_labels, SHIFTS, found.scale)
  predicted = ncc.predict(found.query, means, found.support_labels, found.query_labels)
  return {
    "gap": jnp.linalg.norm(text_gap(found.query, found.classes, found.query_labels)),
    "gap_shift": jnp.abs(best_shift(curve, SHIFTS)),
    "ncc_accuracy": predicted.accuracy,
  }
