"""Learned lengths of the columns of adapted weights.

DoRA: S.-Y. Liu et al., "DoRA: weight-decomposed low-rank adaptation", ICML 2024, arXiv 2402.09353.
A projection is `m ⊙ (W + s A B) / ‖W + s A B‖`, column by column, with `m` trained beside the
factors and the norm without gradient (section 4.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mdtrap_jax.models.lora import PROJECTIONS, LoraConfig, LoraFactors


def kernels(blocks: Any, names: Sequence[str]) -> jax.Array | None:
  """The weights `[…, P, d_in, d_out]` of named projections, in the leading axes of `blocks`."""
  parts = []
  for name in names:
    if name in ("fc1", "fc2"):
      parts.append(blocks["mlp"][name]["kernel"])
    elif name == "out":
      parts.append(blocks["attention"]["out"]["kernel"])
    else:
      parts.append(blocks["attention"]["qkv"]["kernel"][..., PROJECTIONS.index(name), :])
  return jnp.stack(parts, axis=-3) if parts else None


def relative_magnitudes(
  block: Any, factors: LoraFactors | None, config: LoraConfig | None
) -> LoraFactors | None:
  """A block's factors with `m / ‖W + s A B‖` for the magnitudes `m`, if they have any.

  The columns' norms follow from small products: the sum itself would be a copy of `W` for each
  episode.

  Args:
    block: parameters of the block.
    factors: its own, or `None`.
    config: what is adapted.
  """
  if factors is None or not config.dora:
    return factors

  def relative(own, names):
    if own is None or own.a is None:
      return own
    wide = jnp.promote_types(own.b.dtype, jnp.float32)
    weight, a, b = (t.astype(wide) for t in (kernels(block, names), own.a, own.b))
    squares = jnp.square(weight).sum(-2)  # [P, d_out]
    cross = (weight.mT @ a * b.mT).sum(-1)
    low = ((a.mT @ a) @ b * b).sum(-2)
    scale = config.multiplier
    norms = jnp.sqrt(squares + 2 * scale * cross + scale**2 * low)
    return own._replace(magnitude=own.magnitude / jax.lax.stop_gradient(norms))

  fc1, fc2 = (relative(getattr(factors, name), [name]) for name in ("fc1", "fc2"))
  return relative(factors, config.attention)._replace(fc1=fc1, fc2=fc2)


def relative_columns(
  magnitude: jax.Array | None, columns: Sequence[int], count: int
) -> jax.Array | None:
  """Relative magnitudes `[P, d]` of some of `count` projections side by side, `[count · d]`."""
  if magnitude is None:
    return None
  ones = jnp.ones(magnitude.shape[1:], magnitude.dtype)
  parts = [ones] * count
  for p, column in enumerate(columns):
    parts[column] = magnitude[p]
  return jnp.concatenate(parts)
