"""The ResNet-18 of the URL line of work: 84×84 input, no max-pool, frozen batch norm.

Residual adapters (TSA) may stand beside its 3×3 convolutions; they are an argument, not
parameters, so that tasks with adapters of their own share the frozen weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

IMAGE_SIZE = 84
WIDTHS = (64, 128, 256, 512)  # of the four layers
LAYERS = ("layer1", "layer2", "layer3", "layer4")
BLOCKS = 2  # in each
ADAPTED = ("conv1", "conv2")  # the 3×3 convolutions of a block
ADAPTER_SCALE = 1e-4

Adapters = dict[str, jax.Array]  # {"layer1_block0_conv1": [in, out], …}, see `adapter_shapes`


class FrozenBatchNorm(nn.Module):
  """Batch norm with its stored statistics as parameters like any other."""

  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[B, H, W, D]` to the same."""
    shape = (x.shape[-1],)
    value = lambda name, init: self.param(name, init, shape)[None, None, None]
    scale, bias = value("scale", nn.initializers.ones), value("bias", nn.initializers.zeros)
    mean, var = value("mean", nn.initializers.zeros), value("var", nn.initializers.ones)
    factor = scale * jax.lax.rsqrt(var + self.epsilon)
    return x * factor + (bias - mean * factor)


class Convolution(nn.Module):
  """A convolution without bias, padded by 1 unless it is 1×1; an adapter may stand beside it."""

  width: int
  size: int = 3
  stride: int = 1

  @nn.compact
  def __call__(self, x: jax.Array, adapter: jax.Array | None = None) -> jax.Array:
    """Maps `[B, H, W, in]` to `[B, H/stride, W/stride, width]`; the adapter is `[in, width]`."""
    pad = 0 if self.size == 1 else 1
    out = nn.Conv(
      self.width,
      (self.size, self.size),
      self.stride,
      padding=pad,
      use_bias=False,
      kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
      name="conv",
    )(x)
    if adapter is None:
      return out
    # A 1×1 convolution is a matrix product: under vmap a batched one, not a grouped convolution.
    return out + x[:, :: self.stride, :: self.stride] @ adapter


class BasicBlock(nn.Module):
  """Two 3×3 convolutions and a shortcut."""

  width: int
  stride: int

  @nn.compact
  def __call__(self, x: jax.Array, adapters: dict[str, jax.Array]) -> jax.Array:
    """Maps `[B, H, W, in]` to `[B, H/stride, W/stride, width]`; adapters by convolution."""
    shortcut = x
    if self.stride != 1 or x.shape[-1] != self.width:
      shortcut = Convolution(self.width, 1, self.stride, name="down")(x)
      shortcut = FrozenBatchNorm(name="down_norm")(shortcut)
    x = Convolution(self.width, 3, self.stride, name="conv1")(x, adapters.get("conv1"))
    x = nn.relu(FrozenBatchNorm(name="norm1")(x))
    x = Convolution(self.width, name="conv2")(x, adapters.get("conv2"))
    return nn.relu(FrozenBatchNorm(name="norm2")(x) + shortcut)


class _Network(nn.Module):
  """The layers; see `ResNet18`."""

  widths: tuple[int, ...] = WIDTHS

  @nn.compact
  def __call__(self, images: jax.Array, adapters: Adapters) -> jax.Array:
    x = Convolution(self.widths[0], 5, 2, name="stem")(images)
    x = nn.relu(FrozenBatchNorm(name="stem_norm")(x))
    for name, width, stride in block_names(self.widths):
      own = {conv: adapters[f"{name}_{conv}"] for conv in ADAPTED if f"{name}_{conv}" in adapters}
      x = BasicBlock(width, stride, name=name)(x, own)
    return x


def block_names(widths: tuple[int, ...] = WIDTHS) -> list[tuple[str, int, int]]:
  """`(name, width, stride)` of the residual blocks, in order."""
  return [
    (f"layer{layer}_block{block}", width, 2 if layer > 1 and block == 0 else 1)
    for layer, width in enumerate(widths, 1)
    for block in range(BLOCKS)
  ]


def adapter_shapes(
  widths: tuple[int, ...] = WIDTHS, layers: Sequence[str] = LAYERS
) -> dict[str, tuple[int, int]]:
  """`[in, out]` of the adapters beside the four 3×3 convolutions of each layer, in their order.

  Raises:
    ValueError: a name of `layers` is not in `LAYERS`, or there is none.
  """
  if not layers or not set(layers) <= set(LAYERS):
    raise ValueError(f"layers={tuple(layers)}: choose one or more of {LAYERS}.")
  shapes, width_in = {}, widths[0]
  for name, width, _ in block_names(widths):
    if name.partition("_")[0] in layers:
      shapes |= {f"{name}_conv1": (width_in, width), f"{name}_conv2": (width, width)}
    width_in = width
  return shapes


def init_adapters(
  dtype: Any = jnp.float32, widths: tuple[int, ...] = WIDTHS, layers: Sequence[str] = LAYERS
) -> Adapters:
  """`1e-4 · I` of `adapter_shapes`, cut off where an adapter is not square."""
  return {
    name: ADAPTER_SCALE * jnp.eye(*shape, dtype=dtype)
    for name, shape in adapter_shapes(widths, layers).items()
  }


@dataclasses.dataclass(frozen=True)
class ResNet18:
  """The static description; its weights live outside.

  Attributes:
    image_size: side of the input in pixels; the published weights were trained at 84.
    image_mean: per channel, of images in [0, 1].
    image_std: per channel.
    widths: of the four layers.
  """

  image_size: int = IMAGE_SIZE
  # URL reads images as Meta-Dataset gives them: in [-1, 1].
  image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
  image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
  widths: tuple[int, ...] = WIDTHS

  @property
  def width(self) -> int:
    """`D` of its features."""
    return self.widths[-1]

  def init(self, key: jax.Array) -> Any:
    """Random weights, float32; `key` is consumed."""
    images = jnp.zeros((1, self.image_size, self.image_size, 3))
    return _Network(self.widths).init(key, images, {})["params"]

  def feature_maps(
    self, params: Any, images: jax.Array, adapters: Adapters | None = None
  ) -> jax.Array:
    """`[B, h, w, D]` from normalized images `[B, H, W, 3]`; 6×6 at 84 pixels."""
    return _Network(self.widths).apply({"params": params}, images, adapters or {})

  def features(self, params: Any, images: jax.Array, adapters: Adapters | None = None) -> jax.Array:
    """`[B, D]`, the mean over the feature map."""
    return self.feature_maps(params, images, adapters).mean((1, 2))
