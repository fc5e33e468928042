"""Starts of LoRA's factors that follow from the pretrained weights.

PiSSA: F. Meng, Z. Wang, M. Zhang, "PiSSA: principal singular values and singular vectors
adaptation of large language models", NeurIPS 2024, arXiv 2404.02948. The factors start at the `r`
largest singular values of `W`, and what is left of `W` is frozen in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from mdtrap_jax.models.dora import kernels
from mdtrap_jax.models.lora import PROJECTIONS, LoraConfig, LoraFactors


def start_from_weights(
  blocks: Any, config: LoraConfig, rows: Sequence[int]
) -> tuple[Any, LoraFactors]:
  """What is frozen of an encoder's blocks, and what the factors start from.

  Args:
    blocks: stacked parameters, `[depth, …]`.
    config: what is adapted.
    rows: the numbers of the adapted blocks.

  Returns:
    The blocks, less the factors' product where the start is `pissa`; and factors of which only
    those are not `None` that follow from the weights.
  """
  index = jnp.asarray(rows)

  def start(names):
    weight = kernels(blocks, names)
    if weight is None:
      return LoraFactors(None, None)
    weight = weight[index]
    weight = weight.astype(jnp.promote_types(weight.dtype, jnp.float32))
    magnitude = jnp.linalg.norm(weight, axis=-2) if config.dora else None
    if config.start != "pissa":
      return LoraFactors(None, None, magnitude)
    u, s, v = jnp.linalg.svd(weight, full_matrices=False)
    root = jnp.sqrt(s[..., : config.rank] / config.multiplier)
    a = u[..., : config.rank] * root[..., None, :]
    return LoraFactors(a, v[..., : config.rank, :] * root[..., None], magnitude)

  factors = start(config.attention)
  for name in ("fc1", "fc2"):
    if name in config.projections:
      factors = factors._replace(**{name: start([name])})
  if config.start == "pissa":
    for name in config.projections:
      own, column = factors.of(name, config)
      taken = config.multiplier * (own.a[:, column] @ own.b[:, column])
      blocks = _subtract(blocks, name, index, taken)
  return blocks, factors


def _subtract(blocks, name, index, taken):
  """Blocks with less of one projection's weights, `taken [A, d_in, d_out]` at `index [A]`."""
  less = lambda kernel, part: kernel.at[part].set(
    (kernel[part].astype(taken.dtype) - taken).astype(kernel.dtype)
  )
  section, leaf = ("mlp", name) if name in ("fc1", "fc2") else ("attention", "out")
  part = index
  if name in ("q", "k", "v"):
    leaf, part = "qkv", (index, slice(None), PROJECTIONS.index(name))
  linear = blocks[section][leaf]
  linear = linear | {"kernel": less(jnp.asarray(linear["kernel"]), part)}
  return blocks | {section: blocks[section] | {leaf: linear}}
