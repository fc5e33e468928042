"""What the attention kernel for a TPU does with one image: forward and backward.

A chip's units work side by side only on what does not wait for each other, so heads go through
each stage together. Those that share a vector register are told apart by zeros and not by moving
lanes, and logits are `[keys, queries]`: sums over keys then go down the registers, not across
their lanes, and what products need turned over are queries, keys and values, not the logits.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

LANES = 128  # of a vector register
AHEAD = 2  # groups of heads that the forward pass takes through its stages together
WHOLE = 384  # tokens up to which all queries are taken at once; of more, TILE at a time
TILE = 256


def _lanes(ref, part, group, groups, rows, parts=3):
  """Where a part of a group of heads, `[rows, each·size]`, lies in a block."""
  width = ref.shape[-1] // (parts * groups)
  start = (part * groups + group) * width
  return 0, rows, slice(start, start + width)


def _by_tiles(tokens, run):
  """The sum of what `run` makes of the queries from a first one on, all at once or by tiles."""
  tiles = 0 if tokens <= WHOLE else tokens // TILE
  rest = slice(tiles * TILE, tokens)
  total = run(rest.start, rest) if rest.start < tokens else None
  if not tiles:
    return total
  one = lambda i: run(i * TILE, pl.ds(pl.multiple_of(i * TILE, TILE), TILE))
  if total is None:
    total = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, 0))
  return jax.lax.fori_loop(0, tiles, lambda i, sum: jax.tree.map(jnp.add, sum, one(i)), total)


def _product(a, b, contract: tuple[int, int]):
  dimensions = (((contract[0],), (contract[1],)), ((), ()))
  return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def _ones(x, other: int = 0):
  """`[C, C]`, 1 where a channel of `x [rows, C]` meets itself, or the other of its pair.

  A product with it moves channels, exactly.
  """
  row, column = (jax.lax.broadcasted_iota(jnp.int32, 2 * x.shape[1:], axis) for axis in (0, 1))
  return (row == column ^ other).astype(x.dtype)


def _turned(x):
  """`[rows, C]` to `[C, rows]`; where that does not fill registers, by a product.

  libtpu (0.0.42) fails on the transposition of some of those ("Found no uses of XposeSequence").
  """
  return x.T if x.shape[1] % LANES == 0 else _product(_ones(x), x, (1, 1)).astype(x.dtype)


def _grouped(heads, width):
  """How many groups of heads fill registers, the heads in each, and a head's channels."""
  size = width // heads
  fill = LANES // size if LANES % size == 0 else 1
  each = fill if heads % fill == 0 else 1
  return heads // each, range(each), size


def _own(x, head, size):
  """Channels of a group, 0 but for one head's: a product with it is that head's alone."""
  if x.shape[1] == size:
    return x
  lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
  return jnp.where((lane >= head * size) & (lane < (head + 1) * size), x, jnp.zeros_like(x))


def _weights(own_q, k, size, first):
  """Weights `[keys, queries]` of one head before they are divided by their sums `[1, queries]`.

  Args:
    own_q: `[queries, each·size]`, of which the head's own channels are not 0.
    k: `[keys, each·size]`.
    size: channels of a head.
    first: position of the first of the queries, or `None` where each of them sees all keys.
  """
  logits = _product(k, own_q, (1, 1)) * (1 / math.sqrt(size))
  if first is not None:
    row, column = (jax.lax.broadcasted_iota(jnp.int32, logits.shape, axis) for axis in (0, 1))
    logits = jnp.where(row <= column + first, logits, -jnp.inf)
  weights = jnp.exp(logits - logits.max(0, keepdims=True))
  return weights, weights.sum(0, keepdims=True)


def _clear(ref, tokens):
  """Zeros where there are no tokens."""
  if tokens < ref.shape[1]:
    ref[0, tokens:] = jnp.zeros((ref.shape[1] - tokens, ref.shape[2]), ref.dtype)


def _turn(ref, turns_ref, out_ref, back=False):
  """Turns queries and keys, all heads at once, by their positions; or gradients of them, back."""
  _, tokens, period = turns_ref.shape
  width = 2 * ref.shape[-1] // 3
  for start in range(0, width, LANES):
    lanes = 0, slice(0, tokens), slice(start, min(start + LANES, width))
    x, here = ref[lanes], start % period
    cos, sin = (turns_ref[part, :, here : here + x.shape[1]] for part in range(2))
    partner = _product(x, _ones(x, other=1), (1, 0)) * (-sin if back else sin)
    out_ref[lanes] = (x * cos + partner).astype(x.dtype)


