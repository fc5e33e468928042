"""A generated image world: captioned scenes, and domains that change their look by degrees."""

from mdtrap_jax.world.captions import (
  CONTEXT_LENGTH,
  VOCABULARY,
  caption_ids,
  phrase,
  words_to_caption,
)
from mdtrap_jax.world.digits import DigitsSource
from mdtrap_jax.world.domains import LOOKS, render_batch
from mdtrap_jax.world.scenes import ANY, Attributes, Scene, named, sample_scene
from mdtrap_jax.world.source import CLASSES, WorldSource, sample_batch

__all__ = [
  "ANY",
  "CLASSES",
  "CONTEXT_LENGTH",
  "LOOKS",
  "VOCABULARY",
  "Attributes",
  "DigitsSource",
  "Scene",
  "WorldSource",
  "caption_ids",
  "named",
  "phrase",
  "render_batch",
  "sample_batch",
  "sample_scene",
  "words_to_caption",
]
