"""Pre-norm transformer blocks, stacked along a leading layer axis, with optional LoRA.

All families share this file: they differ in `BlockConfig`, in how inputs become tokens
(`image_stem.py`, `text_stem.py`) and in the names their checkpoints use.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from mdtrap_jax.keys import fold, row_keys
from mdtrap_jax.models import backend, sharding
from mdtrap_jax.models.attention import (
  Attention,
  Rows,
  adapted_linear,
  fused,
  norm_packed,
  put_tokens,
)
from mdtrap_jax.models.dora import relative_magnitudes
from mdtrap_jax.models.layers import BlockConfig, LayerNorm, Linear, activate
from mdtrap_jax.models.lora import LoraConfig, LoraFactors

# Encoders whose tokens have at least so many elements an episode save memory: the backward pass
# keeps what is named in KEPT and computes the rest again, attention too. At ViT-B/16 on a CPU that
# takes a third of the memory and no longer.
# Smaller ones, such as the miniature, would become a third slower. Where weights are split
# between devices, all encoders do: what is put together for a block must not be kept.
LARGE = 2**20
KEPT = ("projected", "attended", "low", "slope", "statistics")
TILE = 8  # rows of a TPU's tile


class Mlp(nn.Module):
  """Two linear maps with an activation between, and LoRA on both."""

  width: int
  activation: str
  lora: LoraConfig | None = None
  rows: Rows | None = None

  @nn.compact
  def __call__(
    self, x: jax.Array, factors: LoraFactors | None = None, key: jax.Array | None = None
  ) -> jax.Array:
    """Maps `[..., W]` to `[..., W]`; `factors` are the block's own."""
    fc1, fc2 = Linear(self.width, name="fc1"), Linear(x.shape[-1], name="fc2")
    apply = lambda linear, x, own: adapted_linear(
      linear, x, linear.name, own, self.lora, key, self.rows
    )
    hidden = activate(self.activation, apply(fc1, x, factors and factors.fc1))
    return apply(fc2, hidden, factors and factors.fc2)


class Block(nn.Module):
  """`x + attention(norm(x))`, then `x + mlp(norm(x))`.

  With `frugal` the backward pass keeps the inputs of its three parts and what is named in
  `KEPT`, and computes the rest again. With `first`, only so many of an image's leading tokens go
  on once all have been attended to.
  """

  config: BlockConfig
  lora: LoraConfig | None = None
  frugal: bool = False
  rows: Rows | None = None
  first: int | None = None

  def setup(self):
    """Declares the parameters, which the three parts share out between them."""
    config = self.config
    self.norm1 = LayerNorm(epsilon=config.epsilon)
    self.attention = Attention(config, self.lora, self.rows)
    self.norm2 = LayerNorm(epsilon=config.epsilon)
    self.mlp = Mlp(config.mlp_width, config.activation, self.lora, self._rows_after)

  def __call__(
    self, x: jax.Array, factors: LoraFactors | None = None, key: jax.Array | None = None
  ) -> jax.Array:
    """Maps `[B, S, W]`, or packed `[R, W]`, to its shape; `factors` are this block's own."""
    project, attend, feed = type(self)._project, type(self)._attend, type(self)._feed
    if self.frugal:
      policy = jax.checkpoint_policies.save_only_these_names(*KEPT)
      again = functools.partial(nn.remat, policy=policy, prevent_cse=False)
      feed = again(feed)
      # cuDNN's kernel keeps no more than its result, and a norm's its input.
      attend = attend if self.attention.form(x.dtype) == "cudnn" else again(attend)
      if self.rows is None or not fused(x, self.rows):
        project = again(project)
    projected, x = project(self, x, factors, key)
    projected = checkpoint_name(projected, "projected")
    x, attended = self._go_on(x), self._go_on(attend(self, *projected))
    x = x + self.attention.merge(attended, factors, key, self._rows_after)
    x = checkpoint_name(x, "attended")
    return feed(self, x, factors, key)

  def _project(self, x, factors, key):
    """What attention compares, and `x`: packed, both come of one operation."""
    if self.rows is None:
      return self.attention.project(self.norm1(x), factors, key), x
    qkv, x = self.attention.project_packed(self.norm1, x, factors, key)
    return [qkv], x

  def _attend(self, *projected):
    return self.attention.attend(*projected)

  def _feed(self, x, factors, key):
    """`x + mlp(norm(x))`."""
    if self.rows is None:
      return x + self.mlp(self.norm2(x), factors, key)
    normal, x = norm_packed(self.norm2, x, self._rows_after)
    return x + self.mlp(normal, factors, key)

  @property
  def _rows_after(self) -> Rows | None:
    """How what goes on is packed."""
    packed = self.rows is not None and self.first is not None
    return Rows(self.first, self.first) if packed else self.rows

  def _go_on(self, x):
    """The tokens that do."""
    if self.first is None:
      return x
    if self.rows is None:
      return x[:, : self.first]
    return self.rows.images(x)[:, : self.first].reshape(-1, x.shape[-1])


