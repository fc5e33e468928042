"""Attention of the class token and of the pooling query, against NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mdtrap_jax.analysis.attention import attention_maps, shares
from mdtrap_jax.models import random_weights
from mdtrap_jax.models.image_stem import ImageConfig, ImageStem
from mdtrap_jax.models.transformer import run_blocks
from tests.episodes import smallest_clip


def numpy_shares(query, key, heads):
  split = lambda rows: np.split(np.asarray(rows, np.float64), heads, axis=-1)
  found = []
  for q, k in zip(split(query), split(key), strict=True):
    logits = np.einsum("bd,bsd->bs", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(logits)
    found.append(weights / weights.sum(-1, keepdims=True))
  return np.mean(found, axis=0)


def numpy_norm(x, params, epsilon):
  x = np.asarray(x, np.float64)
  normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
  return normal * np.asarray(params["scale"]) + np.asarray(params["bias"])


def test_shares_by_hand():
  query = jnp.array([[1.0, 0.0, 0.0, 2.0]])
  key = jnp.array([[[0.0, 0.0, 0.0, 0.0], [2**0.5 * np.log(3.0), 1.0, 1.0, 0.0]]])
  # First head: logits 0 and log 3, shares ¼ and ¾; second: 0 and 0, shares ½ and ½.
  np.testing.assert_allclose(shares(query, key, 2), [[0.375, 0.625]], rtol=1e-6)


def test_the_class_token_against_numpy():
  model, params = smallest_clip()
  config, encoder = model.image, params["image"]
  images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
  maps = jax.jit(lambda: attention_maps(model, params, images))()
  assert maps.shape == (2, 2, 2)
  np.testing.assert_allclose(maps.sum((1, 2)), 1, rtol=1e-5)
  tokens = run_blocks(encoder["blocks"], model.embed_image(params, images), config.block, stop=1)
  block = jax.tree.map(lambda leaf: np.asarray(leaf[1], np.float64), encoder["blocks"])
  x = numpy_norm(tokens, block["norm1"], config.epsilon)
  kernel, bias = block["attention"]["qkv"]["kernel"], block["attention"]["qkv"]["bias"]
  query, key = (x @ kernel[:, part] + bias[part] for part in (0, 1))
  patches = numpy_shares(query[:, 0], key, config.heads)[:, 1:]
  expected = patches / patches.sum(-1, keepdims=True)
  np.testing.assert_allclose(maps.reshape(2, 4), expected, rtol=1e-3)


def test_the_pooling_query_against_numpy():
  model, _ = smallest_clip()
  config = ImageConfig(
    image_size=16, patch_size=8, width=64, depth=1, heads=1, mlp_width=128, embed_dim=64,
    class_token=False, pre_norm=False, pool="attention", pool_heads=2, pool_mlp_width=128,
    projection=False,
  )  # fmt: skip
  model = dataclasses.replace(model, image=config)
  params = random_weights(model, jax.random.key(3))
  stem = params["image"]["stem"]
  images = jax.random.normal(jax.random.key(4), (2, 16, 16, 3))
  maps = jax.jit(lambda: attention_maps(model, params, images))()
  tokens = ImageStem(config).apply({"params": stem}, images, method="embed")
  x = run_blocks(params["image"]["blocks"], tokens, config.block)
  x = numpy_norm(x, stem["post_norm"], config.epsilon)
  pool = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), stem["attention_pool"])
  query = np.repeat(pool["probe"] @ pool["qkv_kernel"][:, 0] + pool["qkv_bias"][:1], 2, axis=0)
  key = x @ pool["qkv_kernel"][:, 1] + pool["qkv_bias"][1]
  np.testing.assert_allclose(maps.reshape(2, 4), numpy_shares(query, key, 2), rtol=1e-3)
