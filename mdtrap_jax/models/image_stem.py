"""Both ends of an image encoder: images to tokens, and tokens to one embedding.

What lies between is `transformer.run_blocks`. CLIP, SigLIP and PE-Core differ only in the
choices of `ImageConfig`.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from mdtrap_jax.models.attention import attention
from mdtrap_jax.models.layers import BlockConfig, LayerNorm
from mdtrap_jax.models.rope import Rope
from mdtrap_jax.models.sizes import check_sizes
from mdtrap_jax.models.transformer import Mlp


@dataclasses.dataclass(frozen=True)
class ImageConfig:
  """The static shape of an image encoder. Defaults are CLIP ViT-B/16."""

  image_size: int = 224
  patch_size: int = 16
  width: int = 768
  depth: int = 12
  heads: int = 12
  mlp_width: int = 3072
  embed_dim: int = 512  # D
  activation: str = "quick_gelu"
  epsilon: float = 1e-5
  patch_bias: bool = False  # SigLIP's patch embedding has one
  class_token: bool = True
  pre_norm: bool = True  # a layer norm before the first block
  pool: str = "class"  # "class": the class token; "attention": a learned query attends to all
  pool_heads: int = 0  # of attention pooling
  pool_mlp_width: int = 0  # of attention pooling
  projection: bool = True  # SigLIP has none: D = width
  projection_bias: bool = False  # timm's layout of PE-Core has one, of zeros
  rope: bool = False  # 2-D rotary positions in every block, as PE-Core has

  def __post_init__(self):
    check_sizes(self)
    if self.image_size < self.patch_size:
      raise ValueError(f"image_size={self.image_size} is less than patch_size={self.patch_size}.")
    if self.pool not in ("class", "attention"):
      raise ValueError(f"pool={self.pool!r}: choose 'class' or 'attention'.")
    if self.pool == "class" and not self.class_token:
      raise ValueError("pool='class' needs class_token=True.")
    if not self.projection and self.embed_dim != self.width:
      raise ValueError(
        f"without a projection embed_dim={self.embed_dim} must equal width={self.width}."
      )
    if self.pool == "attention" and (not self.pool_heads or self.width % self.pool_heads):
      raise ValueError(f"width={self.width} is no multiple of pool_heads={self.pool_heads}.")
    _ = self.block  # which checks the rest

  @property
  def grid(self) -> int:
    """Patches along one side; a remainder of pixels (SigLIP's 384 = 27·14 + 6) is left out."""
    return self.image_size // self.patch_size

  @property
  def patches(self) -> int:
    """`P`, row by row; they stand behind the class token, where there is one."""
    return self.grid**2

  @property
  def tokens(self) -> int:
    """Sequence length `S`."""
    return self.patches + self.class_token

  @property
  def block(self) -> BlockConfig:
    """The configuration of the blocks between the two ends."""
    rope = None
    if self.rope:
      rope = Rope(self.grid, self.width // self.heads, self.class_token)
    return BlockConfig(
      self.width, self.heads, self.mlp_width, self.activation, self.epsilon, rope=rope
    )


class AttentionPool(nn.Module):
  """One learned query attends to all tokens, followed by a residual MLP (MAP head)."""

  config: ImageConfig

  @nn.compact
  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Maps tokens `[B, S, W]` to `[B, W]`."""
    config, width = self.config, self.config.width
    xavier = nn.initializers.xavier_uniform()
    probe = self.param("probe", xavier, (1, width))
    # Packed like the blocks' projections, but the query sees the probe alone.
    kernel = self.param("qkv_kernel", xavier, (width, 3, width)).astype(tokens.dtype)
    bias = self.param("qkv_bias", nn.initializers.zeros, (3, width)).astype(tokens.dtype)
    query = probe.astype(tokens.dtype) @ kernel[:, 0] + bias[:1]
    query = jnp.broadcast_to(query[None], (tokens.shape[0], 1, width))
    key, value = (tokens @ kernel[:, part] + bias[None, part : part + 1] for part in (1, 2))
    out = attention(query, key, value, config.pool_heads)
    out = nn.Dense(width, name="out")(out)[:, 0]
    mlp = Mlp(config.pool_mlp_width, config.activation, name="mlp")
    return out + mlp(LayerNorm(epsilon=config.epsilon, name="norm")(out))


class ImageStem(nn.Module):
  """Patch embedding and pooling of one image encoder."""

  config: ImageConfig

  def setup(self):
    """Declares the parameters that `embed` and `pool` share out between them."""
    config = self.config
    normal = nn.initializers.normal(config.width**-0.5)
    self.patch = nn.Dense(config.width, use_bias=config.patch_bias)
    self.position = self.param("position", normal, (config.tokens, config.width))
    if config.class_token:
      self.class_token = self.param("class_token", normal, (config.width,))
    if config.pre_norm:
      self.pre_norm = LayerNorm(epsilon=config.epsilon)
    self.post_norm = LayerNorm(epsilon=config.epsilon)
    if config.pool == "attention":
      self.attention_pool = AttentionPool(config)
    if config.projection:
      self.projection = nn.Dense(config.embed_dim, use_bias=config.projection_bias)

  def embed(self, images: jax.Array, norm: bool = True) -> jax.Array:
    """Maps normalized images `[B, H, W, 3]` to tokens `[B, S, width]`.

    Args:
      images: of the encoder's size.
      norm: whether `norm` is part of it; static.

    Raises:
      ValueError: the images are not of the encoder's size.
    """
    config, size = self.config, self.config.image_size
    if images.shape[1:] != (size, size, 3):
      raise ValueError(f"images have shape {images.shape}, expected [B, {size}, {size}, 3].")
    batch, grid, patch = images.shape[0], config.grid, config.patch_size
    images = images[:, : grid * patch, : grid * patch]
    patches = images.reshape(batch, grid, patch, grid, patch, 3).swapaxes(2, 3)
    tokens = self.patch(patches.reshape(batch, grid * grid, patch * patch * 3))
    if config.class_token:
      shape = (batch, 1, config.width)
      token = jnp.broadcast_to(self.class_token.astype(tokens.dtype), shape)
      tokens = jnp.concatenate([token, tokens], axis=1)
    tokens = tokens + self.position.astype(tokens.dtype)[None]
    return self.norm(tokens) if norm else tokens

  def norm(self, tokens: jax.Array) -> jax.Array:
    """The layer norm before the first block, where there is one."""
    return self.pre_norm(tokens) if self.config.pre_norm else tokens

  def pool(self, tokens: jax.Array) -> jax.Array:
    """Maps the last block's tokens `[B, S, width]` to embeddings `[B, D]`, not normalized."""
    if self.config.pool == "class":
      return self._project(self.post_norm(tokens[:, 0]))
    return self._project(self.attention_pool(self.post_norm(tokens)))

  def pool_with_patches(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`pool`, and beside it the patches after the last norm, `[B, P, width]`; see `patches`."""
    normed = self.post_norm(tokens)
    pooled = normed[:, 0] if self.config.pool == "class" else self.attention_pool(normed)
    return self._project(pooled), normed[:, self.config.tokens - self.config.patches :]

  def _project(self, pooled: jax.Array) -> jax.Array:
    return self.projection(pooled) if self.config.projection else pooled

  def __call__(self, images: jax.Array) -> jax.Array:
    """An encoder without blocks; touches every parameter, for `init`."""
    return self.pool(self.embed(images))
