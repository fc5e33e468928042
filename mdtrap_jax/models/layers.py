"""What blocks and both ends of an encoder are made of: shapes, activations, norms, linear maps."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from mdtrap_jax.models.rope import Rope
from mdtrap_jax.models.shared_prefix import SharedPrefix


def _gelu(x):
  """As PyTorch has it. `jax.nn.gelu` goes by `erfc`, which takes more operations than `erf`."""
  wide = _wide(x)
  return (wide * (0.5 + 0.5 * jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


ACTIVATIONS = {
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
  "gelu": _gelu,
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
  shared: SharedPrefix | None = None  # where rows begin alike; only if causal

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
  def __call__(self, x: jax.Array, form: Callable[..., Any] | None = None) -> Any:
    """Normalizes the last axis of `x [..., W]`; `form` is called in place of `normalize`."""
    scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
    bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
    return (normalize if form is None else form)(self.epsilon, x, scale, bias)


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


class Linear(nn.Module):
  """`x W + b`."""

  width: int

  @nn.compact
  def __call__(self, x: jax.Array, scale: jax.Array | None = None) -> jax.Array:
    """Maps `[..., d_in]` to `[..., width]`; `scale [width]` is a factor on the columns of `W`."""
    shape = (x.shape[-1], self.width)
    kernel = self.param("kernel", nn.initializers.lecun_normal(), shape).astype(x.dtype)
    bias = self.param("bias", nn.initializers.zeros, shape[1:]).astype(x.dtype)
    product = x @ kernel
    if scale is not None:
      product = product * _row(scale, x.ndim).astype(x.dtype)
    return product + _row(bias, x.ndim)
