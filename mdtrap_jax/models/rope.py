"""Two-dimensional rotary position embedding, as PE-Core applies it to its image tokens."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Rope:
  """Where the tokens lie: a square grid of patches, maybe after a class token."""

  grid: int  # patches along one side
  head_dim: int
  class_token: bool
  theta: float = 10000.0

  @property
  def tokens(self) -> int:
    """Sequence length `S`."""
    return self.grid**2 + self.class_token

  def angles(self) -> np.ndarray:
    """Rotation of each pair of channels, `[S, head_dim/2]` float64, in radians.

    The first half of the pairs turns with the column, the second with the row, both counted
    from 1 where there is a class token, which itself is not turned.
    """
    half = self.head_dim // 2
    frequency = self.theta ** (-np.arange(0, half, 2) / half)
    steps = np.arange(self.grid) + float(self.class_token)
    row, column = np.meshgrid(steps, steps, indexing="ij")
    angles = np.concatenate(
      [column.reshape(-1, 1) * frequency, row.reshape(-1, 1) * frequency], axis=-1
    )
    if self.class_token:
      angles = np.concatenate([np.zeros((1, half)), angles])
    return angles


def tables(rope: Rope, tokens: int) -> tuple[np.ndarray, np.ndarray]:
  """`cos` and `sin [tokens, head_dim]` float64, by which every head's channels turn.

  A channel `x` with its partner in the pair, `y`, becomes `x cos + y sin`: the sine of each
  pair's first is negative. Tokens beyond the grid's are not turned.
  """
  angles = rope.angles()
  angles = np.pad(angles, ((0, tokens - len(angles)), (0, 0))).repeat(2, axis=-1)
  sign = np.where(np.arange(rope.head_dim) % 2, 1.0, -1.0)
  return np.cos(angles), sign * np.sin(angles)


def rotate(x: jax.Array, rope: Rope) -> jax.Array:
  """Turns neighboring pairs of channels of every head by the token's angles.

  Args:
    x: queries or keys, or both side by side, `[B, S, n · head_dim]`; tokens beyond the grid's
      are not turned.
    rope: the grid.

  Returns:
    An array like `x`.
  """
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  cos, sin = (
    jnp.tile(jnp.asarray(table, dtype)[None], (1, 1, x.shape[-1] // rope.head_dim))
    for table in tables(rope, x.shape[1])
  )
  # A channel's partner is its neighbor: no axis of pairs, which would ruin a TPU's tiles.
  wide = x.astype(dtype)
  even = jnp.arange(x.shape[-1]).reshape(1, 1, -1) % 2 == 0
  partner = jnp.where(even, jnp.roll(wide, -1, axis=-1), jnp.roll(wide, 1, axis=-1))
  return (wide * cos + partner * sin).astype(x.dtype)
