"""Finds a checkpoint's files, locally or on the Hugging Face hub, and opens them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mdtrap_jax.checkpoints.formats.msgpack_file import open_msgpack
from mdtrap_jax.checkpoints.formats.npz_file import open_npz
from mdtrap_jax.checkpoints.formats.safetensors_file import open_safetensors, open_sharded
from mdtrap_jax.checkpoints.formats.torch_file import open_torch
from mdtrap_jax.checkpoints.layouts.layout import Checkpoint
from mdtrap_jax.models import MODELS

# In this order where a folder has several.
from mdtrap_jax.models.families import miniature

WEIGHT_FILES = (
  "model.safetensors",
  "model.safetensors.index.json",
  "open_clip_model.safetensors",
  "flax_model.msgpack",
  "open_clip_pytorch_model.bin",
  "pytorch_model.bin",
)
WEIGHT_SUFFIXES = (".safetensors", ".npz", ".msgpack", ".pt", ".bin")
COMPANION_FILES = (
  "config.json",
  "open_clip_config.json",
  "preprocessor_config.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "vocab.json",
  "merges.txt",
  "spiece.model",
  "tokenizer.model",
  "word_tokenizer.json",
)
PACKAGED = {"miniature": miniature.WEIGHTS}  # folders of weights that come with the package


def open_checkpoint(source: str | Path) -> Checkpoint:
  """Opens a local file, a local folder, a named size or a hub name.

  Raises:
    FileNotFoundError: there is no such thing, or the hub cannot be reached.
    ValueError: the weights file cannot be read.
  """
  path = Path(source).expanduser()
  if path.is_dir():
    return _open_folder(path)
  if path.is_file():
    return _open_file(path)
  name = str(source)
  if name in PACKAGED:
    return _open_folder(PACKAGED[name])
  if name in MODELS:
    if MODELS[name].hub is None:
      raise FileNotFoundError(
        f"{name} has no published weights; build it with random ones, or give the folder of "
        "a checkpoint."
      )
    name = MODELS[name].hub
  elif name.count("/") != 1 or path.suffix in WEIGHT_SUFFIXES or name.startswith((".", "/")):
    near = difflib.get_close_matches(name, MODELS, 3, 0.4)
    raise FileNotFoundError(
      f"{source}: no such file or folder, and no named model"
      + (f" (did you mean {' or '.join(near)}?)." if near else ".")
    )
  return _open_folder(fetch(name))


def fetch(name: str) -> Path:
  """Downloads one weights file of a hub repository and its companions; uses the local cache.

  Raises:
    FileNotFoundError: no such repository, or no network and nothing in the cache.
  """
  import huggingface_hub  # slow to import
  from huggingface_hub import errors

  try:
    listed = huggingface_hub.list_repo_files(name)
  except errors.RepositoryNotFoundError as error:
    raise FileNotFoundError(
      f"{name}: neither a local file or folder nor a repository on the Hugging Face hub."
    ) from error
  except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, OSError) as error:
    return _cached(name, error)
  weights = _choose(listed) or next(
    (file for file in listed if Path(file).suffix in WEIGHT_SUFFIXES), None
  )
  if weights is None:
    raise FileNotFoundError(f"{name} on the hub has no weights file of a known format.")
  patterns = [weights, *COMPANION_FILES]
  if weights.endswith(".index.json"):
    patterns.append("model-*.safetensors")
  return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))


def _cached(name: str, error: Exception) -> Path:
  """The repository's files from an earlier download."""
  import huggingface_hub
  from huggingface_hub import errors

  try:
    return Path(huggingface_hub.snapshot_download(name, local_files_only=True))
  except errors.LocalEntryNotFoundError as missing:
    raise FileNotFoundError(
      f"{name} is not in the local cache and the Hugging Face hub cannot be reached "
      f"({error}). Connect to a network once, or download the repository elsewhere and give "
      "its folder instead of its name."
    ) from missing


def _choose(names: Sequence[str]) -> str | None:
  return next((file for file in WEIGHT_FILES if file in names), None)


def _open_folder(folder: Path) -> Checkpoint:
  names = sorted(path.name for path in folder.iterdir())
  if (chosen := _choose(names)) is not None:
    return _open_file(folder / chosen)
  others = [name for name in names if Path(name).suffix in WEIGHT_SUFFIXES]
  if len(others) != 1:
    raise FileNotFoundError(
      f"{folder} has {'several' if others else 'no'} weights files "
      f"({', '.join(others) or 'expected one of ' + ', '.join(WEIGHT_FILES)}); "
      "give the file itself."
    )
  return _open_file(folder / others[0])


def _open_file(path: Path) -> Checkpoint:
  is_torchscript = False
  if path.name.endswith(".index.json"):
    arrays = open_sharded(path)
  elif path.suffix == ".safetensors":
    arrays = open_safetensors(path)
  elif path.suffix == ".npz":
    arrays = open_npz(path)
  elif path.suffix == ".msgpack":
    arrays = open_msgpack(path)
  elif path.suffix in (".pt", ".bin", ".pth"):
    arrays, is_torchscript = open_torch(path)
  else:
    raise ValueError(f"{path}: no known format; weights files end in {', '.join(WEIGHT_SUFFIXES)}.")
  return Checkpoint(
    arrays,
    str(path),
    path.parent,
    _json(path, "config.json"),
    _json(path, "open_clip_config.json"),
    _json(path, "preprocessor_config.json"),
    is_torchscript,
  )


def _json(path: Path, name: str) -> dict[str, Any] | None:
  file = path.parent / name
  if not file.is_file():
    return None
  try:
    content = json.loads(file.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{file} is no JSON ({error}). Download it again.") from error
  if not isinstance(content, dict):
    raise ValueError(f"{file} holds no fields but {content!r:.40}. Download it again.")
  return content
