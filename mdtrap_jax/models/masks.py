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
  first, second = (jax.random.key_data(keys)[:, half].reshape(-1, 1, 1) for half in (0, -1))
  return draw(first, second, (1, *shape), rate, count)


def draw(
  first: jax.Array, second: jax.Array, shape: tuple[int, ...], rate: float, count: int
) -> list[jax.Array]:
  """The masks `shape = (..., S, W)` of keys that are given as two words each, which broadcast."""
  bits = next((b for b in range(1, 17) if (rate * 2**b).is_integer()), 32)
  first, second = (word.astype(jnp.uint32) for word in (first, second))
  axes = (len(shape) - 2, len(shape) - 1)
  # Kernels for TPUs count in int32.
  row, column = (
    jax.lax.broadcasted_iota(jnp.int32, shape, axis).astype(jnp.uint32) for axis in axes
  )
  # The position, rows and columns counted together, times an odd number.
  position = row * jnp.uint32(0x9E3779B9 * shape[-1] % 2**32) + column * jnp.uint32(0x9E3779B9)
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
