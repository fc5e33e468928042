"""Where an image encoder looks: the attention of its class token, or of its pooling query."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mdtrap_jax.models.image_stem import ImageConfig
from mdtrap_jax.models.transformer import Block, LayerNorm, run_blocks
from mdtrap_jax.models.vlm import Params, VisionLanguageModel


def attention_maps(model: VisionLanguageModel, params: Params, images: jax.Array) -> jax.Array:
  """Shares of attention of each patch, `[B, G, G]`, the mean over heads; each map sums to 1.

  Of an encoder that pools by its class token, that token's attention in the last block, without
  what it gives to itself; of one that pools by attention, the pooling query's.

  Args:
    model: whose images they are.
    params: of the model; of an adapted one, with what was trained merged into them.
    images: `[B, H, W, 3]`, normalized.
  """
  config, encoder = model.image, params["image"]
  whole = config.depth - (config.pool == "class")  # blocks that run as they are
  tokens = model.embed_image(params, images)
  if whole:
    tokens = run_blocks(encoder["blocks"], tokens, config.block, stop=whole)
  if config.pool == "class":
    query, key = _last_block(encoder["blocks"], config, tokens)
    heads = config.heads
  else:
    query, key = _pooling(encoder["stem"], config, tokens)
    heads = config.pool_heads
  patches = shares(query, key, heads)[:, int(config.class_token) :]
  patches = patches / patches.sum(-1, keepdims=True)
  return patches.reshape(-1, config.grid, config.grid)


def shares(query: jax.Array, key: jax.Array, heads: int) -> jax.Array:
  """Softmax attention of one query to `S` tokens, the mean over heads, `[B, S]`.

  Args:
    query: `[B, W]`.
    key: `[B, S, W]`.
    heads: divides `W`.
  """
  query = query.reshape(len(query), heads, -1).astype(jnp.float32)
  key = key.reshape(*key.shape[:2], heads, -1).astype(jnp.float32)
  logits = jnp.einsum("bhd,bshd->bhs", query, key) * query.shape[-1] ** -0.5
  return jax.nn.softmax(logits, axis=-1).mean(1)


def _last_block(blocks, config: ImageConfig, x: jax.Array):
  """The class token's query `[B, W]` and all keys `[B, S, W]` of the last block."""
  last = jax.tree.map(lambda leaf: leaf[-1], blocks)
  project = lambda block, x: block.attention.project(block.norm1(x))
  query, key, _ = Block(config.block).apply({"params": last}, x, method=project)
  return query[:, 0], key


def _pooling(stem, config: ImageConfig, x: jax.Array):
  """The pooling query `[B, W]` and the tokens' keys `[B, S, W]`; see `AttentionPool`."""
  x = LayerNorm(epsilon=config.epsilon).apply({"params": stem["post_norm"]}, x)
  pool = stem["attention_pool"]
  kernel, bias = pool["qkv_kernel"].astype(x.dtype), pool["qkv_bias"].astype(x.dtype)
  query = pool["probe"].astype(x.dtype) @ kernel[:, 0] + bias[:1]
  return jnp.repeat(query, len(x), axis=0), x @ kernel[:, 1] + bias[None, 1:2]
