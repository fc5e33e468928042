"""CoPA with linear heads: separate maps for images and prototypes."""

from __future__ import annotations

import math

import jax.numpy as jnp
import optax

from mdtrap_jax.methods.head import Head
from mdtrap_jax.methods.linear import linear

LOGIT_SCALE = math.exp(2.0)  # the reference's temperature, not learned


def two_linear() -> Head:
  """`W_image` and `W_proto [D, D]`, both the identity at the start."""

  def init(key, row):
    del key
    identity = jnp.eye(row.shape[-1], dtype=row.dtype)
    return {"image": identity, "proto": identity}

  return Head(
    init=init,
    images=lambda params, rows: linear(rows, params["image"]),
    prototypes=lambda params, rows: linear(rows, params["proto"]),
  )


def adam_with_l2(learning_rate: float, l2: float) -> optax.GradientTransformation:
  """Adam with `l2 · W` added to the gradient, before the moments: not AdamW's decay."""
  return optax.chain(optax.add_decayed_weights(l2), optax.adam(learning_rate))
