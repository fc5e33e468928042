"""What a loss term is: an optax transform whose updates are cotangents on the embeddings.

A term adds the gradient of its own loss with respect to `Features`; `pull_back` turns their
sum into a gradient on the trainable parameters. The gradient is linear in the cotangent, so
the chain equals the gradient of the summed loss and costs one backward pass however many
terms there are. What a term adds, before it is added, is the paper's decomposition: each term
keeps its value, its norm and its cosine with the terms before it in its state.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Features(NamedTuple):
  """The embeddings of one step, raw (not normalized)."""

  image: jax.Array  # [N, D] float32, support views: view-major, then class, then shot
  clean: jax.Array | None  # [M, D] float32, clean images; None while no term needs them
  text: jax.Array  # [C, D] float32
  # [N, P, W] and [M, P, W] float32, the patch tokens of the same images, row by row, after the
  # encoder's last norm and without a class token; None while no term needs them
  patches: jax.Array | None = None
  clean_patches: jax.Array | None = None


class Batch(NamedTuple):
  """What a step knows about the rows of its features."""

  labels: jax.Array  # [N] int32
  views: jax.Array  # [N] int32, the recipe that made the row; 0 is the clean view
  clean_labels: jax.Array  # [M] int32
  images: jax.Array | None = None  # [N] int32, in minibatches of a large support: which are these


class Context(NamedTuple):
  """What a term may need to know when it is built; all static."""

  logit_scale: float  # s
  num_views: int  # N
  num_clean: int  # M
  start: int  # first step in which the term is on
  stop: int  # one past the last
  fade: int  # steps in which RA's target goes from the visual relation to the textual one
  width: int = 0  # D; known where steps see minibatches of a large support


class TermState(NamedTuple):
  """State of one term; `weight` may be replaced to sweep it by `vmap`."""

  weight: jax.Array  # [] float32
  value: jax.Array  # [] float32, the unweighted loss when the term was last on, else NaN
  norm: jax.Array  # [] float32, length of its weighted cotangent on `image`, 0 while off
  cosine: jax.Array  # [] float32, between that and the terms before it, NaN without one
  memory: Any  # what the loss carries from step to step; () for most


# (features, batch, memory, key, step) -> (loss [], memory)
Loss = Callable[[Features, Batch, Any, jax.Array, jax.Array], tuple[jax.Array, Any]]


def make_term(
  name: str, loss: Loss, weight: float, start: int, stop: int, memory: Any = ()
) -> optax.GradientTransformationExtraArgs:
  """Wraps a loss on features as a transform that adds its weighted cotangent.

  Args:
    name: of the term; makes its random stream its own.
    loss: pure; called in every step, also while the term is off, so that `memory` is current.
    weight: initial value of `TermState.weight`.
    start: first step in which the cotangent is added.
    stop: one past the last such step.
    memory: initial memory; arrays of fixed shape.

  Returns:
    A transform whose `update` takes the keyword arguments `features`, `batch`, `key` and
    `step` and ignores further ones. Where the term is off it returns the updates untouched.
  """
  stream = zlib.crc32(name.encode())

  def init(params):
    dtype = jnp.result_type(*jax.tree.leaves(params), jnp.float32)
    nan = jnp.full((), jnp.nan, dtype)
    return TermState(jnp.asarray(weight, dtype), nan, jnp.zeros((), dtype), nan, memory)

  def update(updates, state, params=None, *, features, batch, key, step, **extra_args):
    del params, extra_args
    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    key = jax.random.fold_in(key, stream)
    (value, new_memory), gradient = value_and_grad(features, batch, state.memory, key, step)
    on = (step >= start) & (step < stop) & (state.weight != 0)
    cotangent = jax.tree.map(
      lambda g: jnp.where(on, state.weight.astype(g.dtype) * g, jnp.zeros_like(g)), gradient
    )
    norm, before = jnp.linalg.norm(cotangent.image), jnp.linalg.norm(updates.image)
    cosine = jnp.vdot(cotangent.image, updates.image) / (norm * before)
    new_state = TermState(
      weight=state.weight,
      value=jnp.where(on, value, state.value).astype(state.value.dtype),
      norm=norm.astype(state.norm.dtype),
      cosine=cosine.astype(state.cosine.dtype),
      memory=new_memory,
    )
    # `where` and not `+ 0`: a loss that overflows while its term is off must not leak NaN.
    added = jax.tree.map(lambda u, c: jnp.where(on, u + c.astype(u.dtype), u), updates, cotangent)
    return added, new_state

  return optax.GradientTransformationExtraArgs(init, update)
