"""CLIP's published layouts: OpenAI's (open_clip's too) and Hugging Face's, torch and Flax."""

from __future__ import annotations

import functools
import warnings

from mdtrap_jax.checkpoints.layouts.layout import (
  Checkpoint,
  Description,
  Layout,
  activation,
  count_blocks,
  merged_config,
)
from mdtrap_jax.checkpoints.rules import FLAX, TORCH, Module
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
    Module("dense", f"{name}.{{}}.mlp.c_proj", f"{path}/mlp/fc2"),
  )


def packed_text(prefix: str) -> tuple[Module, ...]:
  """A text encoder under OpenAI's names; open_clip may put `text.` before them."""
  return (
    Module("table", f"{prefix}token_embedding", "text/stem/token"),
    Module("array", f"{prefix}positional_embedding", "text/stem/position"),
    *packed_blocks(f"{prefix}transformer.resblocks", "text/blocks"),
    Module("norm", f"{prefix}ln_final", "text/stem/post_norm"),
    Module("matrix", f"{prefix}text_projection", "text/stem/projection"),
    Module("array", "logit_scale", "logit_scale"),
  )


def hf_blocks(name: str, path: str) -> tuple[Module, ...]:
  """Transformer blocks under Hugging Face's names."""
  return (
    Module("norm", f"{name}.{{}}.layer_norm1", f"{path}/norm1"),
    *(
      Module("dense", f"{name}.{{}}.self_attn.{letter}_proj", f"{path}/attention/qkv", part)
      for part, letter in enumerate("qkv")
    ),
    Module("dense", f"{name}.{{}}.self_attn.out_proj", f"{path}/attention/out"),
    Module("norm", f"{name}.{{}}.layer_norm2", f"{path}/norm2"),
    Module("dense", f"{name}.{{}}.mlp.fc1", f"{path}/mlp/fc1"),
    Module("dense", f"{name}.{{}}.mlp.fc2", f"{path}/mlp/fc2"),
  )


OPENAI_IMAGE = (
  Module("convolution", "visual.conv1", "image/stem/patch"),
  Module("array", "visual.class_embedding", "image/stem/class_token"),
  Module("array", "visual.positional_embedding", "image/stem/position"),
  Module("norm", "visual.ln_pre", "image/stem/pre_norm"),
  *packed_blocks("visual.transformer.resblocks", "image/blocks"),
  Module("norm", "visual.ln_post", "image/stem/post_norm"),
  Module("matrix", "visual.proj", "image/stem/projection"),
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
  "hidden_size": 768,
  "intermediate_size": 3072,
  "num_hidden_layers": 12,
  "num_attention_heads": 12,
  "image_size": 224,
  "patch_size": 32,
  "hidden_act": "quick_gelu",
  "layer_norm_eps": 1e-5,
}
HF_TEXT_DEFAULTS = {
  "vocab_size": 49408,
  "hidden_size": 512,
  "intermediate_size": 2048,
  "num_hidden_layers": 12,
  "num_attention_heads": 8,
  "max_position_embeddings": 77,
  "hidden_act": "quick_gelu",
  "layer_norm_eps": 1e-5,
  "eos_token_id": 49407,
}


def describe_hf(checkpoint: Checkpoint) -> Description:
  """The model that a Hugging Face `config.json` describes."""
  config = checkpoint.require_config("clip")
  vision = merged_config(config, "vision_config", HF_VISION_DEFAULTS)
  text = merged_config(config, "text_config", HF_TEXT_DEFAULTS)
  embed_dim = config.get("projection_dim", 512)
  end_token = text["eos_token_id"]
  if end_token is not None and type(end_token) is not int:
    raise ValueError(f"eos_token_id={end_token!r:.40}: must be a whole number, the token's id")
  # Old configs carry the id 2, which no tokenizer of CLIP uses, and mean the largest id.
  end_token = None if end_token == 2 else end_token
  image_config = ImageConfig(
    image_size=vision["image_size"],
    patch_size=vision["patch_size"],
    width=vision["hidden_size"],
    depth=vision["num_hidden_layers"],
    heads=vision["num_attention_heads"],
    mlp_width=vision["intermediate_size"],
    embed_dim=embed_dim,
    activation=activation(vision["hidden_act"]),
    epsilon=vision["layer_norm_eps"],
  )
  text_config = TextConfig(
    context_length=text["max_position_embeddings"],
    vocabulary_size=text["vocab_size"],
    width=text["hidden_size"],
    depth=text["num_hidden_layers"],
    heads=text["num_attention_heads"],
    mlp_width=text["intermediate_size"],
    embed_dim=embed_dim,
    activation=activation(text["hidden_act"]),
    epsilon=text["layer_norm_eps"],
    end_token=end_token,
  )
  return Description("clip", image_config, text_config)


