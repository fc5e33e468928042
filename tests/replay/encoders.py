"""Replays recorded encoder outputs: Hugging Face CLIP folders, big_vision SigLIP, PE-Core."""

from __future__ import annotations

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mdtrap_jax import checkpoints
from mdtrap_jax.models.image_stem import ImageStem
from mdtrap_jax.models.transformer import run_blocks
from mdtrap_jax.models.vlm import VisionLanguageModel
from tests.replay.check import Check

TOLERANCE = 1e-5


def replay(path: str | Path) -> list[Check]:
  """Compares our embeddings with the recorded ones, relative to the largest of them.

  Args:
    path: a folder with `flax_model.msgpack`, `config.json` and `io.npz`, or a `.npz` file of
      big_vision's or PE-Core's arrays beside inputs and outputs.

  Raises:
    ValueError: the file is of no known format.
  """
  path = Path(path)
  if path.is_dir():
    return _clip(path)
  with np.load(path) as file:
    arrays = dict(file)
  if "image_nhwc" in arrays:
    return _siglip(arrays)
  if "config" in arrays and "image_tokens" in arrays:
    return _pe_core(arrays)
  raise ValueError(f"{path}: no encoder recording; its arrays are {', '.join(arrays)[:200]}.")


def _clip(folder: Path) -> list[Check]:
  recorded = np.load(folder / "io.npz")
  images = jnp.asarray(recorded["image_nchw"].transpose(0, 2, 3, 1))
  model, params = checkpoints.load(folder, image_size=images.shape[1], tokenize=_no_tokenizer)
  return _embeddings(model, params, images, recorded)


def _siglip(arrays: dict[str, np.ndarray]) -> list[Check]:
  weights = {name: a for name, a in arrays.items() if name.startswith("params/")}
  images = jnp.asarray(arrays["image_nhwc"])
  model, params = checkpoints.from_arrays(
    weights, image_size=images.shape[1], tokenize=_no_tokenizer
  )
  checks = [
    _check("temperature", model.logit_scale(params), arrays["temperature"]),
    _check("bias", params["logit_bias"], arrays["bias"]),
  ]
  return checks + _embeddings(model, params, images, arrays, unit_norm=True)


def _pe_core(arrays: dict[str, np.ndarray]) -> list[Check]:
  config = ast.literal_eval(str(arrays["config"]))
  weights = {
    name.removeprefix("model/"): a for name, a in arrays.items() if name.startswith("model/")
  }
  images = jnp.asarray(arrays["image"].transpose(0, 2, 3, 1))
  model, params = checkpoints.from_arrays(
    weights,
    image_size=images.shape[1],
    image_heads=config["heads"],
    text_heads=config["text"]["heads"],
    pool_heads=config.get("attn_pooler_heads"),
    tokenize=_no_tokenizer,
  )
  checks = _embeddings(model, params, images, arrays)
  tokens = jax.jit(_tokens, static_argnums=0)(model, params, images)
  return [*checks, _check("image_tokens", tokens, arrays["image_tokens"])]


def _tokens(model: VisionLanguageModel, params, images: jax.Array) -> jax.Array:
  """Image tokens `[B, S, width]` as they enter the attention pooling."""
  tokens = model.embed_image(params, images)
  tokens = run_blocks(params["image"]["blocks"], tokens, model.image.block)
  return ImageStem(model.image).apply(
    {"params": params["image"]["stem"]}, tokens, method=lambda stem, tokens: stem.post_norm(tokens)
  )


def _embeddings(model, params, images, recorded, unit_norm: bool = False) -> list[Check]:
  ids = jnp.asarray(recorded["token_ids"], jnp.int32)
  ours = {
    "image_embeds": jax.jit(model.encode_image)(params, images),
    "text_embeds": jax.jit(model.encode_text)(params, ids),
  }
  if unit_norm:
    ours = {k: v / jnp.linalg.norm(v, axis=-1, keepdims=True) for k, v in ours.items()}
  return [_check(name, value, recorded[name]) for name, value in ours.items()]


def _check(name: str, ours, recorded: np.ndarray) -> Check:
  error = np.abs(np.asarray(ours) - recorded).max() / np.abs(recorded).max()
  return Check(name, float(error), TOLERANCE)


def _no_tokenizer(texts):
  raise AssertionError(f"a recording has token ids, no texts to tokenize: {texts}")
