"""Relation alignment (RA): images keep to one another the distances that their texts have."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mdtrap_jax.objectives import losses
from mdtrap_jax.objectives.term import Context, make_term


class RelationMemory(NamedTuple):
  """What RA carries from step to step."""

  relation: jax.Array  # [N, M], `R_t` of the step just done
  target: jax.Array  # [N, M], the target it was compared with


def add_relation_alignment(context: Context, weight: float = 3.0, divergence: str = "cosine"):
  """`L_ra` (RA): pulls the visual relation from its own past to the textual relation.

  `target_t = a_t R_{t-1} + (1 - a_t) R_text`, `a_t = 1 - t / fade`, `t` counted from `start`.
  There is no previous relation in the first step, which is only remembered.

  Args:
    context: of the chain; `num_views` and `num_clean` give the relation's shape.
    weight: β.
    divergence: `cosine` (the reference's code) or `softmax` (the paper's text).

  Raises:
    ValueError: an unknown divergence.
  """
  if divergence not in losses.DIVERGENCES:
    raise ValueError(f"divergence={divergence!r}: choose one of {sorted(losses.DIVERGENCES)}.")
  zeros = jnp.zeros((context.num_views, context.num_clean))

  def loss(features, batch, memory, key, step):
    del key
    relation = losses.visual_relation(features.image, features.clean)
    text = losses.text_relation(features.text, batch.labels, batch.clean_labels)
    # Where T is no multiple of 5, `fade` may end a few steps before the window does.
    share = jnp.maximum(1 - (step - context.start) / context.fade, 0.0)
    target = share * memory.relation + (1 - share) * text
    value = losses.DIVERGENCES[divergence](target, relation)
    return value, jax.lax.stop_gradient(RelationMemory(relation, target))

  memory = RelationMemory(zeros, zeros)
  return _only_with_clean(make_term("ra", loss, weight, context.start + 1, context.stop, memory))


def _only_with_clean(term: optax.GradientTransformationExtraArgs):
  """The same term, which rests in a phase without the clean pass: there is nothing to compare."""

  def update(updates, state, params=None, *, features, **extra_args):
    if features.clean is None:
      return updates, state._replace(norm=jnp.zeros_like(state.norm))
    return term.update(updates, state, params, features=features, **extra_args)

  return optax.GradientTransformationExtraArgs(term.init, update)


class SeenMemory(NamedTuple):
  """What RA carries from minibatch to minibatch: each image as it was last seen."""

  image: jax.Array  # [M, D], of unit length: its augmented view
  clean: jax.Array  # [M, D], likewise
  seen: jax.Array  # [M] bool


def add_relation_alignment_in_minibatches(
  context: Context, weight: float = 3.0, divergence: str = "cosine"
):
  """RA where a step sees `B` of `M` images: relations are those within the minibatch.

  `R_{t-1}` of two images is between them as each was when it was last in a minibatch. One with an
  image that has not been in any (those of the first epoch) is only remembered, as the first step
  is. With one row of every image in each step this is `add_relation_alignment`. The papers do not
  say what they do; this is the definition of the library.

  Args:
    context: of the chain; `num_clean` is `M` and `width` is `D`.
    weight: β.
    divergence: as there.

  Raises:
    ValueError: an unknown divergence.
  """
  if divergence not in losses.DIVERGENCES:
    raise ValueError(f"divergence={divergence!r}: choose one of {sorted(losses.DIVERGENCES)}.")
  size = (context.num_clean, context.width)
  memory = SeenMemory(jnp.zeros(size), jnp.zeros(size), jnp.zeros(size[:1], bool))

  def loss(features, batch, memory, key, step):
    del key
    z, h, rows = losses.unit(features.image), losses.unit(features.clean), batch.images
    text = losses.text_relation(features.text, batch.labels, batch.clean_labels)
    share = jnp.maximum(1 - (step - context.start) / context.fade, 0.0)
    target = share * memory.image[rows] @ memory.clean[rows].T + (1 - share) * text
    value = losses.DIVERGENCES[divergence](target, z @ h.T)
    value = jnp.where(memory.seen[rows].all(), value, jnp.zeros_like(value))
    # Of an image that is in a minibatch several times, in several views, the last row counts.
    turn = jnp.full(memory.seen.shape, -1).at[rows].max(jnp.arange(len(rows)))
    now = lambda old, new: jnp.where(turn[:, None] >= 0, new[turn].astype(old.dtype), old)
    remembered = SeenMemory(
      now(memory.image, z), now(memory.clean, h), memory.seen.at[rows].set(True)
    )
    return value, jax.lax.stop_gradient(remembered)

  return _only_with_clean(make_term("ra", loss, weight, context.start + 1, context.stop, memory))
