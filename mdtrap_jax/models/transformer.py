"""Pre-norm transformer blocks, stacked along a leading layer axis, with optional LoRA.

All families share this file: they differ in `BlockConfig`, in how inputs become tokens
(`image_stem.py`, `text_stem.py`) and in the names their checkpoints use.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from mdtrap_jax.keys import fold, row_keys
from mdtrap_jax.models import backend, sharding
from mdtrap_jax.models.fused_attention import fits, fused_attention
from mdtrap_jax.models.lora import (
  PROJECTIONS,
  LoraConfig,
  LoraFactors,
  joined_product,
  lora_deltas,
  lora_packed,
)
from mdtrap_jax.models.rope import Rope, rotate

# Encoders whose tokens have at least so many elements an episode save memory: blocks run one to
# a turn of the loop, and the backward pass keeps what is named in KEPT and computes the rest
# again, attention too. At ViT-B/16 on a CPU that takes a third of the memory and no longer.
# Smaller ones, such as the miniature, would become a third slower. Where weights are split
# between devices, all encoders do: what is put together for a block must not be kept.
LARGE = 2**20
KEPT = ("projected", "attended", "low", "slope", "statistics")
TILE = 8  # rows of a TPU's tile
UNROLL = 4  # blocks to a turn of the loop in small encoders

ACTIVATIONS = {
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


@dataclasses.dataclass(frozen=True)
class BlockConfig:
  """The static shape of a block; all blocks of an encoder share one."""

  width: int
  heads: int
  mlp_width: int
  activation: str = "quick_gelu"
  epsilon: float = 1e-5  # of the layer norms
  causal: bool = False
  rope: Rope | None = None  # rotary position embedding of queries and keys

  def __post_init__(self):
    if self.activation not in ACTIVATIONS:
      raise ValueError(f"activation={self.activation!r}: choose one of {sorted(ACTIVATIONS)}.")
    if self.width % self.heads:
      raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}.")


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def activate(name: str, x: jax.Array) -> jax.Array:
  """An activation of `ACTIVATIONS`, elementwise.

  For its derivative the slope is kept instead of `x`: it costs little beside the value, and
  the backward pass between two products is left with one multiplication.
  """
  return ACTIVATIONS[name](x)


@activate.defjvp
def _activate_jvp(name, primals, tangents):
  (x,), (tangent,) = primals, tangents
  value, slope = jax.jvp(ACTIVATIONS[name], (x,), (jnp.ones_like(x),))
  return value, checkpoint_name(slope, "slope") * tangent


class LayerNorm(nn.Module):
  """Layer norm with statistics in at least float32 and the output in the input's dtype."""

  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalizes the last axis of `x [..., W]`."""
    scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
    bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
    return normalize(self.epsilon, x, scale, bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def normalize(epsilon: float, x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
  """Layer norm over the last axis of `x [..., W]` with `scale` and `bias [W]`.

  Mean and mean square are taken together, in one pass over the input, as the two sums of the
  backward pass are. That loses digits only where the mean is much larger than the deviation,
  which the channels of a trained encoder rule out: their largest are few.
  """
  return _normalize_forward(epsilon, x, scale, bias)[0]


def _normalize_forward(epsilon, x, scale, bias):
  wide = _wide(x)
  mean, square = wide.mean(-1), jnp.square(wide).mean(-1)
  inverse = jax.lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0.0) + epsilon)
  mean, inverse = checkpoint_name((mean, inverse), "statistics")
  normal = (wide - mean[..., None]) * inverse[..., None]
  out = normal * _row(scale, x.ndim) + _row(bias, x.ndim)
  return out.astype(x.dtype), (x, mean, inverse, scale, bias)


def _normalize_backward(epsilon, residuals, cotangent):
  del epsilon
  x, mean, inverse, scale, bias = residuals
  normal = (_wide(x) - mean[..., None]) * inverse[..., None]
  wide = _wide(cotangent)
  scaled = wide * _row(scale, x.ndim)
  common, along = scaled.mean(-1), (scaled * normal).mean(-1)
  back = (scaled - common[..., None] - normal * along[..., None]) * inverse[..., None]
  rows = tuple(range(x.ndim - 1))
  of_scale, of_bias = (wide * normal).sum(rows), wide.sum(rows)
  return back.astype(x.dtype), of_scale.astype(scale.dtype), of_bias.astype(bias.dtype)


normalize.defvjp(_normalize_forward, _normalize_backward)


def _wide(x):
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _row(weight, ndim):
  return weight.reshape((1,) * (ndim - 1) + weight.shape)


def attention(q: jax.Array, k: jax.Array, v: jax.Array, heads: int, causal: bool = False):
  """Scaled dot-product attention, softmax in at least float32.

  Args:
    q: `[B, S, W]`.
    k: `[B, T, W]`.
    v: `[B, T, W]`.
    heads: number of heads; divides `W`.
    causal: a position sees itself and earlier ones only.

  Returns:
    `[B, S, W]`.
  """
  if backend.attention_form(q.dtype) == "library":
    q, k, v = (t.reshape(*t.shape[:-1], heads, -1) for t in (q, k, v))
    out = jax.nn.dot_product_attention(q, k, v, is_causal=causal)
    return out.reshape(*out.shape[:-2], -1)
  # jax.nn's computes float64 logits in float32. One head after the other needs no transposition
  # of activations, which makes it three times faster on a CPU.
  heads_of = lambda t: jnp.split(t, heads, axis=-1)
  out = []
  for q_head, k_head, v_head in zip(heads_of(q), heads_of(k), heads_of(v), strict=True):
    logits = jnp.einsum("bqd,bkd->bqk", q_head * q_head.shape[-1] ** -0.5, k_head)
    if causal:
      visible = jnp.tri(q.shape[1], k.shape[1], dtype=bool)
      logits = jnp.where(visible[None], logits, -jnp.inf)
    # The softmax's division comes after the product, where there is less to divide.
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    out.append(jnp.einsum("bqk,bkd->bqd", weights, v_head) / weights.sum(-1, keepdims=True))
  return jnp.concatenate(out, axis=-1)


class Rows(NamedTuple):
  """How the tokens of all images lie in one matrix; see `backend.packs_rows`."""

  tokens: int  # `S` of an image
  filled: int  # with what fills up the tiles

  def pack(self, x: jax.Array) -> jax.Array:
    """`[B, S, W]` to `[B · filled, W]`."""
    filled = jnp.pad(x, ((0, 0), (0, self.filled - x.shape[1]), (0, 0)))
    return filled.reshape(-1, x.shape[-1])

  def images(self, x: jax.Array) -> jax.Array:
    """`[B · filled, W]` to `[B, filled, W]`."""
    return x.reshape(-1, self.filled, x.shape[-1])

  def unpack(self, x: jax.Array) -> jax.Array:
    """`[B · filled, W]` to `[B, S, W]`."""
    return self.images(x)[:, : self.tokens]


class Projections(nn.Module):
  """Queries, keys and values side by side, by one kernel `[W, 3, W]` as checkpoints have it."""

  width: int

  @nn.compact
  def __call__(self, x: jax.Array, *adapter: jax.Array) -> jax.Array:
    """Maps `[..., W]` to `[..., 3·W]`: an axis of 3 would ruin a TPU's tiles.

    With the two factors of `lora_packed` their product is part of the result.
    """
    shape = (x.shape[-1], 3, self.width)
    normal = nn.initializers.lecun_normal(in_axis=0, out_axis=(1, 2))
    kernel = self.param("kernel", normal, shape).astype(x.dtype)
    bias = self.param("bias", nn.initializers.zeros, shape[1:]).astype(x.dtype)
    kernel = kernel.reshape(shape[0], -1)
    product = joined_product(x, adapter[0], kernel, adapter[1]) if adapter else x @ kernel
    return product + bias.reshape((1,) * (x.ndim - 1) + (-1,))


class Attention(nn.Module):
  """Multi-head self-attention, with LoRA on its four projections.

  With `rows` the inputs and results of its three parts are packed, and queries, keys and
  values are one array.
  """

  config: BlockConfig
  lora: LoraConfig | None = None
  rows: Rows | None = None

  def setup(self):
    """Declares the parameters that `project` and `merge` share out between them."""
    self.qkv = Projections(self.config.width)
    self.out = nn.Dense(self.config.width)

  def project(
    self, x: jax.Array, factors: LoraFactors | None = None, key: jax.Array | None = None
  ) -> list[jax.Array]:
    """Queries, keys and values of `[B, S, W]`, each of its shape; packed, one `[R, 3·W]`."""
    rope = self.config.rope
    inner = [PROJECTIONS.index(name) for name in self._adapted(factors) if name != "out"]
    own = jax.tree.map(lambda leaf: leaf[: len(inner)], factors)
    if self.rows is not None:
      adapter = ()
      if inner:
        low, b = lora_packed(self.rows.images(x), own, self.lora, key, inner, 3)
        adapter = (low.reshape(len(x), -1), b)
      qkv = self.qkv(x, *adapter)
      if rope is not None:
        turned, value = jnp.split(self.rows.images(qkv), [2 * self.config.width], axis=-1)
        qkv = jnp.concatenate([rotate(turned, rope), value], -1).reshape(qkv.shape)
      return [qkv]
    # The gradient of `split` is one concatenation; that of three slices is a sum of paddings.
    projected = jnp.split(self.qkv(x), 3, axis=-1)
    if inner:
      for number, delta in zip(inner, lora_deltas(x, own, self.lora, key), strict=True):
        projected[number] = projected[number] + delta
    if rope is not None:
      projected[:2] = (rotate(part, rope) for part in projected[:2])
    return projected

  def attend(self, *projected: jax.Array) -> jax.Array:
    """What `project` gave to what the heads see, `[B, S, W]` or packed `[R, W]`."""
    heads, causal, rows = self.config.heads, self.config.causal, self.rows
    if rows is None:
      return attention(*projected, heads, causal)
    qkv = rows.images(*projected)
    if qkv.dtype == jnp.bfloat16 and fits(rows.filled, self.config.width):
      interpret = backend.platform() != "tpu"
      out = fused_attention(qkv, rows.tokens, heads, causal, interpret)
      return out.reshape(-1, self.config.width)
    return rows.pack(attention(*jnp.split(qkv[:, : rows.tokens], 3, axis=-1), heads, causal))

  def merge(
    self, x: jax.Array, factors: LoraFactors | None = None, key: jax.Array | None = None
  ) -> jax.Array:
    """The output projection of what the heads have attended to, `[B, S, W]`."""
    result = self.out(x)
    if "out" in self._adapted(factors):
      last = jax.tree.map(lambda leaf: leaf[-1:], factors)
      key = None if key is None else fold(key, PROJECTIONS.index("out"))
      images = x if self.rows is None else self.rows.images(x)
      result = result + lora_deltas(images, last, self.lora, key)[0].reshape(result.shape)
    return result

  def _adapted(self, factors):
    return () if factors is None else self.lora.projections


class Mlp(nn.Module):
  """Two dense layers with an activation between."""

  width: int
  activation: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[..., W]` to `[..., W]`."""
    hidden = activate(self.activation, nn.Dense(self.width, name="fc1")(x))
    return nn.Dense(x.shape[-1], name="fc2")(hidden)