def _compared(qkv_ref, turning, tokens, groups):
  """Queries and keys of each group of heads, turned in the room that there is for them."""
  ref, parts = qkv_ref, 3
  if turning:
    turns_ref, ref = turning
    parts = 2
    _turn(qkv_ref, turns_ref, ref)
  return lambda part, group, rows: ref[_lanes(ref, part, group, groups, rows, parts)]


def forward(qkv_ref, out_ref, *, tokens, heads, causal, turning=()):
  """Writes the result of an image.

  Args:
    qkv_ref: `[1, S, 3·W]`.
    out_ref: `[1, S, W]`.
    tokens: of the `S`; the result of the others is 0.
    heads: number of heads.
    causal: a position sees itself and earlier ones only.
    turning: cosines and sines of the positions, and room for what they turn; or nothing.
  """
  groups, each, size = _grouped(heads, out_ref.shape[-1])
  every = slice(0, tokens)
  _clear(out_ref, tokens)
  compared = _compared(qkv_ref, turning, tokens, groups)
  for start in range(0, groups, AHEAD):
    together = range(start, min(start + AHEAD, groups))
    k = {group: compared(1, group, every) for group in together}
    v = {group: _turned(qkv_ref[_lanes(qkv_ref, 2, group, groups, every)]) for group in together}

    def attend(first, rows, together=together, k=k, v=v):
      found = {}
      for group in together:
        q = compared(0, group, rows)
        for head in each:
          own_q = _own(q, head, size)
          found[group, head] = _weights(own_q, k[group], size, first if causal else None)
      for group in together:
        outs = []
        for head in each:
          weights, total = found[group, head]
          own_v = v[group][head * size :][:size]
          # The division comes after the product, where there is less to divide.
          outs.append(_product(own_v, weights.astype(own_v.dtype), (1, 0)) * (1 / total))
        lanes = _lanes(out_ref, 0, group, groups, rows, parts=1)
        out_ref[lanes] = jnp.concatenate(outs).T.astype(out_ref.dtype)
      return ()

    _by_tiles(tokens, attend)


def backward(qkv_ref, g_ref, back_ref, *, tokens, heads, causal, turning=()):
  """Writes the cotangent of `qkv_ref`, like it, from that of the result, `[1, S, W]`."""
  groups, each, size = _grouped(heads, g_ref.shape[-1])
  scale, dtype, every = 1 / math.sqrt(size), back_ref.dtype, slice(0, tokens)
  _clear(back_ref, tokens)
  compared = _compared(qkv_ref, turning, tokens, groups)
  for group in range(groups):
    k, v = compared(1, group, every), qkv_ref[_lanes(qkv_ref, 2, group, groups, every)]
    turned = _turned(k)

    def attend(first, rows, group=group, k=k, v=v, turned=turned):
      q = compared(0, group, rows)
      g = g_ref[_lanes(g_ref, 0, group, groups, rows, parts=1)]
      own_q, own_g = ([_own(x, head, size) for head in each] for x in (q, g))
      found = [_weights(x, k, size, first if causal else None) for x in own_q]
      backs = [_product(v, x, (1, 1)) for x in own_g]
      weights = [weights * (1 / total) for weights, total in found]
      # The softmax's own derivative: what is common to all keys has no effect.
      logits = [
        (one * (back - (one * back).sum(0, keepdims=True))).astype(dtype)
        for one, back in zip(weights, backs, strict=True)
      ]
      dv = sum(_product(weights[head].astype(dtype), own_g[head], (1, 0)) for head in each)
      dk = sum(_product(logits[head], own_q[head], (1, 0)) for head in each)
      dq = [_product(turned[head * size :][:size], logits[head], (1, 0)) for head in each]
      lanes = _lanes(back_ref, 0, group, groups, rows)
      back_ref[lanes] = (jnp.concatenate(dq) * scale).T.astype(dtype)
      return dk, dv

    dk, dv = _by_tiles(tokens, attend)
    back_ref[_lanes(back_ref, 1, group, groups, every)] = (dk * scale).astype(dtype)
    back_ref[_lanes(back_ref, 2, group, groups, every)] = dv.astype(dtype)
  if turning:
    _turn(back_ref, turning[0], back_ref, back=True)
