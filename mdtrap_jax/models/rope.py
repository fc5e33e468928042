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


def rotate(x: jax.Array, rope: Rope, heads: int) -> jax.Array:
  """Turns neighboring pairs of channels of every head by the token's angles.

  Args:
    x: queries or keys `[B, S, W]`.
    rope: the grid.
    heads: `W = heads · head_dim`.

  Returns:
    `[B, S, W]` in the dtype of `x`.
  """
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  angles = rope.angles()[None, :, None, :]
  cos, sin = jnp.asarray(np.cos(angles), dtype), jnp.asarray(np.sin(angles), dtype)
  pairs = x.astype(dtype).reshape(*x.shape[:-1], heads, rope.head_dim // 2, 2)
  even, odd = pairs[..., 0], pairs[..., 1]
  turned = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
  return turned.reshape(x.shape).astype(x.dtype)
