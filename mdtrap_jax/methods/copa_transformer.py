"""CoPA with transformer heads: one simple block on feature maps, for images and prototypes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from mdtrap_jax.methods.head import Head

HEADS = 8
EPSILON = 1e-6  # of the layer norm
POSITION_STD = 0.02


def _identity(key, shape, dtype):
  del key
  return jnp.eye(*shape, dtype=dtype)


class SimpleBlock(nn.Module):
  """`linear(layernorm(x + attention(x)))` over CLS and the map's positions; gives CLS.

  Query, key, value and the last linear map start as the identity; attention has no output
  projection.
  """

  @nn.compact
  def __call__(self, maps: jax.Array) -> jax.Array:
    """Maps `[N, h, w, D]` to `[N, D]`."""
    num, height, width, dim = maps.shape
    tokens = maps.reshape(num, height * width, dim)
    dtype = maps.dtype
    cls = self.param("cls", nn.initializers.zeros, (1, 1, dim), dtype)
    position = self.param(
      "position", nn.initializers.normal(POSITION_STD), (1, 1 + height * width, dim), dtype
    )
    x = jnp.concatenate([jnp.broadcast_to(cls, (num, 1, dim)), tokens], axis=1) + position
    x = x[:, 0] + self._attention(x)  # only CLS is read, so only CLS is computed
    x = nn.LayerNorm(epsilon=EPSILON, param_dtype=dtype, name="norm")(x)
    return nn.Dense(dim, kernel_init=_identity, param_dtype=dtype, name="linear")(x)

  def _attention(self, x: jax.Array) -> jax.Array:
    """CLS's row of the attention's output, `[N, D]`."""
    dim, dtype = x.shape[-1], x.dtype
    project = lambda name, rows: nn.Dense(dim, kernel_init=_identity, param_dtype=dtype, name=name)(
      rows
    )
    split = lambda rows: rows.reshape(*rows.shape[:-1], HEADS, dim // HEADS)
    q = split(project("query", x[:, 0]))
    k, v = (split(project(name, x)) for name in ("key", "value"))
    scores = jnp.einsum("nhd,nkhd->nhk", q, k) / jnp.sqrt(jnp.asarray(dim // HEADS, dtype))
    out = jnp.einsum("nhk,nkhd->nhd", jax.nn.softmax(scores, axis=-1), v)
    return out.reshape(x.shape[0], dim)


def two_transformers() -> Head:
  """A block of their own for images and for prototypes (class means of feature maps).

  Raises:
    ValueError: when a task's features are not maps, or their width is no multiple of 8.
  """
  block = SimpleBlock()

  def init(key, row):
    if len(row.shape) != 3:
      raise ValueError(
        f"features of shape {list(row.shape)}: copa_transformer needs feature maps "
        "[h, w, D]; store such, or compute them with --config.model.name=resnet18."
      )
    if row.shape[-1] % HEADS:
      raise ValueError(
        f"features of width {row.shape[-1]}: copa_transformer has {HEADS} attention heads "
        f"and needs a multiple of {HEADS}."
      )
    maps = jnp.zeros((1, *row.shape), row.dtype)
    keys = jax.random.split(key)
    return {
      name: block.init(k, maps)["params"] for name, k in zip(("image", "proto"), keys, strict=True)
    }

  return Head(
    init=init,
    images=lambda params, maps: block.apply({"params": params["image"]}, maps),
    prototypes=lambda params, maps: block.apply({"params": params["proto"]}, maps),
  )
