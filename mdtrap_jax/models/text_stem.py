"""Both ends of a text encoder: token ids to tokens, and tokens to one embedding."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from mdtrap_jax.models.attention import put_tokens
from mdtrap_jax.models.layers import BlockConfig, LayerNorm
from mdtrap_jax.models.sizes import check_sizes


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """The static shape of a text encoder. Defaults are CLIP's beside ViT-B."""

  context_length: int = 77
  vocabulary_size: int = 49408
  width: int = 512
  depth: int = 12
  heads: int = 8
  mlp_width: int = 2048
  embed_dim: int = 512  # D
  activation: str = "quick_gelu"
  epsilon: float = 1e-5
  causal: bool = True
  pool: str = "end"  # "end": at the end-of-text token; "last": at the last position
  end_token: int | None = None  # None: the largest id of the row, as OpenAI's code has it
  projection_bias: bool = False

  def __post_init__(self):
    check_sizes(self)
    if self.pool not in ("end", "last"):
      raise ValueError(f"pool={self.pool!r}: choose 'end' or 'last'.")
    _ = self.block  # which checks the rest

  @property
  def cuts(self) -> bool:
    """Whether rows may end with the longest text: nothing sees the padding after it."""
    return self.causal and self.pool == "end"

  @property
  def block(self) -> BlockConfig:
    """The configuration of the blocks between the two ends."""
    return BlockConfig(
      self.width, self.heads, self.mlp_width, self.activation, self.epsilon, self.causal
    )


class TextStem(nn.Module):
  """Token embedding and pooling of one text encoder."""

  config: TextConfig

  def setup(self):
    """Declares the parameters that `embed` and `pool` share out between them."""
    config = self.config
    normal = nn.initializers.normal
    self.token = self.param("token", normal(0.02), (config.vocabulary_size, config.width))
    self.position = self.param("position", normal(0.01), (config.context_length, config.width))
    self.post_norm = LayerNorm(epsilon=config.epsilon)
    self.projection = nn.Dense(config.embed_dim, use_bias=config.projection_bias)

  def embed(self, token_ids: jax.Array, context: jax.Array | None = None, at: int = 0) -> jax.Array:
    """Maps ids `[B, L] int32` to tokens `[B, L, width]`.

    Args:
      token_ids: rows of the encoder's context length; shorter ones where `cuts`.
      context: learned tokens, `[n, width]` or `[B, n, width]`, in place of the rows' own
        `at … at+n-1`.
      at: static.

    Raises:
      ValueError: the rows have another length.
    """
    length, rows = self.config.context_length, token_ids.shape[1]
    if rows > length or (rows < length and not self.config.cuts):
      raise ValueError(f"token ids have shape {token_ids.shape}, expected [B, {length}].")
    tokens = self.token[token_ids]
    if context is not None:
      tokens = put_tokens(tokens, context, at)
    return tokens + self.position[None, :rows]

  def pool(self, tokens: jax.Array, token_ids: jax.Array) -> jax.Array:
    """Maps the last block's tokens `[B, L, width]` to embeddings `[B, D]`, not normalized.

    A row in which the end token does not occur has no embedding: its numbers are NaN.
    """
    if self.config.pool == "last":
      pooled = tokens[:, -1]
    else:
      end = self.config.end_token
      is_end = token_ids if end is None else token_ids == end
      position = jnp.argmax(is_end, axis=-1)
      pooled = jnp.take_along_axis(tokens, position[:, None, None], axis=1)[:, 0]
      if end is not None:
        pooled = jnp.where(jnp.any(is_end, axis=-1)[:, None], pooled, jnp.nan)
    return self.projection(self.post_norm(pooled))

  def __call__(self, token_ids: jax.Array) -> jax.Array:
    """An encoder without blocks; touches every parameter, for `init`."""
    return self.pool(self.embed(token_ids), token_ids)