def init_blocks(key: jax.Array, config: BlockConfig, depth: int) -> Any:
  """Random parameters of `depth` blocks, every leaf with a leading axis `[depth, ...]`."""
  sample = jnp.zeros((1, 2, config.width))
  if config.rope is not None:
    sample = jnp.zeros((1, config.rope.tokens, config.width))
  init = lambda k: Block(config).init(k, sample)["params"]
  return jax.vmap(init)(jax.random.split(key, depth))


def run_blocks(
  params: Any,
  x: jax.Array,
  config: BlockConfig,
  *,
  start: int = 0,
  stop: int | None = None,
  lora: LoraConfig | None = None,
  factors: LoraFactors | None = None,
  key: jax.Array | None = None,
  prompts: jax.Array | None = None,
  at: int = 0,
  first: int | None = None,
) -> jax.Array:
  """Runs blocks `start … stop-1`.

  Neighboring blocks that are all adapted, or all plain, run as one `lax.scan`: any set of
  adapted blocks is allowed and plain ones pay nothing for the others. So it is with prompts.

  Args:
    params: stacked parameters, every leaf `[depth, ...]`; maybe split by `models.sharding`.
    x: tokens `[B, S, W]`.
    config: of the blocks.
    start: the first block to run; `x` is that block's input.
    stop: one past the last block to run; all of them when `None`.
    lora: what is adapted; needed with `factors`.
    factors: `a [A, P, W, r]`, `b [A, P, r, W]`, or `None` for the base model.
    key: typed key of the dropout masks, or one for each row, `[B]`; folded with the block's
      number. `None` for none.
    prompts: `[J, n, W]`, which blocks `1 … J` see in place of their tokens `at … at+n-1`.
    at: where those are; static.
    first: how many of the leading tokens are wanted, all when `None`; static. Of the last block
      only attention's inputs are computed for the others.

  Returns:
    tokens `[B, S, W]`, or `[B, first, W]`.
  """
  depth = jax.tree.leaves(params)[0].shape[0]
  stop = depth if stop is None else stop
  adapted = () if factors is None else lora.blocks(depth)
  prompted = range(0) if prompts is None else range(1, 1 + len(prompts))
  split = sharding.is_split(params)
  large = x.size >= LARGE or split
  rows = None
  if backend.packs_rows(x.dtype):
    rows = Rows(x.shape[1], -(-x.shape[1] // TILE) * TILE)
    key = row_keys(key, len(x)) if key is not None and not key.ndim else key
    x = rows.pack(x)
  keep = jax.checkpoint_policies.save_only_these_names(*KEPT)

  def step(x, block):
    block_params, block_factors, prompt, number = block
    block_key = None if key is None else fold(key, number)
    if prompt is not None:
      x = put_tokens(x, prompt, at) if rows is None else rows.put(x, prompt, at)
    # A pass without gradients keeps nothing either way.
    module = Block(config, lora, large and not split, rows, wanted)

    def apply(params, x, factors, key):
      params = sharding.whole(params)
      return module.apply({"params": params}, x, relative_magnitudes(params, factors, lora), key)

    if split:
      apply = jax.checkpoint(apply, policy=keep, prevent_cse=False)
    return apply(block_params, x, block_factors, block_key), None

  # The last block, if that drops tokens. Split weights are not cut up: that would copy them.
  cut = range(stop - 1, stop if first is not None and not split else 0)
  kinds = lambda number: (number in adapted, number in prompted, number in cut)
  for (is_adapted, is_prompted, is_cut), run in itertools.groupby(range(start, stop), key=kinds):
    run = list(run)
    wanted = first if is_cut else None
    block_params = _take(params, run[0], len(run), depth)
    block_factors = block_prompts = None
    if is_adapted:
      block_factors = _take(factors, adapted.index(run[0]), len(run), len(adapted))
    if is_prompted:
      block_prompts = _take(prompts, prompted.index(run[0]), len(run), len(prompted))
    blocks = (block_params, block_factors, block_prompts, jnp.asarray(run))
    if is_cut:  # alone, for the loop's tokens are as many as before
      x, _ = step(x, jax.tree.map(lambda leaf: leaf[0], blocks))
      return x if rows is None else x.reshape(-1, first, x.shape[-1])
    x, _ = jax.lax.scan(step, x, blocks, unroll=backend.blocks_at_once(len(run), large, split))
  return (x if rows is None else rows.unpack(x))[:, :first]


def _take(tree: Any, start: int, count: int, depth: int) -> Any:
  """Leaves `[start:start+count]`; the tree itself when that is all of it (no copy)."""
  if count == depth:
    return tree
  return jax.tree.map(lambda leaf: leaf[start : start + count], tree)
