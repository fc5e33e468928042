"""What transformers needs to load a model of ours: the arrays' names, and `config.json`.

Of each family that transformers has, this is the way back of its layout's `describe_hf`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from mdtrap_jax.checkpoints.formats.arrays import in_memory
from mdtrap_jax.checkpoints.layouts import clip, siglip
from mdtrap_jax.checkpoints.layouts.layout import ACTIVATIONS, Checkpoint, Description
from mdtrap_jax.checkpoints.rules import Module
from mdtrap_jax.models.image_stem import ImageConfig
from mdtrap_jax.models.text_stem import TextConfig
from mdtrap_jax.models.vlm import VisionLanguageModel

_PATCH = "vision_model.embeddings.patch_embedding.weight"
_THEIRS = {ours: name for name, ours in reversed(ACTIVATIONS.items())}


class Writable(NamedTuple):
  """A family as transformers stores it."""

  table: Iterable[Module]
  describe: Callable[[Checkpoint], Description]
  config: Callable[[VisionLanguageModel], dict[str, Any]]


def _clip_config(model: VisionLanguageModel) -> dict[str, Any]:
  end = model.text.end_token
  return {
    "architectures": ["CLIPModel"],
    "model_type": "clip",
    "projection_dim": model.image.embed_dim,
    "vision_config": _vision(model.image),
    # The id 2 makes readers take the largest id, as OpenAI's code does.
    "text_config": {**_text(model.text), "eos_token_id": 2 if end is None else end},
  }


def _siglip_config(model: VisionLanguageModel) -> dict[str, Any]:
  return {
    "architectures": ["SiglipModel"],
    "model_type": "siglip",
    "vision_config": _vision(model.image),
    "text_config": {**_text(model.text), "projection_size": model.text.embed_dim},
  }


def _vision(image: ImageConfig) -> dict[str, Any]:
  return {**_blocks(image), "image_size": image.image_size, "patch_size": image.patch_size}


def _text(text: TextConfig) -> dict[str, Any]:
  return {
    **_blocks(text),
    "vocab_size": text.vocabulary_size,
    "max_position_embeddings": text.context_length,
    "bos_token_id": None,  # of no use here, and by default a number for larger vocabularies
    "eos_token_id": None,
  }


def _blocks(config: ImageConfig | TextConfig) -> dict[str, Any]:
  return {
    "hidden_size": config.width,
    "intermediate_size": config.mlp_width,
    "num_hidden_layers": config.depth,
    "num_attention_heads": config.heads,
    "hidden_act": _THEIRS[config.activation],
    "layer_norm_eps": config.epsilon,
  }


_SIGLIP = Writable(siglip.HF, siglip.describe_hf, _siglip_config)
WRITABLE: Mapping[str, Writable] = {
  "clip": Writable(clip.HF, clip.describe_hf, _clip_config),
  "siglip": _SIGLIP,
  "siglip2": _SIGLIP,
}


def writable(model: VisionLanguageModel) -> Writable:
  """How transformers stores this model.

  Raises:
    ValueError: transformers has no such model.
  """
  if (family := WRITABLE.get(model.family)) is None:
    raise ValueError(
      f"{model.name} is of the family {model.family}, of which transformers has no model of images "
      f"and texts; only models of {', '.join(WRITABLE)} can be saved. Keep the original checkpoint "
      "beside the trained factors instead."
    )
  stem = in_memory({_PATCH: np.empty((1, 3, 1, 1))})  # which tells SigLIP from its NaFlex variant
  config = family.config(model)
  expressed = family.describe(Checkpoint(stem, model.name, config=config))
  if expressed != Description(model.family, model.image, model.text, model.sigmoid_bias):
    raise ValueError(
      f"{model.name} has what Hugging Face's {config['architectures'][0]} does not, "
      "so it cannot be saved; keep the original checkpoint beside the trained factors instead."
    )
  return family
