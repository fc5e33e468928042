"""Nearest class centroid by cosine: prototypes, similarities and their masks.

Legend: `N` support and `Q` query rows, `C` ways, `D` width. A task may hold fewer rows and
classes than its arrays: a row whose label is negative is padding and counts nowhere, and a class
without support rows is never predicted. So tasks of any size run in one compiled program.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mdtrap_jax.objectives.losses import unit_or_zero

POOLS = ("mean", "max", "sum")  # how a class's images make its prototype
DISTANCES = ("cosine", "l2")  # l2: the negative squared distance, as URL's code has it


class Representations(NamedTuple):
  """A task as a head sees it; rows are not normalized."""

  support: jax.Array  # [N, D]
  query: jax.Array  # [Q, D]
  prototypes: jax.Array  # [C, D]; zeros for an absent class before a head maps them


class Prediction(NamedTuple):
  """How a task's queries are classified."""

  accuracy: jax.Array  # [] in [0, 1], over the rows that are not padding
  cosines: jax.Array  # [Q, C], or logits; -inf for a class that the task does not have


def membership(labels: jax.Array, ways: int, dtype: jax.typing.DTypeLike) -> jax.Array:
  """`[N, C]`, 1 where the row is of the class; all 0 for padding."""
  return jax.nn.one_hot(labels, ways, dtype=dtype)


def prototypes(features: jax.Array, labels: jax.Array, ways: int, pool: str = "mean") -> jax.Array:
  """One row a class, `[C, ...]` from `[N, ...]`; zeros for an absent class.

  Args:
    features: `[N, ...]`.
    labels: `[N] int32`.
    ways: `C`.
    pool: of `POOLS`: the mean, the largest value of each feature, or the sum.
  """
  member = membership(labels, ways, features.dtype)
  if pool == "max":
    own = (labels[None] == jnp.arange(ways)[:, None]).reshape(ways, -1, *(1,) * (features.ndim - 1))
    largest = jnp.where(own, features[None], -jnp.inf).max(1)
    return jnp.where(own.any(1), largest, 0)
  total = jnp.tensordot(member, features, axes=(0, 0))
  if pool == "sum":
    return total
  counts = jnp.maximum(member.sum(0), 1)
  return total / counts.reshape(ways, *(1,) * (features.ndim - 1))


def cosines(images: jax.Array, class_prototypes: jax.Array) -> jax.Array:
  """`[Q, C]` from `[Q, D]` and `[C, D]`."""
  return unit_or_zero(images) @ unit_or_zero(class_prototypes).T


def similarities(
  images: jax.Array, class_prototypes: jax.Array, distance: str = "cosine"
) -> jax.Array:
  """`[Q, C]` from `[Q, D]` and `[C, D]`, by one of `DISTANCES`: the larger, the nearer."""
  if distance == "cosine":
    return cosines(images, class_prototypes)
  squares = lambda rows: (rows**2).sum(-1)
  return (
    2 * images @ class_prototypes.T - squares(images)[:, None] - squares(class_prototypes)[None]
  )


def predict(
  images: jax.Array,
  class_prototypes: jax.Array,
  support_labels: jax.Array,
  query_labels: jax.Array,
  distance: str = "cosine",
) -> Prediction:
  """Classifies queries by their nearest prototype.

  Args:
    images: `[Q, D]`, of the queries.
    class_prototypes: `[C, D]`.
    support_labels: `[N] int32`; says which classes the task has.
    query_labels: `[Q] int32`.
    distance: of `DISTANCES`.
  """
  found = similarities(images, class_prototypes, distance)
  return decide(found, support_labels, query_labels)


def decide(similarity: jax.Array, support_labels: jax.Array, query_labels: jax.Array) -> Prediction:
  """Classifies queries by what is largest of `similarity [Q, C]`: cosines, or any logits."""
  ways = similarity.shape[-1]
  present = membership(support_labels, ways, jnp.float32).sum(0) > 0
  similarity = jnp.where(present[None], similarity, -jnp.inf)
  real = query_labels >= 0
  correct = (jnp.argmax(similarity, axis=-1) == query_labels) & real
  # A NaN has an argmax too: it must not count as a hit.
  correct &= ~jnp.isnan(similarity).any(-1)
  return Prediction(correct.sum() / jnp.maximum(real.sum(), 1), similarity)
