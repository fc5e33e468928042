"""The gap between prototypes and images: its size, what shifting it does, how a map bounds it.

After the CoPA paper (NeurIPS 2024); the shift experiment is Liang et al.'s (2022). Functions of
one task; legend as in `methods/ncc.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mdtrap_jax.data.task import Task
from mdtrap_jax.methods import ncc
from mdtrap_jax.methods.ncc import Representations
from mdtrap_jax.objectives.losses import symmetric_cross_entropy, unit_or_zero

ROUNDING = 1e-6  # a gap of unit-norm rows that is shorter is none: its direction is noise


class ShiftCurve(NamedTuple):
  """What a task's queries say when the gap is set by hand."""

  loss: jax.Array  # [S], symmetric cross-entropy of the queries, in nats
  accuracy: jax.Array  # [S]


def _means(representations: Representations, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mean support image and mean prototype, each `[D]`; padding and absent classes left out.

  Every image counts its own prototype, so a class weighs as much as it has images.
  """
  ways = representations.prototypes.shape[0]
  member = ncc.membership(labels, ways, representations.support.dtype)
  total = jnp.maximum(member.sum(), 1)
  return (
    member.sum(1) @ representations.support / total,
    member.sum(0) @ representations.prototypes / total,
  )


def gap_vector(representations: Representations, labels: jax.Array) -> jax.Array:
  """Mean unit-norm image minus mean unit-norm prototype, `[D]`, over the support set.

  Zeros where there is no gap but rounding, as with one image a class.
  """
  normalized = Representations(*map(unit_or_zero, representations))
  image, prototype = _means(normalized, labels)
  vector = image - prototype
  return jnp.where(jnp.linalg.norm(vector) < ROUNDING, 0, vector)


def gap(representations: Representations, labels: jax.Array) -> jax.Array:
  """Length of the gap, `[]`, from 0 to 2."""
  return jnp.linalg.norm(gap_vector(representations, labels))


def shift_gap(
  representations: Representations, task: Task, distances: jax.Array, logit_scale: float
) -> ShiftCurve:
  """Moves images and prototypes along the gap until it has given lengths, and classifies.

  Both sides move half the way along the gap's direction and are normalized again; a negative
  length means that they have changed places.

  Args:
    representations: of the task.
    task: its labels.
    distances: `[S]`, the lengths.
    logit_scale: of the loss.
  """
  query, prototypes = unit_or_zero(representations.query), unit_or_zero(representations.prototypes)
  vector = gap_vector(representations, task.support_labels)
  length = jnp.linalg.norm(vector)
  direction = unit_or_zero(vector)

  def at(distance):
    move = 0.5 * (distance - length) * direction[None]
    images, moved = query + move, prototypes - move
    return ShiftCurve(
      symmetric_cross_entropy(images, moved, task.query_labels, logit_scale),
      ncc.predict(images, moved, task.support_labels, task.query_labels).accuracy,
    )

  return jax.lax.map(at, distances)


def bound_scale(weight: jax.Array, delta: jax.Array) -> jax.Array:
  """`√M ‖Θ‖_F`, `[]`: the gap after a shared map is at most this times the gap before it.

  `M` is the largest squared cosine between the gap and a column of `Θ`. The map is of unit-norm
  embeddings and is not followed by another normalization. (Embeddings as they are would have no
  gap to map: prototypes are means of images.)

  Args:
    weight: `Θ [D, D]`, applied as `x Θ`.
    delta: `[D]`, from `gap_vector`, of embeddings that are not mapped.
  """
  cosines = unit_or_zero(delta) @ unit_or_zero(weight.T).T
  return jnp.sqrt(jnp.max(cosines**2)) * jnp.linalg.norm(weight)


def gap_ratio(weight: jax.Array, delta: jax.Array) -> jax.Array:
  """The gap after a shared map in units of the gap before it, `[]`; 1 for the identity.

  Never over `bound_scale`. Without a gap it is 0.

  Args:
    weight: `Θ [D, D]`, applied as `x Θ`.
    delta: `[D]`, from `gap_vector`, of embeddings that are not mapped.
  """
  return jnp.linalg.norm(unit_or_zero(delta) @ weight)
