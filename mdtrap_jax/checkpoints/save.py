"""Writes our weights the way Hugging Face stores them; `load` and transformers read them back."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors.numpy import save_file

from mdtrap_jax import buckets, files
from mdtrap_jax.checkpoints.convert import export, parameter_shapes
from mdtrap_jax.checkpoints.formats.arrays import read_json
from mdtrap_jax.checkpoints.layouts.huggingface import writable
from mdtrap_jax.checkpoints.rules import TORCH, Module, slots
from mdtrap_jax.checkpoints.source import CONFIG_FILES
from mdtrap_jax.checkpoints.tokenizer_files import TOKENIZER_FILES, tokenizer_contents
from mdtrap_jax.data import images
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
  resize: str = "squash",
  interpolation: str = "bilinear",
  overwrite: bool = False,
) -> None:
  """Writes `model.safetensors`, `config.json`, the tokenizer and what else `load` needs.

  All is written beside the folder first and takes its place when it is complete. A model that
  was saved in the folder before is replaced.

  Args:
    path: folder, made if need be.
    model: of CLIP's or SigLIP's architecture, with a tokenizer of a checkpoint or of this library.
    params: its weights.
    dtype: of the file: float32, float16 or bfloat16.
    resize: how images are made square, of `data.images.RESIZE_MODES`, for transformers to do.
    interpolation: by which filter, of `data.images.INTERPOLATIONS`.
    overwrite: write also into a folder that holds something else; files that `load` would read
      are replaced or removed, others are left.

  Raises:
    FileExistsError: the folder holds something that is no saved model.
    ValueError: the model is of another architecture, which this layout cannot express, its
      tokenizer cannot be written, or `dtype` cannot hold its weights.
  """
  if not overwrite:
    _refuse_foreign(path)
  if jnp.dtype(dtype) not in map(jnp.dtype, _DTYPES):
    raise ValueError(f"dtype={dtype!r}: choose float32, float16 or bfloat16.")
  family = writable(model)
  stored = _stored(family.table, model, params, dtype)
  contents = {
    **tokenizer_contents(model.tokenize),
    _PREPROCESSOR: _json(_preprocessor(model, resize, interpolation)),
    _CONFIG: _json({**family.config(model), _MARK: _OURS}),
  }
  with files.writing(path) as folder, files.folder_aside(folder) as aside:
    save_file(stored, aside / _WEIGHTS, metadata={"format": "pt"})
    for name, content in contents.items():
      files.write(aside / name, content)
    _put(aside, folder)


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


def _refuse_foreign(path: str | Path) -> None:
  """Stops before anything of the user's is replaced."""
  if buckets.is_bucket(path):
    if files.is_there(path):
      raise FileExistsError(f"{path} is not empty; give another folder, or overwrite=True.")
    return
  folder = Path(files.local(path))
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


def _stored(
  table: Iterable[Module], model: VisionLanguageModel, params: Any, dtype: Any
) -> dict[str, np.ndarray]:
  """The arrays under Hugging Face's names."""
  shapes = parameter_shapes(model)
  flat = traverse_util.flatten_dict(params, sep="/")
  if {path: jnp.shape(leaf) for path, leaf in flat.items()} != shapes:
    raise ValueError(f"{model.name}: the parameters are not this model's (names or shapes).")
  with np.errstate(over="ignore"):
    stored = export(jax.tree.map(np.asarray, params), slots(table, TORCH, shapes), dtype)
  for name, array in stored.items():
    if not np.isfinite(array.astype(np.float32)).all():
      raise ValueError(f"{name} holds NaN, or numbers beyond {jnp.dtype(dtype)}; use float32.")
  return stored


def _preprocessor(model: VisionLanguageModel, resize: str, interpolation: str) -> dict[str, Any]:
  """By which transformers prepares images as we do.

  It cannot say: how an image is turned by EXIF, what shows through transparency, 16-bit windows,
  and that the center of an odd rest is rounded to even (transformers rounds down: one pixel).
  """
  side, crop = model.image.image_size, resize == "crop"
  square = {"height": side, "width": side}
  return {
    "image_processor_type": "CLIPImageProcessor",  # of SigLIP too: its own has no crop
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": side} if crop else square,
    "resample": int(images.INTERPOLATIONS[interpolation]),
    "do_center_crop": crop,
    "crop_size": square,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": list(model.image_mean),
    "image_std": list(model.image_std),
  }


def _json(content: Any) -> bytes:
  return (json.dumps(content, indent=2) + "\n").encode()
