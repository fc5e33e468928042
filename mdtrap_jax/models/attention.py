"""Multi-head self-attention of a block, with LoRA on its projections."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mdtrap_jax.keys import fold, row_keys
from mdtrap_jax.models import backend, fused_attention, fused_norm
from mdtrap_jax.models.cudnn_attention import cudnn_attention
from mdtrap_jax.models.dora import relative_columns
from mdtrap_jax.models.fused_norm import Form, norm_and_input, norm_with_low, norm_with_low_plain
from mdtrap_jax.models.layers import BlockConfig, LayerNorm, Linear, normalize
from mdtrap_jax.models.lora import (
  PROJECTIONS,
  LoraConfig,
  LoraFactors,
  joined_product,
  lora_deltas,
  side_by_side,
)
from mdtrap_jax.models.rope import rotate


def attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  heads: int,
  causal: bool = False,
  visible: jax.Array | None = None,
) -> jax.Array:
  """Scaled dot-product attention, softmax in at least float32.

  Args:
    q: `[B, S, W]`.
    k: `[B, T, W]`.
    v: `[B, T, W]`.
    heads: number of heads; divides `W`.
    causal: a position sees itself and earlier ones only; queries are those of the last `S`.
    visible: `[S, T] bool`, what a position sees, where neither says it.

  Returns:
    `[B, S, W]`.
  """
  form = backend.attention_form(q.dtype, q.shape[-1] // heads)
  if form == "cudnn" and q.shape == k.shape and visible is None:
    return cudnn_attention(q, k, v, heads, causal, q.shape[1])
  if causal and visible is None:
    visible = jnp.tri(q.shape[1], k.shape[1], k.shape[1] - q.shape[1], dtype=bool)
  if form != "heads":
    q, k, v = (t.reshape(*t.shape[:-1], heads, -1) for t in (q, k, v))
    mask = None if visible is None else visible[None, None]
    out = jax.nn.dot_product_attention(q, k, v, mask=mask)
    return out.reshape(*out.shape[:-2], -1)
  # jax.nn's computes float64 logits in float32. One head after the other needs no transposition
  # of activations, which makes it three times faster on a CPU.
  heads_of = lambda t: jnp.split(t, heads, axis=-1)
  product = functools.partial(
    jnp.einsum, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32)
  )
  out = []
  for q_head, k_head, v_head in zip(heads_of(q), heads_of(k), heads_of(v), strict=True):
    logits = product("bqd,bkd->bqk", q_head * q_head.shape[-1] ** -0.5, k_head)
    if visible is not None:
      logits = jnp.where(visible[None], logits, -jnp.inf)
    # The softmax's division comes after the product, where there is less to divide.
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    sums = product("bqk,bkd->bqd", weights.astype(v.dtype), v_head)
    out.append((sums / weights.sum(-1, keepdims=True)).astype(q.dtype))
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

  def put(self, x: jax.Array, tokens: jax.Array, at: int) -> jax.Array:
    """`put_tokens` of packed `[B · filled, W]`."""
    return put_tokens(self.images(x), tokens, at).reshape(x.shape)


def put_tokens(x: jax.Array, tokens: jax.Array, at: int) -> jax.Array:
  """`[B, S, W]` with `[n, W]` or `[B, n, W]` in place of its tokens `at … at+n-1`."""
  shape = (x.shape[0], *tokens.shape[-2:])
  tokens = jnp.broadcast_to(tokens[None] if tokens.ndim == 2 else tokens, shape).astype(x.dtype)
  return jnp.concatenate([x[:, :at], tokens, x[:, at + shape[1] :]], axis=1)


class Projections(nn.Module):
  """Queries, keys and values side by side, by one kernel `[W, 3, W]` as checkpoints have it."""

  width: int

  @nn.compact
  def __call__(
    self, x: jax.Array, b: jax.Array | None = None, scale: jax.Array | None = None
  ) -> jax.Array:
    """Maps `[..., W]` to `[..., 3·W]`: an axis of 3 would ruin a TPU's tiles.

    With `b [L, 3·W]` of `side_by_side` it maps `[R, W + L]` of `norm_with_low`; `scale [3·W]` is
    a factor on the result all but the bias.
    """
    shape = (x.shape[-1] - (0 if b is None else len(b)), 3, self.width)
    normal = nn.initializers.lecun_normal(in_axis=0, out_axis=(1, 2))
    kernel = self.param("kernel", normal, shape).astype(x.dtype)
    bias = self.param("bias", nn.initializers.zeros, shape[1:]).astype(x.dtype)
    kernel = kernel.reshape(shape[0], -1)
    row = lambda weight: weight.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
    if b is None:
      product = x @ kernel
    elif scale is None:
      return joined_product(x, kernel, b.at[-1].set(bias.reshape(-1)))  # times the ones in `x`
    else:
      product = joined_product(x, kernel, b)
    return (product if scale is None else product * row(scale)) + row(bias)


class Attention(nn.Module):
  """Multi-head self-attention, with LoRA on its four projections.

  Factors are a block's own; their magnitudes are relative, see `dora.relative_magnitudes`.

  With `rows` the inputs and results of its three parts are packed, and queries, keys and
  values are one array.
  """

  config: BlockConfig
  lora: LoraConfig | None = None
  rows: Rows | None = None

  def setup(self):
    """Declares the parameters that `project` and `merge` share out between them."""
    self.qkv = Projections(self.config.width)
    self.out = Linear(self.config.width)

  def project(
    self, x: jax.Array, factors: LoraFactors | None = None, key: jax.Array | None = None
  ) -> list[jax.Array]:
    """Queries, keys and values of `[B, S, W]`, each of its shape."""
    rope = self.config.rope
    inner, own, scale = self._inner(factors)
    # The gradient of `split` is one concatenation; that of three slices is a sum of paddings.
    projected = jnp.split(self.qkv(x, scale=scale), 3, axis=-1)
    if inner:
      for number, delta in zip(inner, lora_deltas(x, own, self.lora, key), strict=True):
        projected[number] = projected[number] + delta
    if rope is not None:
      projected[:2] = (rotate(part, rope) for part in projected[:2])
    return projected

  def project_packed(
    self,
    norm: LayerNorm,
    x: jax.Array,
    factors: LoraFactors | None = None,
    key: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """Queries, keys and values `[R, 3·W]` of what `norm` makes of packed `[R, W]`; and that.

    They are not turned yet where attention is a kernel that does so.
    """
    inner, own, scale = self._inner(factors)
    if not inner:
      normal, x = norm_packed(norm, x, self.rows)
      qkv = self.qkv(normal)
    else:
      a, b = side_by_side(own, self.lora, x.dtype, inner, 3, backend.lanes())
      images = self.rows.images(x)
      rate = 0.0 if key is None else self.lora.dropout
      if key is None:
        key = row_keys(jax.random.key(0), len(images))
      if rate:
        b = b / (1.0 - rate)  # what is kept makes up for what is not
      joined, images = norm(images, functools.partial(with_low, a=a, keys=key, rate=rate))
      qkv, x = self.qkv(joined.reshape(len(x), -1), b, scale), images.reshape(x.shape)
    rope = self.config.rope
    if rope is not None and not self._one_kernel(qkv.dtype):
      turned, value = jnp.split(self.rows.images(qkv), [2 * self.config.width], axis=-1)
      qkv = jnp.concatenate([rotate(turned, rope), value], -1).reshape(qkv.shape)
    return qkv, x

  def form(self, dtype: jnp.dtype) -> str:
    """By which form it attends."""
    form = backend.attention_form(dtype, self.config.width // self.config.heads)
    # cuDNN's kernel takes no mask, nor the last positions' queries alone.
    return "library" if form == "cudnn" and self.config.shared is not None else form

  def _one_kernel(self, dtype):
    """Whether packed rows are attended to, and turned before, by a kernel for TPUs."""
    config = self.config
    other = backend.is_gpu() or self.form(dtype) == "cudnn" or config.shared is not None
    if dtype != jnp.bfloat16 or other:
      return False
    return fused_attention.fits(self.rows.filled, config.width, config.rope)

  def attend(self, *projected: jax.Array) -> jax.Array:
    """What `project` gave to what the heads see, `[B, S, W]` or packed `[R, W]`."""
    config, rows = self.config, self.rows
    see = functools.partial(attention, heads=config.heads, causal=config.causal)
    if config.shared is not None:
      see = functools.partial(config.shared.attend, see)
    if rows is None:
      return see(*projected)
    qkv = rows.images(*projected)
    if self.form(qkv.dtype) == "cudnn":
      out = cudnn_attention(*jnp.split(qkv, 3, axis=-1), config.heads, config.causal, rows.tokens)
      return out.reshape(-1, config.width)
    if self._one_kernel(qkv.dtype):
      static = rows.tokens, config.heads, config.causal, config.rope, backend.platform() != "tpu"
      out = fused_attention.fused_attention(qkv, *static)
      return out.reshape(-1, config.width)
    return rows.pack(see(*jnp.split(qkv[:, : rows.tokens], 3, axis=-1)))

  def merge(
    self,
    x: jax.Array,
    factors: LoraFactors | None = None,
    key: jax.Array | None = None,
    rows: Rows | None = None,
  ) -> jax.Array:
    """The output projection of what the heads have attended to, `[B, S, W]` or packed by `rows`."""
    last = factors.rows(slice(-1, None)) if "out" in self._adapted(factors) else None
    return adapted_linear(self.out, x, "out", last, self.lora, key, rows)

  def _adapted(self, factors):
    return () if factors is None else self.lora.attention

  def _inner(self, factors):
    """Which of queries, keys and values are adapted, by what, and DoRA's factor on all columns."""
    inner = [PROJECTIONS.index(name) for name in self._adapted(factors) if name != "out"]
    own = factors and factors.rows(slice(len(inner)))
    return inner, own, relative_columns(own.magnitude, inner, 3) if inner else None


