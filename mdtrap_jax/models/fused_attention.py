"""Attention for a TPU as one kernel: what lies between the products never leaves the chip.

Encoders' sequences are short: all logits of a head fit in a TPU's vector memory, so that no
running softmax is needed. Queries, keys and values stay as one product makes them, side by
side, and nothing is transposed; the backward pass computes the weights again from them.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mdtrap_jax.models.rope import Rope, tables

LANES = 128  # of a vector register
SCRATCH = 8  # arrays of one head's logits, float32, that the backward pass may need at once
VECTOR_MEMORY = 64 * 2**20  # bytes that a kernel may use; the chips have 96 MiB and more
LEAST = 16 * 2**20  # what the compiler allows without being asked


def fits(tokens: int, width: int, rope: Rope | None = None) -> bool:
  """Whether an image's queries, keys, values and a head's logits fit in the vector memory."""
  return _memory(tokens, width, rope) <= VECTOR_MEMORY


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4, 5))
def fused_attention(
  qkv: jax.Array, tokens: int, heads: int, causal: bool, rope: Rope | None, interpret: bool
) -> jax.Array:
  """Scaled dot-product attention, logits and softmax in float32.

  Args:
    qkv: `[B, S, 3·W]`: queries, keys and values beside each other, in each the heads; bfloat16
      on a TPU.
    tokens: how many of the `S` there are; the others fill up the tiles, and their result is 0.
    heads: number of heads; divides `W`.
    causal: a position sees itself and earlier ones only.
    rope: turns queries and keys before they meet.
    interpret: runs the kernel's operations one by one, on any device.

  Returns:
    `[B, S, W]`.
  """
  width = qkv.shape[-1] // 3
  return _call(_forward, (qkv,), width, tokens, heads, causal, rope, interpret)


def _attend(qkv, *static):
  return fused_attention(qkv, *static), qkv


def _attend_back(*arguments):
  *static, qkv, cotangent = arguments
  return (_call(_backward, (qkv, cotangent), qkv.shape[-1], *static),)


fused_attention.defvjp(_attend, _attend_back)


def _call(kernel, inputs, width, tokens, heads, causal, rope, interpret):
  """Runs `kernel` for each image; the result is `[B, S, width]`."""
  batch, rows = inputs[0].shape[:2]
  backward = len(inputs) > 1
  image = width // 3 if backward else width
  block = lambda width: pl.BlockSpec((1, rows, width), lambda image: (image, 0, 0))
  specs, room = [block(array.shape[-1]) for array in inputs], []
  run = functools.partial(kernel, tokens=tokens, heads=heads, causal=causal)
  if rope is not None:
    turns = jnp.asarray(_turns(rope, tokens))
    inputs, room = (*inputs, turns), [pltpu.VMEM((1, rows, 2 * image), inputs[0].dtype)]
    specs.append(pl.BlockSpec(turns.shape, lambda image: (0, 0, 0)))
    plain = run  # what is taken in comes first, then the result, then the room
    run = lambda *refs: plain(*refs[:-3], refs[-2], turning=(refs[-3], refs[-1]))
  return pl.pallas_call(
    run,
    grid=(batch,),
    in_specs=specs,
    out_specs=block(width),
    out_shape=jax.ShapeDtypeStruct((batch, rows, width), inputs[0].dtype),
    scratch_shapes=room,
    cost_estimate=pl.CostEstimate(
      flops=2 * (5 if backward else 2) * batch * rows * tokens * image,
      bytes_accessed=inputs[0].dtype.itemsize * (7 if backward else 4) * batch * rows * image,
      transcendentals=batch * heads * tokens * tokens,
    ),
    interpret=interpret,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel",),
      # Half as much again: the compiler's own copies go beyond what is counted.
      vmem_limit_bytes=max(LEAST, 3 * _memory(rows, image, rope) // 2),
    ),
  )(*inputs)


def _memory(tokens: int, width: int, rope: Rope | None) -> int:
  """Vector memory of the backward pass, which needs more, in bytes."""
  blocks = 7 * 2 * tokens * width  # queries, keys, values, their cotangents and the result's
  logits = 4 * tokens * -(-tokens // LANES) * LANES
  turned = 0 if rope is None else 4 * tokens * (width + 4 * math.lcm(LANES, rope.head_dim))
  # The next image's blocks come while one is computed.
  return 2 * blocks + SCRATCH * logits + turned


def _head(ref, part, head, heads, tokens, parts=3):
  """Where one head's part `[S, head_dim]` lies in a block."""
  size = ref.shape[-1] // (parts * heads)
  start = (part * heads + head) * size
  return 0, slice(0, tokens), slice(start, start + size)


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


