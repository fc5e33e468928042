"""Attention for an NVIDIA GPU as one kernel of cuDNN, through `jax.nn`."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from absl import logging

IMPLEMENTATION = "cudnn"


def cudnn_attention(
  q: jax.Array, k: jax.Array, v: jax.Array, heads: int, causal: bool, tokens: int
) -> jax.Array:
  """Scaled dot-product attention whose logits never reach the GPU's memory.

  Args:
    q: `[B, S, W]` bfloat16 or float16.
    k: `[B, S, W]`.
    v: `[B, S, W]`.
    heads: number of heads; divides `W`.
    causal: a position sees itself and earlier ones only.
    tokens: how many of the `S` there are; nothing sees the others, and their result is 0.

  Returns:
    `[B, S, W]`.
  """
  batch, size, _ = q.shape
  # Its backward pass is refused for an odd number of tokens: one more, which nothing sees.
  odd = size % 2
  there = jnp.arange(size)[:, None] < tokens
  # What it leaves where there are no tokens is not said anywhere, in gradients too.
  clear = lambda t: t if tokens == size else jnp.where(there, t, jnp.zeros((), t.dtype))
  fill = lambda t: jnp.pad(clear(t), ((0, 0), (0, odd), (0, 0)))
  split = lambda t: fill(t).reshape(batch, size + odd, heads, -1)
  lengths = None
  if tokens < size + odd:
    # Under `vmap` jax wants lengths that are batched like the queries, so these depend on them.
    lengths = jnp.full((batch,), tokens, jnp.int32) + 0 * (q[:, 0, 0] > 0).astype(jnp.int32)
  out = jax.nn.dot_product_attention(
    split(q),
    split(k),
    split(v),
    is_causal=causal,
    query_seq_lengths=lengths,
    key_value_seq_lengths=lengths,
    implementation=IMPLEMENTATION,
  )
  return clear(out.reshape(batch, size + odd, -1)[:, :size])


@functools.cache
def works(head_dim: int, dtype: jnp.dtype) -> bool:
  """Whether this machine's GPU and cuDNN compile it, forward and backward; says so once if not.

  Args:
    head_dim: width of a head.
    dtype: of queries, keys and values.
  """
  if jax.default_backend() != "gpu":
    return False  # compiled for a GPU that is not here: what cuDNN would do cannot be asked
  array = jax.ShapeDtypeStruct((1, 3, head_dim), dtype)
  total = lambda q, k, v: cudnn_attention(q, k, v, 1, False, 3).astype(jnp.float32).sum()
  try:
    jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(array, array, array).compile()
  except (RuntimeError, NotImplementedError) as error:  # a JaxRuntimeError is a RuntimeError
    reason = str(error).partition("\n")[0]
    logging.warning("attention is not fused: cuDNN cannot (%s); XLA's own is used.", reason)
    return False
  return True
