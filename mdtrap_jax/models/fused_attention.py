"""Attention for a TPU as one kernel: what lies between the products never leaves the chip.

Encoders' sequences are short: a query's logits for all keys fit in a TPU's vector memory, so that
no running softmax is needed. Queries, keys and values stay as one product makes them, side by
side; the backward pass computes the weights again from them.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mdtrap_jax.models import attention_kernel
from mdtrap_jax.models.attention_kernel import LANES
from mdtrap_jax.models.rope import Rope, tables

SCRATCH = 8  # arrays of a head's logits, float32, that the backward pass may need at once
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
  return _call(attention_kernel.forward, (qkv,), width, tokens, heads, causal, rope, interpret)


def _attend(qkv, *static):
  return fused_attention(qkv, *static), qkv


def _attend_back(*arguments):
  *static, qkv, cotangent = arguments
  return (_call(attention_kernel.backward, (qkv, cotangent), qkv.shape[-1], *static),)


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
  queries = tokens if tokens <= attention_kernel.WHOLE else attention_kernel.TILE
  logits = 4 * tokens * -(-queries // LANES) * LANES
  turned = 0 if rope is None else 4 * tokens * (width + 4 * math.lcm(LANES, rope.head_dim))
  # The next image's blocks come while one is computed.
  return 2 * blocks + SCRATCH * logits + turned


def _turns(rope, tokens):
  """Cosines and sines `[2, tokens, L]` of as many heads as fill whole registers."""
  period = math.lcm(LANES, rope.head_dim)
  return np.tile(tables(rope, tokens), period // rope.head_dim).astype(np.float32)