def norm_packed(norm: LayerNorm, x: jax.Array, rows: Rows) -> tuple[jax.Array, jax.Array]:
  """`norm` of packed `[R, W]`, and `x` itself for the residual connection."""

  def form(epsilon, x, scale, bias):
    if not fused(x, rows):
      return normalize(epsilon, x, scale, bias), x
    return norm_and_input(Form(epsilon, 0.0, backend.platform() != "tpu"), x, scale, bias)

  return norm(x, form)


def with_low(
  epsilon: float,
  x: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  *,
  a: jax.Array,
  keys: jax.Array,
  rate: float,
) -> tuple[jax.Array, jax.Array]:
  """`norm_with_low` of `[B, S, W]`, in the form that serves its precision."""
  form = Form(epsilon, rate, backend.platform() != "tpu")
  if fused(x, Rows(x.shape[1], x.shape[1])):
    return norm_with_low(form, x, scale, bias, a, keys)
  return norm_with_low_plain(form, x, scale, bias, a, keys), x


def fused(x: jax.Array, rows: Rows) -> bool:
  """Whether layer norms of packed tokens are kernels."""
  return backend.fuses_norms(x.dtype) and fused_norm.fits(rows.filled, x.shape[-1])


def adapted_linear(
  linear: Linear,
  x: jax.Array,
  name: str,
  factors: LoraFactors | None,
  lora: LoraConfig | None,
  key: jax.Array | None,
  rows: Rows | None,
) -> jax.Array:
  """A linear map with LoRA beside it.

  Args:
    linear: the map.
    x: `[B, S, d_in]`, or packed by `rows`.
    name: of the projection.
    factors: its own, `P = 1`; `None` where it is not adapted.
    lora: what is adapted.
    key: of the block's dropout; the name is folded in.
    rows: how `x` is packed.
  """
  if factors is None:
    return linear(x)
  result = linear(x, None if factors.magnitude is None else factors.magnitude[0])
  images = x if rows is None else rows.images(x)
  key = None if key is None else fold(key, PROJECTIONS.index(name))
  return result + lora_deltas(images, factors, lora, key)[0].reshape(result.shape)
