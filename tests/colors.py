"""Pretraining in seconds: a tiny model that learns the words of plain colors."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from configs import miniature
from mdtrap_jax import config as configs
from mdtrap_jax.data.sources import ArraySource
from mdtrap_jax.experiments import pretrain
from mdtrap_jax.world import ANY, caption_ids
from mdtrap_jax.world.scenes import COLOR_TABLE, COLORS

STEPS = 24


def small_config(**changes):
  config = miniature.get_config()
  config.model.update(width=16, image_depth=1, text_depth=1, heads=2, mlp_width=32, embed_dim=16)
  config.update(
    steps=STEPS,
    batch_size=64,
    learning_rate=1e-2,
    warmup_steps=4,
    evaluate_every=10,
    evaluate_episodes=20,
  )
  config.update_from_flattened_dict(changes)
  return configs.resolve(config)


def plain_batch(key, batch):
  """Stands in for the renderer, which is slow to compile: the color fills the image."""
  color = jax.random.randint(key, (batch,), 0, len(COLORS))
  attributes = ANY._replace(color=color)
  table = jnp.asarray([COLOR_TABLE[name] for name in COLORS])
  images = jnp.broadcast_to(table[color][:, None, None, :] * 255, (batch, 48, 48, 3))
  ids = jax.vmap(lambda color, key: caption_ids(attributes._replace(color=color), key))(
    color, jax.random.split(jax.random.fold_in(key, 1), batch)
  )
  return images.astype(jnp.uint8), ids


@functools.cache
def colors():
  """Held-out images of the colors, which get lighter from one to the next."""
  table = np.array([COLOR_TABLE[name] for name in COLORS]).repeat(4, axis=0)
  light = np.linspace(230, 255, 4)[np.arange(len(table)) % 4]
  images = np.zeros((len(table), 48, 48, 3)) + (table * light[:, None])[:, None, None]
  labels = np.arange(len(table)) // 4
  return ArraySource(images.astype(np.uint8), labels, [f"{name} object" for name in COLORS])


@functools.cache
def make_method(**changes):
  """One for all runs of a config, so that they share what is compiled."""
  method = pretrain.make_method(small_config(**changes), colors())
  return dataclasses.replace(method, sample=plain_batch)
