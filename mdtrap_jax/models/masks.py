"""Masks of dropout that nothing has to store."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def keep_masks(keys: jax.Array, shape: tuple[int, int], rate: float, count: int) -> list[jax.Array]:
  """`count` independent masks for each key, `True` with probability `1 - rate`.

  A mask is an elementwise function of key and position, two rounds of shifts and
  multiplications (after C. Wellons' `lowbias32`) into which both halves of the key go: XLA
  computes it where it is used, and nothing is stored. The masks take the upper bits of one
  word, as few as represent `rate` exactly: for the usual 1/4 two each.

  Args:
    keys: `[B]` typed keys; consumed.
    shape: of a row, `(S, W)`.
    rate: probability of `False`.
    count: of masks.

  Returns:
    `count` arrays `[B, S, W] bool`.
  """
  bits = next((b for b in range(1, 17) if (rate * 2**b).is_integer()), 32)
  first, second = (jax.random.key_data(keys)[:, half].reshape(-1, 1, 1) for half in (0, -1))
  row, column = (jax.lax.broadcasted_iota(jnp.uint32, (1, *shape), axis) for axis in (1, 2))
  # The position, rows and columns counted together, times an odd number.
  position = row * jnp.uint32(0x9E3779B9 * shape[1] % 2**32) + column * jnp.uint32(0x9E3779B9)
  masks, per_word = [], 32 // bits
  for mask in range(count):
    used = bits * (mask % per_word)
    if not used:
      words = _mix(position + first, second + jnp.uint32(mask))
    drawn = words << used >> (32 - bits)
    masks.append(drawn >= jnp.uint32(round(rate * 2**bits)))
  return masks


def _mix(x: jax.Array, key: jax.Array) -> jax.Array:
  """Spreads every bit of `x` and `key`, uint32, over the upper bits of a word."""
  x = (x ^ (x >> 16) ^ key) * jnp.uint32(0x7FEB352D)
  return (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