def describe_openai(checkpoint: Checkpoint, text_prefix: str = "") -> Description:
  """The model of OpenAI's names: sizes from the shapes, the rest from `open_clip_config.json`.

  Without that file it is taken for one of OpenAI's own: QuickGELU, heads of 64 channels.
  """
  config, choices, shape = checkpoint.open_clip_config, checkpoint.choices, checkpoint.shape
  model = (config or {}).get("model_cfg", {})
  act = choices.activation
  if act is None:
    act = "quick_gelu" if config is None or model.get("quick_gelu") else "gelu"
    if config is None and not checkpoint.is_torchscript:
      warnings.warn(
        f"{checkpoint.source} does not say its activation; assuming OpenAI's QuickGELU. "
        "For an open_clip checkpoint put its open_clip_config.json beside it.",
        stacklevel=2,
      )
  width, _, patch, _ = shape("visual.conv1.weight")
  tokens = shape("visual.positional_embedding")[0]
  head_width = model.get("vision_cfg", {}).get("head_width", 64)
  blocks = "visual.transformer.resblocks"
  image = ImageConfig(
    image_size=round((tokens - 1) ** 0.5) * patch,
    patch_size=patch,
    width=width,
    depth=count_blocks(checkpoint.arrays, f"{blocks}.{{}}."),
    heads=choices.image_heads or max(width // head_width, 1),
    mlp_width=shape(f"{blocks}.0.mlp.c_fc.bias")[0],
    embed_dim=shape("visual.proj")[1],
    activation=act,
  )
  return Description("clip", image, describe_packed_text(checkpoint, text_prefix, act))


def describe_packed_text(checkpoint: Checkpoint, prefix: str, activation: str) -> TextConfig:
  """A text encoder of OpenAI's names from the shapes of its arrays."""
  shape, blocks = checkpoint.shape, f"{prefix}transformer.resblocks"
  model = (checkpoint.open_clip_config or {}).get("model_cfg", {})
  context_length, width = shape(f"{prefix}positional_embedding")
  heads = checkpoint.choices.text_heads or model.get("text_cfg", {}).get("heads")
  return TextConfig(
    context_length=context_length,
    vocabulary_size=shape(f"{prefix}token_embedding.weight")[0],
    width=width,
    depth=count_blocks(checkpoint.arrays, f"{blocks}.{{}}."),
    heads=heads or max(width // 64, 1),
    mlp_width=shape(f"{blocks}.0.mlp.c_fc.bias")[0],
    embed_dim=shape(f"{prefix}text_projection")[1],
    activation=activation,
  )


_BUFFERS = ("input_resolution", "context_length", "vocab_size", r"(text\.)?attn_mask")

LAYOUTS = (
  Layout(
    "clip-openai",
    (*OPENAI_IMAGE, *packed_text("")),
    TORCH,
    describe_openai,
    _BUFFERS,
    "bicubic-antialias",
  ),
  Layout(
    "clip-open_clip",
    (*OPENAI_IMAGE, *packed_text("text.")),
    TORCH,
    functools.partial(describe_openai, text_prefix="text."),
    _BUFFERS,
    "bicubic-antialias",
  ),
  Layout(
    "clip-huggingface", HF, TORCH, describe_hf, (r"(text|vision)_model\.embeddings\.position_ids",)
  ),
  Layout("clip-huggingface-flax", HF, FLAX, describe_hf),
)
