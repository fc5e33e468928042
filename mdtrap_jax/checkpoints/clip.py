"""CLIP's published layouts: OpenAI and open_clip (one set of names), Hugging Face torch and Flax."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from mdtrap_jax.checkpoints.arrays import Arrays
from mdtrap_jax.checkpoints.layout import (
    Checkpoint, Description, Layout, activation, count_blocks, merged_config)
from mdtrap_jax.checkpoints.rules import FLAX, TORCH, Module
from mdtrap_jax.models.families import FAMILIES
from mdtrap_jax.models.image_stem import ImageConfig
from mdtrap_jax.models.text_stem import TextConfig


def packed_blocks(name: str, path: str) -> tuple[Module, ...]:
  """Transformer blocks under OpenAI's names."""
  return (
      Module("norm", f"{name}.{{}}.ln_1", f"{path}/norm1"),
      Module("packed", f"{name}.{{}}.attn.in_proj", f"{path}/attention/qkv"),
      Module("dense", f"{name}.{{}}.attn.out_proj", f"{path}/attention/out"),
      Module("norm", f"{name}.{{}}.ln_2", f"{path}/norm2"),
      Module("dense", f"{name}.{{}}.mlp.c_fc", f"{path}/mlp/fc1"),
      Module("dense", f"{name}.{{}}.mlp.c_proj", f"{path}/mlp/fc2"))


def hf_blocks(name: str, path: str) -> tuple[Module, ...]:
  """Transformer blocks under Hugging Face's names."""
  return (
      Module("norm", f"{name}.{{}}.layer_norm1", f"{path}/norm1"),
      *(Module("dense", f"{name}.{{}}.self_attn.{letter}_proj", f"{path}/attention/qkv", part)
        for part, letter in enumerate("qkv")),
      Module("dense", f"{name}.{{}}.self_attn.out_proj", f"{path}/attention/out"),
      Module("norm", f"{name}.{{}}.layer_norm2", f"{path}/norm2"),
      Module("dense", f"{name}.{{}}.mlp.fc1", f"{path}/mlp/fc1"),
      Module("dense", f"{name}.{{}}.mlp.fc2", f"{path}/mlp/fc2"))


OPENAI_TEXT = (
    Module("table", "token_embedding", "text/stem/token"),
    Module("array", "positional_embedding", "text/stem/position"),
    *packed_blocks("transformer.resblocks", "text/blocks"),
    Module("norm", "ln_final", "text/stem/post_norm"),
    Module("matrix", "text_projection", "text/stem/projection"),
)
OPENAI = (
    Module("convolution", "visual.conv1", "image/stem/patch"),
    Module("array", "visual.class_embedding", "image/stem/class_token"),
    Module("array", "visual.positional_embedding", "image/stem/position"),
    Module("norm", "visual.ln_pre", "image/stem/pre_norm"),
    *packed_blocks("visual.transformer.resblocks", "image/blocks"),
    Module("norm", "visual.ln_post", "image/stem/post_norm"),
    Module("matrix", "visual.proj", "image/stem/projection"),
    *OPENAI_TEXT,
    Module("array", "logit_scale", "logit_scale"),
)
HF = (
    Module("convolution", "vision_model.embeddings.patch_embedding", "image/stem/patch"),
    Module("array", "vision_model.embeddings.class_embedding", "image/stem/class_token"),
    Module("table", "vision_model.embeddings.position_embedding", "image/stem/position"),
    Module("norm", "vision_model.pre_layrnorm", "image/stem/pre_norm"),  # their spelling
    *hf_blocks("vision_model.encoder.layers", "image/blocks"),
    Module("norm", "vision_model.post_layernorm", "image/stem/post_norm"),
    Module("dense", "visual_projection", "image/stem/projection"),
    Module("table", "text_model.embeddings.token_embedding", "text/stem/token"),
    Module("table", "text_model.embeddings.position_embedding", "text/stem/position"),
    *hf_blocks("text_model.encoder.layers", "text/blocks"),
    Module("norm", "text_model.final_layer_norm", "text/stem/post_norm"),
    Module("dense", "text_projection", "text/stem/projection"),
    Module("array", "logit_scale", "logit_scale"),
)
HF_VISION_DEFAULTS = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "image_size": 224, "patch_size": 32,
    "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
