"""Rows of a causal encoder that begin alike: what they share is one row's, computed once.

Nothing in a causal encoder sees what comes after it. Where all `B` rows begin with the same `P`
tokens, each block computes these alike for all: here they stand once in front of what follows in
each row, `P + B·S` tokens in place of `B·(P + S)`, and whatever works token by token takes them as
one row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

# Up to so many tokens attention is over all of them, and a mask says what a position sees: the
# prefix and each row apart would be less to compute, in many more and smaller products.
TOGETHER = 512


@dataclasses.dataclass(frozen=True)
class SharedPrefix:
  """How they lie in one row, `[1, P + B·S, W]`."""

  tokens: int  # P
  rows: int  # B

  def join(self, x: jax.Array) -> jax.Array:
    """`[B, P + S, W]` to `[1, P + B·S, W]`."""
    own = x[:, self.tokens :].reshape(1, -1, x.shape[-1])
    return jnp.concatenate([x[:1, : self.tokens], own], axis=1)

  def split(self, x: jax.Array) -> jax.Array:
    """`[1, P + B·S, W]` to what follows the prefix, `[B, S, W]`."""
    return x[0, self.tokens :].reshape(self.rows, -1, x.shape[-1])

  def attend(
    self, attention: Callable[..., jax.Array], q: jax.Array, k: jax.Array, v: jax.Array
  ) -> jax.Array:
    """Causal attention of each of the `B` rows.

    Args:
      attention: of queries `[B, S, W]` that are the last of keys and values `[B, T, W]`, or that
        see what `visible` says.
      q: `[1, P + B·S, W]`.
      k: the same.
      v: the same.

    Returns:
      An array like `q`.
    """
    if q.shape[1] <= TOGETHER:
      return attention(q, k, v, visible=self._visible(q.shape[1]))
    prefix = [x[:, : self.tokens] for x in (q, k, v)]
    shape = (self.rows, self.tokens, q.shape[-1])
    before = (jnp.broadcast_to(x, shape) for x in prefix[1:])
    k, v = (
      jnp.concatenate([first, self.split(x)], axis=1)
      for first, x in zip(before, (k, v), strict=True)
    )
    own = attention(self.split(q), k, v)
    return jnp.concatenate([attention(*prefix), own.reshape(1, -1, q.shape[-1])], axis=1)

  def _visible(self, size: int) -> jax.Array:
    """`[size, size] bool`: a position sees the prefix and its own row, up to itself."""
    place = np.arange(size)
    row = (place - self.tokens) // ((size - self.tokens) // self.rows)
    seen = (place < self.tokens) | (row[:, None] == row)
    return jnp.asarray(seen & (place <= place[:, None]))
