"""Attention for a TPU as one kernel: what lies between the products never leaves the chip.

Encoders' sequences are short: all logits of a head fit in a TPU's vector memory, so that no
running softmax is needed. Queries, keys and values stay as the projections make them,
`[B, S, W]` with the heads side by side, and nothing is transposed; the backward pass computes
the weights again from them.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128  # of a vector register: blocks of heads are a multiple, or the whole width
BLOCKS = 6 * 2**20  # bytes of inputs and results that a turn may hold, twice as it prefetches
SCRATCH = 8  # arrays of one head's logits, float32, that the backward pass may need at once
VECTOR_MEMORY = 64 * 2**20  # bytes that a kernel may use; the chips have 96 MiB and more
LEAST = 16 * 2**20  # what the compiler allows without being asked


def fits(tokens: int, width: int, heads: int) -> bool:
  """Whether a head's logits fit in the vector memory: those of all published sizes do."""
  return _memory(tokens, width, heads) <= VECTOR_MEMORY


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def fused_attention(
  q: jax.Array, k: jax.Array, v: jax.Array, heads: int, causal: bool, interpret: bool
) -> jax.Array:
  """Scaled dot-product attention, logits and softmax in float32.

  Args:
    q: `[B, S, W]` bfloat16, the heads side by side.
    k: `[B, S, W]`.
    v: `[B, S, W]`.
    heads: number of heads; divides `W`.
    causal: a position sees itself and earlier ones only.
    interpret: runs the kernel's operations one by one, on any device.

  Returns:
    `[B, S, W]`.
  """
  return _call(_forward, (q, k, v), 1, heads, causal, interpret)[0]


def _attend(q, k, v, heads, causal, interpret):
  return fused_attention(q, k, v, heads, causal, interpret), (q, k, v)


def _attend_back(heads, causal, interpret, residuals, cotangent):
  return tuple(_call(_backward, (*residuals, cotangent), 3, heads, causal, interpret))


fused_attention.defvjp(_attend, _attend_back)


def _call(kernel, inputs, results, heads, causal, interpret):
  """Runs `kernel` for each row and each group of heads."""
  batch, tokens, width = inputs[0].shape
  group = _group(tokens, width, heads)
  block = pl.BlockSpec((1, tokens, width * group // heads), lambda row, part: (row, 0, part))
  shape = jax.ShapeDtypeStruct(inputs[0].shape, inputs[0].dtype)
  return pl.pallas_call(
    functools.partial(kernel, heads=group, causal=causal),
    grid=(batch, heads // group),
    in_specs=[block] * len(inputs),
    out_specs=[block] * results,
    out_shape=[shape] * results,
    interpret=interpret,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "parallel"),
      vmem_limit_bytes=max(LEAST, _memory(tokens, width, heads)),
    ),
  )(*inputs)


def _group(tokens: int, width: int, heads: int) -> int:
  """Heads to a turn of the kernel: as many as `BLOCKS` holds, of a width that is allowed."""
  size = width // heads
  allowed = [n for n in range(1, heads + 1) if heads % n == 0 and n * size % LANES == 0]
  return max(
    (n for n in allowed if _block_bytes(tokens, n * size) <= BLOCKS),
    default=min(allowed, default=heads),
  )


def _block_bytes(tokens: int, width: int) -> int:
  """Of the backward pass: four inputs and three results in bfloat16."""
  return 7 * 2 * tokens * width


def _memory(tokens: int, width: int, heads: int) -> int:
  """Vector memory of the backward pass, which needs more, in bytes."""
  logits = 4 * tokens * -(-tokens // LANES) * LANES
  blocks = _block_bytes(tokens, width * _group(tokens, width, heads) // heads)
  return 2 * blocks + SCRATCH * logits


def _heads(heads: int, *refs):
  """Of each head its lanes, and its part `[S, head_dim]` of each block."""
  size = refs[0].shape[-1] // heads
  for head in range(heads):
    lanes = slice(head * size, (head + 1) * size)
    yield lanes, [ref[0, :, lanes] for ref in refs]


def _product(a, b, contract: tuple[int, int]):
  dimensions = (((contract[0],), (contract[1],)), ((), ()))
  return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def _weights(q, k, causal):
  """Weights `[S, S]` of one head before they are divided by their sums `[S, 1]`."""
  logits = _product(q, k, (1, 1)) * (1 / math.sqrt(q.shape[-1]))
  if causal:
    row, column = (jax.lax.broadcasted_iota(jnp.int32, logits.shape, axis) for axis in (0, 1))
    logits = jnp.where(column <= row, logits, -jnp.inf)
  weights = jnp.exp(logits - logits.max(-1, keepdims=True))
  return weights, weights.sum(-1, keepdims=True)


def _forward(q_ref, k_ref, v_ref, out_ref, *, heads, causal):
  for lanes, (q, k, v) in _heads(heads, q_ref, k_ref, v_ref):
    weights, total = _weights(q, k, causal)
    # The division comes after the product, where there is less to divide.
    out = _product(weights.astype(v.dtype), v, (1, 0)) / total
    out_ref[0, :, lanes] = out.astype(out_ref.dtype)


def _backward(q_ref, k_ref, v_ref, g_ref, dq_ref, dk_ref, dv_ref, *, heads, causal):
  scale = 1 / math.sqrt(q_ref.shape[-1] // heads)
  for lanes, (q, k, v, g) in _heads(heads, q_ref, k_ref, v_ref, g_ref):
    weights, total = _weights(q, k, causal)
    weights = weights / total
    back = _product(g, v, (1, 1))
    # The softmax's own derivative: what is common to a row has no effect.
    logits = weights * (back - (weights * back).sum(-1, keepdims=True)) * scale
    logits = logits.astype(q.dtype)
    dq_ref[0, :, lanes] = _product(logits, k, (1, 0)).astype(q.dtype)
    dk_ref[0, :, lanes] = _product(logits, q, (0, 0)).astype(q.dtype)
    dv_ref[0, :, lanes] = _product(weights.astype(g.dtype), g, (0, 0)).astype(q.dtype)