def _clear(ref, tokens):
  """Zeros where there are no tokens."""
  if tokens < ref.shape[1]:
    ref[0, tokens:] = jnp.zeros((ref.shape[1] - tokens, ref.shape[2]), ref.dtype)


def _turns(rope, tokens):
  """Cosines and sines `[2, tokens, L]` of as many heads as fill whole registers."""
  period = math.lcm(LANES, rope.head_dim)
  return np.tile(tables(rope, tokens), period // rope.head_dim).astype(np.float32)


def _turn(ref, turns_ref, out_ref, back=False):
  """Turns queries and keys, all heads at once, by their positions; or gradients of them, back."""
  _, tokens, period = turns_ref.shape
  width = 2 * ref.shape[-1] // 3
  for start in range(0, width, LANES):
    lanes = 0, slice(0, tokens), slice(start, min(start + LANES, width))
    x, here = ref[lanes], start % period
    cos, sin = (turns_ref[part, :, here : here + x.shape[1]] for part in range(2))
    # The other of each pair of channels, by a product with zeros and ones, which is exact.
    row, column = (jax.lax.broadcasted_iota(jnp.int32, 2 * x.shape[1:], axis) for axis in (0, 1))
    partner = _product(x, (row == column ^ 1).astype(x.dtype), (1, 0)) * (-sin if back else sin)
    out_ref[lanes] = (x * cos + partner).astype(x.dtype)


def _compared(qkv_ref, turning, tokens, heads):
  """Queries and keys of each head, turned in the room that there is for them."""
  ref, parts = qkv_ref, 3
  if turning:
    turns_ref, ref = turning
    parts = 2
    _turn(qkv_ref, turns_ref, ref)
  return lambda part, head: ref[_head(ref, part, head, heads, tokens, parts)]


def _forward(qkv_ref, out_ref, *, tokens, heads, causal, turning=()):
  _clear(out_ref, tokens)
  compared = _compared(qkv_ref, turning, tokens, heads)
  for head in range(heads):
    v = qkv_ref[_head(qkv_ref, 2, head, heads, tokens)]
    weights, total = _weights(compared(0, head), compared(1, head), causal)
    # The division comes after the product, where there is less to divide.
    out = _product(weights.astype(v.dtype), v, (1, 0)) / total
    out_ref[_head(out_ref, 0, head, heads, tokens, parts=1)] = out.astype(out_ref.dtype)


def _backward(qkv_ref, g_ref, back_ref, *, tokens, heads, causal, turning=()):
  scale = 1 / math.sqrt(g_ref.shape[-1] // heads)
  _clear(back_ref, tokens)
  compared = _compared(qkv_ref, turning, tokens, heads)
  for head in range(heads):
    lanes = [_head(qkv_ref, part, head, heads, tokens) for part in range(3)]
    q, k, v = compared(0, head), compared(1, head), qkv_ref[lanes[2]]
    g = g_ref[_head(g_ref, 0, head, heads, tokens, parts=1)]
    weights, total = _weights(q, k, causal)
    weights = weights / total
    back = _product(g, v, (1, 1))
    # The softmax's own derivative: what is common to a row has no effect.
    logits = weights * (back - (weights * back).sum(-1, keepdims=True)) * scale
    logits = logits.astype(q.dtype)
    back_ref[lanes[0]] = _product(logits, k, (1, 0)).astype(q.dtype)
    back_ref[lanes[1]] = _product(logits, q, (0, 0)).astype(q.dtype)
    back_ref[lanes[2]] = _product(weights.astype(g.dtype), g, (0, 0)).astype(q.dtype)
  if turning:
    _turn(back_ref, turning[0], back_ref, back=True)