HF_TEXT_DEFAULTS = {
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048,
    "num_hidden_layers": 12, "num_attention_heads": 8, "max_position_embeddings": 77,
    "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "eos_token_id": 49407}


def describe_hf(checkpoint: Checkpoint) -> Description:
  """The model that a Hugging Face `config.json` describes."""
  config = checkpoint.require_config()
  vision = merged_config(config, "vision_config", HF_VISION_DEFAULTS)
  text = merged_config(config, "text_config", HF_TEXT_DEFAULTS)
  embed_dim = config.get("projection_dim", 512)
  # Old configs carry the id 2, which no tokenizer of CLIP uses, and mean the largest id.
  end_token = None if text["eos_token_id"] == 2 else text["eos_token_id"]
  image_config = ImageConfig(
      image_size=vision["image_size"], patch_size=vision["patch_size"],
      width=vision["hidden_size"], depth=vision["num_hidden_layers"],
      heads=vision["num_attention_heads"], mlp_width=vision["intermediate_size"],
      embed_dim=embed_dim, activation=activation(vision["hidden_act"]),
      epsilon=vision["layer_norm_eps"])
  text_config = TextConfig(
      context_length=text["max_position_embeddings"], vocabulary_size=text["vocab_size"],
      width=text["hidden_size"], depth=text["num_hidden_layers"],
      heads=text["num_attention_heads"], mlp_width=text["intermediate_size"],
      embed_dim=embed_dim, activation=activation(text["hidden_act"]),
      epsilon=text["layer_norm_eps"], end_token=end_token)
  return Description(image_config, text_config, *checkpoint.mean_and_std(FAMILIES["clip"]))


def describe_openai(checkpoint: Checkpoint) -> Description:
  """The model of OpenAI's names: sizes from the shapes, the rest from `open_clip_config.json`.

  Without that file it is one of OpenAI's own: QuickGELU, heads of 64 channels.
  """
  config = checkpoint.open_clip_config
  if config is None and not checkpoint.is_torchscript:
    warnings.warn(
        f"{checkpoint.source} says nothing about its activation; assuming OpenAI's "
        "QuickGELU. For an open_clip checkpoint put its open_clip_config.json beside it.",
        stacklevel=2)
  model = (config or {}).get("model_cfg", {})
  vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
  width = checkpoint.shape("visual.conv1.weight")[0]
  act = "quick_gelu" if config is None or model.get("quick_gelu") else "gelu"
  image, text = openai_configs(
      checkpoint.arrays, activation=act, image_heads=width // vision.get("head_width", 64),
      text_heads=text.get("heads"))
  return Description(image, text, *checkpoint.mean_and_std(FAMILIES["clip"]))


def openai_configs(
    arrays: Arrays | Mapping[str, Any],
    *,
    activation: str = "quick_gelu",
    image_heads: int | None = None,
    text_heads: int | None = None,
) -> tuple[ImageConfig, TextConfig]:
  """The two encoders' shapes from the shapes of arrays under OpenAI's names.

  Args:
    arrays: by OpenAI's names; anything with a `shape`.
    activation: of both MLPs.
    image_heads: where it is not the image width divided by 64.
    text_heads: where it is not the text width divided by 64.
  """
  width, _, patch, _ = arrays["visual.conv1.weight"].shape
  tokens = arrays["visual.positional_embedding"].shape[0]
  context, text_width = arrays["positional_embedding"].shape
  image = ImageConfig(
      image_size=round((tokens - 1)**0.5) * patch, patch_size=patch, width=width,
      depth=count_blocks(arrays, "visual.transformer.resblocks.{}."),
      heads=image_heads or width // 64,
      mlp_width=arrays["visual.transformer.resblocks.0.mlp.c_fc.bias"].shape[0],
      embed_dim=arrays["visual.proj"].shape[1], activation=activation)
  text = TextConfig(
      context_length=context, vocabulary_size=arrays["token_embedding.weight"].shape[0],
      width=text_width, depth=count_blocks(arrays, "transformer.resblocks.{}."),
      heads=text_heads or text_width // 64,
      mlp_width=arrays["transformer.resblocks.0.mlp.c_fc.bias"].shape[0],
      embed_dim=arrays["text_projection"].shape[1], activation=activation)
  return image, text


LAYOUTS = (
    Layout(
        "clip-openai", "clip", ("visual.class_embedding", "visual.proj"), OPENAI, TORCH,
        describe_openai, ignored=("input_resolution", "context_length", "vocab_size",
                                  "attn_mask"), excluded=("visual.attn_pool.probe",)),
    Layout(
        "clip-huggingface", "clip",
        ("vision_model.embeddings.class_embedding", "text_projection.weight"), HF, TORCH,
        describe_hf, ignored=(r"(text|vision)_model\.embeddings\.position_ids",)),
    Layout(
        "clip-huggingface-flax", "clip",
        ("vision_model.embeddings.class_embedding", "text_projection.kernel"), HF, FLAX,
        describe_hf),
)