class Block(nn.Module):
  """`x + attention(norm(x))`, then `x + mlp(norm(x))`.

  With `frugal` the backward pass keeps the inputs of its three parts and what is named in
  `KEPT`, and computes the rest again.
  """

  config: BlockConfig
  lora: LoraConfig | None = None
  frugal: bool = False
  rows: Rows | None = None

  def setup(self):
    """Declares the parameters, which the three parts share out between them."""
    config = self.config
    self.norm1 = LayerNorm(epsilon=config.epsilon)
    self.attention = Attention(config, self.lora, self.rows)
    self.norm2 = LayerNorm(epsilon=config.epsilon)
    self.mlp = Mlp(config.mlp_width, config.activation)

  def __call__(
    self, x: jax.Array, factors: LoraFactors | None = None, key: jax.Array | None = None
  ) -> jax.Array:
    """Maps `[B, S, W]`, or packed `[R, W]`, to its shape; `factors` are this block's own."""
    project = lambda block, x, f, k: block.attention.project(block.norm1(x), f, k)
    attend = lambda block, *projected: block.attention.attend(*projected)
    feed = lambda block, x: block.mlp(block.norm2(x))
    if self.frugal:
      policy = jax.checkpoint_policies.save_only_these_names(*KEPT)
      project, attend, feed = (
        nn.remat(part, policy=policy, prevent_cse=False) for part in (project, attend, feed)
      )
    projected = checkpoint_name(project(self, x, factors, key), "projected")
    x = x + self.attention.merge(attend(self, *projected), factors, key)
    x = checkpoint_name(x, "attended")
    return x + feed(self, x)


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
) -> jax.Array:
  """Runs blocks `start … stop-1`.

  Neighboring blocks that are all adapted, or all plain, run as one `lax.scan`: any set of
  adapted blocks is allowed and plain ones pay nothing for the others.

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

  Returns:
    tokens `[B, S, W]`.
  """
  depth = jax.tree.leaves(params)[0].shape[0]
  stop = depth if stop is None else stop
  adapted = () if factors is None else lora.blocks(depth)
  split = sharding.is_split(params)
  large = x.size >= LARGE or split
  rows = None
  if backend.packs_rows():
    rows = Rows(x.shape[1], -(-x.shape[1] // TILE) * TILE)
    key = row_keys(key, len(x)) if key is not None and not key.ndim else key
    x = rows.pack(x)
  keep = jax.checkpoint_policies.save_only_these_names(*KEPT)

  def step(x, block):
    block_params, block_factors, number = block
    block_key = None if key is None else fold(key, number)
    module = Block(config, lora, frugal=is_adapted and large and not split, rows=rows)
    apply = lambda p, x, f, k: module.apply({"params": sharding.whole(p)}, x, f, k)
    if is_adapted and split:
      apply = jax.checkpoint(apply, policy=keep, prevent_cse=False)
    return apply(block_params, x, block_factors, block_key), None

  for is_adapted, run in itertools.groupby(range(start, stop), key=adapted.__contains__):
    run = list(run)
    block_params = _take(params, run[0], len(run), depth)
    block_factors = None
    if is_adapted:
      block_factors = _take(factors, adapted.index(run[0]), len(run), len(adapted))
    x, _ = jax.lax.scan(
      step,
      x,
      (block_params, block_factors, jnp.asarray(run)),
      unroll=1 if large else min(UNROLL, len(run)),
    )
  return x if rows is None else rows.unpack(x)


def _take(tree: Any, start: int, count: int, depth: int) -> Any:
  """Leaves `[start:start+count]`; the tree itself when that is all of it (no copy)."""
  if count == depth:
    return tree
  return jax.tree.map(lambda leaf: leaf[start : start + count], tree)
