"""Randomness by identity: every number follows from (seed, episode, stream, step) alone.

An episode's data and draws therefore never depend on the batch it runs in, on the number of
devices or on what ran before it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

STREAMS = ("views", "lora", "dropout", "terms", "batches")


def episode_key(seed: int, episode: jax.Array | int) -> jax.Array:
  """The key of one episode, `[]` typed."""
  return jax.random.fold_in(jax.random.key(seed), episode)


def fold(keys: jax.Array, number: jax.Array | int) -> jax.Array:
  """Folds a number into a key `[]`, or into each of `[B]` keys."""
  if keys.ndim == 0:
    return jax.random.fold_in(keys, number)
  return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)


def row_keys(key: jax.Array, rows: int) -> jax.Array:
  """`[rows]` keys, one for each row of a batch.

  A row's draws then do not depend on how many others there are or are encoded with it.
  """
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(rows))


def rows_of_step(key: jax.Array, step: jax.Array, size: int, total: int) -> jax.Array:
  """`[size] int32`, of `total` rows those of a step, in this epoch's random order.

  What is left of an epoch after its last whole batch is left out: fixed shapes.
  """
  per_epoch = total // size
  order = jax.random.permutation(stream(key, "batches", step // per_epoch), total)
  return jax.lax.dynamic_slice_in_dim(order, (step % per_epoch) * size, size)


def stream(key: jax.Array, name: str, step: jax.Array | int | None = None) -> jax.Array:
  """A key for one use within an episode, and for one step of it.

  Args:
    key: an episode's key; may be used for any number of streams.
    name: one of `STREAMS`.
    step: folded in when given.
  """
  key = jax.random.fold_in(key, STREAMS.index(name))
  return key if step is None else jax.random.fold_in(key, step)
