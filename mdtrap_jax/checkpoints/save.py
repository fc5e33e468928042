"""Writes our weights the way Hugging Face stores CLIP, so that `load` reads them back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from safetensors.numpy import save_file

from mdtrap_jax.checkpoints.convert import export, parameter_shapes
from mdtrap_jax.checkpoints.layouts.clip import HF
from mdtrap_jax.checkpoints.layouts.layout import ACTIVATIONS
from mdtrap_jax.checkpoints.rules import TORCH, slots
from mdtrap_jax.models.tokenizers import WORD_TOKENIZER_FILE
from mdtrap_jax.models.vlm import VisionLanguageModel


def save(
  path: str | Path, model: VisionLanguageModel, params: Any, *, dtype: Any = jnp.float32
) -> None:
  """Writes `model.safetensors`, `config.json` and what `load` needs beside them.

  Args:
    path: folder, made if need be.
    model: of CLIP's architecture.
    params: its weights.
    dtype: of the file: float32, float16 or bfloat16.

  Raises:
    ValueError: the model is of another architecture, which this layout cannot express.
  """
  image, text = model.image, model.text
  if image.pool != "class" or not image.projection or text.pool != "end" or not text.causal:
    raise ValueError(f"{model.name}: only models of CLIP's architecture can be saved.")
  folder = Path(path)
  folder.mkdir(parents=True, exist_ok=True)
  stored = export(params, slots(HF, TORCH, parameter_shapes(model)), dtype)
  save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
  _write_json(folder / "config.json", _config(model))
  _write_json(
    folder / "preprocessor_config.json",
    {"image_mean": model.image_mean, "image_std": model.image_std, "size": image.image_size},
  )
  if hasattr(model.tokenize, "vocabulary"):
    _write_json(
      folder / WORD_TOKENIZER_FILE,
      {
        "vocabulary": list(model.tokenize.vocabulary),
        "context_length": model.tokenize.context_length,
      },
    )


def _config(model: VisionLanguageModel) -> dict[str, Any]:
  image, text = model.image, model.text
  theirs = {ours: name for name, ours in reversed(ACTIVATIONS.items())}
  return {
    "architectures": ["CLIPModel"],
    "model_type": "clip",
    "projection_dim": image.embed_dim,
    "vision_config": {
      "hidden_size": image.width,
      "intermediate_size": image.mlp_width,
      "num_hidden_layers": image.depth,
      "num_attention_heads": image.heads,
      "image_size": image.image_size,
      "patch_size": image.patch_size,
      "hidden_act": theirs[image.activation],
      "layer_norm_eps": image.epsilon,
    },
    "text_config": {
      "hidden_size": text.width,
      "intermediate_size": text.mlp_width,
      "num_hidden_layers": text.depth,
      "num_attention_heads": text.heads,
      "vocab_size": text.vocabulary_size,
      "max_position_embeddings": text.context_length,
      "hidden_act": theirs[text.activation],
      "layer_norm_eps": text.epsilon,
      # The id 2 makes readers take the largest id, as OpenAI's code does.
      "eos_token_id": 2 if text.end_token is None else text.end_token,
    },
  }


def _write_json(path: Path, content: Any) -> None:
  path.write_text(json.dumps(content, indent=2) + "\n")
