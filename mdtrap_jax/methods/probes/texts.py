"""What the frozen vision-language model says by itself: the start of every probe with texts."""

from __future__ import annotations

import jax

from mdtrap_jax.methods import ncc


def zero_shot(rows: jax.Array, text: jax.Array, logit_scale: float) -> jax.Array:
  """`s · cos(x, t)`, `[Q, C]` from `[Q, D]` and `[C, D]`."""
  return logit_scale * ncc.cosines(rows, text)
