"""Writes our weights the way Hugging Face stores CLIP, so that `load` reads them back."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors.numpy import save_file

from mdtrap_jax import files
from mdtrap_jax.checkpoints.convert import export, parameter_shapes
from mdtrap_jax.checkpoints.formats.arrays import read_json
from mdtrap_jax.checkpoints.layouts import clip
from mdtrap_jax.checkpoints.layouts.layout import ACTIVATIONS, Checkpoint, Description
from mdtrap_jax.checkpoints.rules import TORCH, slots
from mdtrap_jax.checkpoints.source import CONFIG_FILES
from mdtrap_jax.checkpoints.tokenizer_files import TOKENIZER_FILES, tokenizer_contents
from mdtrap_jax.models.vlm import VisionLanguageModel

_WEIGHTS, _CONFIG, _PREPROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"
_READ = {_WEIGHTS, *CONFIG_FILES, *TOKENIZER_FILES}  # what `load` reads where these weights are
_MARK = "saved_by"  # a field of config.json by which a saved model is known
_OURS = "mdtrap_jax"
_DTYPES = (jnp.float32, jnp.float16, jnp.bfloat16)


def save(
  path: str | Path,
  model: VisionLanguageModel,
  params: Any,
  *,
  dtype: Any = jnp.float32,
  overwrite: bool = False,
) -> None:
  """Writes `model.safetensors`, `config.json`, the tokenizer and what else `load` needs.

  All is written beside the folder first and takes its place when it is complete. A model that
  was saved in the folder before is replaced.

  Args:
    path: folder, made if need be.
    model: of CLIP's architecture, with a tokenizer of a checkpoint or of this library.
    params: its weights.
    dtype: of the file: float32, float16 or bfloat16.
    overwrite: write also into a folder that holds something else; files that `load` would read
      are replaced or removed, others are left.

  Raises:
    FileExistsError: the folder holds something that is no saved model.
    ValueError: the model is of another architecture, which this layout cannot express, its
      tokenizer cannot be written, or `dtype` cannot hold its weights.
  """
  folder = Path(path).expanduser()
  if not overwrite:
    _refuse_foreign(folder)
  if jnp.dtype(dtype) not in map(jnp.dtype, _DTYPES):
    raise ValueError(f"dtype={dtype!r}: choose float32, float16 or bfloat16.")
  stored = _stored(model, params, dtype)
  contents = {
    **tokenizer_contents(model.tokenize),
    _PREPROCESSOR: _json(
      {"image_mean": model.image_mean, "image_std": model.image_std, "size": model.image.image_size}
    ),
    _CONFIG: _json(_config(model)),
  }
  folder.parent.mkdir(parents=True, exist_ok=True)
  aside = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.partial"
  try:
    aside.mkdir()
    save_file(stored, aside / _WEIGHTS, metadata={"format": "pt"})
    for name, content in contents.items():
      files.write(aside / name, content)
    _put(aside, folder)
  finally:
    shutil.rmtree(aside, ignore_errors=True)


def _put(aside: Path, folder: Path) -> None:
  """Moves a complete model to its place: as a whole if there is nothing, else file by file."""
  with contextlib.suppress(OSError):  # it exists and is not empty
    aside.rename(folder)
    return
  folder.mkdir(exist_ok=True)
  new = sorted(path.name for path in aside.iterdir())
  for name in _READ - set(new):  # a tokenizer of the model before would be taken for this one's
    (folder / name).unlink(missing_ok=True)
  for name in new:
    os.replace(aside / name, folder / name)


def _refuse_foreign(folder: Path) -> None:
  """Stops before anything of the user's is replaced."""
  if folder.is_symlink() or folder.exists():
    if not folder.is_dir():
      raise FileExistsError(f"{folder} is no folder; give another name.")
    if any(folder.iterdir()) and not _is_saved(folder):
      raise FileExistsError(
        f"{folder} is not empty and holds no model that was saved here; give another folder, or "
        "overwrite=True to replace the model there."
      )


def _is_saved(folder: Path) -> bool:
  """Whether everything in a folder was written by `save`."""
  names = {path.name for path in folder.iterdir()}
  if not names <= _READ or _CONFIG not in names:
    return False
  with contextlib.suppress(OSError, ValueError):
    config = read_json(folder / _CONFIG)
    return isinstance(config, dict) and config.get(_MARK) == _OURS
  return False


def _stored(model: VisionLanguageModel, params: Any, dtype: Any) -> dict[str, np.ndarray]:
  """The arrays under Hugging Face's names, once it is sure that they can be read back."""
  expressed = clip.describe_hf(Checkpoint({}, model.name, config=_config(model)))
  if expressed != Description(model.family, model.image, model.text, model.sigmoid_bias):
    raise ValueError(
      f"{model.name}: only models of CLIP's architecture can be saved, and those only with what "
      "Hugging Face's CLIP has; keep the original checkpoint beside the trained factors instead."
    )
  shapes = parameter_shapes(model)
  flat = traverse_util.flatten_dict(params, sep="/")
  if {path: jnp.shape(leaf) for path, leaf in flat.items()} != shapes:
    raise ValueError(f"{model.name}: the parameters are not this model's (names or shapes).")
  with np.errstate(over="ignore"):
    stored = export(jax.tree.map(np.asarray, params), slots(clip.HF, TORCH, shapes), dtype)
  for name, array in stored.items():
    if not np.isfinite(array.astype(np.float32)).all():
      raise ValueError(f"{name} holds NaN, or numbers beyond {jnp.dtype(dtype)}; use float32.")
  return stored


def _config(model: VisionLanguageModel) -> dict[str, Any]:
  image, text = model.image, model.text
  theirs = {ours: name for name, ours in reversed(ACTIVATIONS.items())}
  return {
    "architectures": ["CLIPModel"],
    "model_type": "clip",
    _MARK: _OURS,
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


def _json(content: Any) -> bytes:
  return (json.dumps(content, indent=2) + "\n").encode()
