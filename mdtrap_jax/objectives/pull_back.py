"""From cotangents on the embeddings to a gradient on the trainable parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def pull_back() -> optax.GradientTransformationExtraArgs:
  """Applies the encoder's vector-Jacobian product to the updates, once per chain.

  `update` takes the keyword argument `features_vjp`, the second result of
  `jax.vjp(encode, params)`: updates shaped like the features go in, updates shaped like
  `params` come out.
  """

  def init(params):
    del params
    return optax.EmptyState()

  def update(updates, state, params=None, *, features_vjp, **extra_args):
    del params, extra_args
    (gradient,) = features_vjp(updates)
    return gradient, state

  return optax.GradientTransformationExtraArgs(init, update)


def zero_cotangents(features):
  """What the first term of a chain adds to: zeros shaped like the features."""
  return jax.tree.map(jnp.zeros_like, features)
