"""Finds a checkpoint's files, locally or on the Hugging Face hub, and opens them."""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mdtrap_jax import buckets, files
from mdtrap_jax.checkpoints import adapters, hub, merge
from mdtrap_jax.checkpoints.formats.arrays import UnusableFileError, check_content, read_json
from mdtrap_jax.checkpoints.formats.msgpack_file import open_msgpack
from mdtrap_jax.checkpoints.formats.npz_file import open_npz
from mdtrap_jax.checkpoints.formats.safetensors_file import open_safetensors
from mdtrap_jax.checkpoints.formats.sharded import open_sharded, shards
from mdtrap_jax.checkpoints.formats.torch_file import open_torch
from mdtrap_jax.checkpoints.layouts.layout import Checkpoint
from mdtrap_jax.checkpoints.tokenizer_files import TOKENIZER_FILES
from mdtrap_jax.models import MODELS
from mdtrap_jax.models.families import miniature

# In this order where a folder has several.
WEIGHT_FILES = (
  "model.safetensors",
  "model.safetensors.index.json",
  "open_clip_model.safetensors",
  "flax_model.msgpack",
  "open_clip_pytorch_model.bin",
  "pytorch_model.bin",
  "pytorch_model.bin.index.json",
  adapters.WEIGHTS,
)
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar")  # the last of ".pth.tar"
WEIGHT_SUFFIXES = (".safetensors", ".npz", ".msgpack", *TORCH_SUFFIXES)
CONFIG_FILES = ("config.json", "open_clip_config.json", "preprocessor_config.json")
PACKAGED = {"miniature": miniature.WEIGHTS}  # folders of weights that come with the package
_MOST_ARRAYS, _LONGEST_NAME = 2**17, 1000


def open_checkpoint(source: str | Path) -> Checkpoint:
  """Opens a local file, a local folder, a named size or a hub name; of an adapter its base model.

  Raises:
    FileNotFoundError: there is no such thing, or the hub cannot be reached.
    ValueError: the weights file cannot be read.
  """
  weights = find_weights(source)
  if merge.is_adapter(weights):
    return open_checkpoint(base_of(weights.parent))
  return _open_file(weights)


def base_of(folder: Path) -> str:
  """The base model of an adapter of peft, once it is sure that it is there.

  Raises:
    FileNotFoundError: it is not.
    ValueError: the base is an adapter itself, or the config is damaged.
  """
  base = merge.base_of(folder)
  try:
    weights = find_weights(base)
  except OSError as error:
    raise FileNotFoundError(
      f"{folder} needs its base model {base}: {error} If it lies elsewhere, set "
      f"base_model_name_or_path in {folder / adapters.CONFIG} to its folder or file."
    ) from error
  if merge.is_adapter(weights):
    raise ValueError(f"{folder}: its base model {base} is an adapter too; merge that one first.")
  return base


def fingerprint(source: str | Path) -> str:
  """A hex digest of everything that decides what `load` returns.

  That is the content of the weights (all shards), the config files and the tokenizer's files,
  and not where they lie; of a hub name those in the local cache, if they are there.

  Args:
    source: as `load` takes it.

  Raises:
    FileNotFoundError, ValueError: as `load` raises them.
    OSError: a file cannot be read.
  """
  weights = find_weights(source, prefer_cache=True)
  if merge.is_adapter(weights):
    return merge.digest(weights.parent, fingerprint(base_of(weights.parent)))
  parts = [weights, *(shards(weights) if weights.name.endswith(".index.json") else [])]
  beside = [weights.parent / name for name in sorted({*CONFIG_FILES, *TOKENIZER_FILES})]
  beside = [path for path in beside if path.exists()]
  names = [f"weights {number}" for number in range(len(parts))] + [path.name for path in beside]
  for path in (*parts, *beside):
    check_content(path)
  lines = zip(names, files.digests([*parts, *beside]), strict=True)
  return hashlib.sha256("\n".join(map(" ".join, lines)).encode()).hexdigest()


def find_weights(source: str | Path, *, prefer_cache: bool = False) -> Path:
  """The weights file of a local file or folder, a named size or a hub name.

  Args:
    source: as `load` takes it.
    prefer_cache: ask the hub only for what no earlier download left.

  Raises:
    FileNotFoundError: there is no such thing, or the hub cannot be reached.
    UnusableFileError: it is neither a file nor a folder.
  """
  path = _local(source)
  if path.is_dir():
    return _choose_in(path)
  if path.exists():
    check_content(path)
    return path
  name = str(source)
  if name in PACKAGED:
    return _choose_in(PACKAGED[name])
  if name in MODELS:
    if MODELS[name].hub is None:
      raise FileNotFoundError(
        f"{name} has no published weights; build it with random ones, or give the folder of "
        "a checkpoint."
      )
    name = MODELS[name].hub
  elif name.count("/") != 1 or path.suffix in WEIGHT_SUFFIXES or name.startswith((".", "/", "~")):
    raise FileNotFoundError(f"{source}: no such file or folder, and no named model{_named(name)}")
  cached = hub.cached(name) if prefer_cache else None
  return _choose_in(cached or hub.fetch(name, _patterns))


def _local(source: str | Path) -> Path:
  """Where the weights are on this machine; of a bucket's only what is used is read.

  Raises:
    FileNotFoundError: a bucket has no such folder or file.
  """
  if not buckets.is_bucket(source):
    return Path(files.local(source))
  url = buckets.url_of(source)
  folder, _, file = url.rpartition("/")
  if Path(file).suffix not in WEIGHT_SUFFIXES and not file.endswith(".index.json"):
    folder, file = url, ""
  names = [name for name in buckets.Bucket(folder).find() if "/" not in name]
  patterns = _with_others(file) if file else _patterns(names)
  if not patterns:
    raise FileNotFoundError(
      f"{url} has no weights files (expected one of {', '.join(WEIGHT_FILES)})."
    )
  used = lambda name: any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
  return Path(files.local(folder, used)) / file


def _named(name: str) -> str:
  """What a misspelt name may mean, or else which names there are."""
  if near := difflib.get_close_matches(name, MODELS, 3, 0.6):
    return f" (did you mean {' or '.join(near)}?)."
  published = [model for model in MODELS if MODELS[model].hub or model in PACKAGED]
  resnet = " resnet18 is there for heads on features only;" if "resnet" in name.lower() else ""
  return (
    f";{resnet} named models are {', '.join(published)}; any repository of the Hugging Face hub "
    "is OWNER/NAME."
  )


def _patterns(names: Sequence[str]) -> list[str]:
  """What to download of a repository's files: one file of weights, and what lies beside it."""
  weights = next((file for file in WEIGHT_FILES if file in names), None) or next(
    (file for file in names if Path(file).suffix in WEIGHT_SUFFIXES), None
  )
  return [] if weights is None else _with_others(weights)


def _with_others(weights: str) -> list[str]:
  """Patterns of a weights file, its shards and what decides its meaning beside it."""
  parts = [weights.replace(".index.json", "").replace(".", "-*.")] * weights.endswith(".json")
  return [weights, *parts, *CONFIG_FILES, *TOKENIZER_FILES, adapters.CONFIG]


def _choose_in(folder: Path) -> Path:
  names = sorted(path.name for path in folder.iterdir())
  if chosen := next((file for file in WEIGHT_FILES if file in names), None):
    return folder / chosen
  others = [name for name in names if Path(name).suffix in WEIGHT_SUFFIXES]
  if len(others) != 1:
    raise FileNotFoundError(
      f"{folder} has {'several' if others else 'no'} weights files "
      f"({', '.join(others[:8]) or 'expected one of ' + ', '.join(WEIGHT_FILES)}); "
      "give the file itself."
    )
  return folder / others[0]


def _open_file(path: Path) -> Checkpoint:
  is_torchscript = False
  check_content(path)
  if path.name.endswith(".index.json"):
    arrays = open_sharded(path)
  elif path.suffix == ".safetensors":
    arrays = open_safetensors(path)
  elif path.suffix == ".npz":
    arrays = open_npz(path)
  elif path.suffix == ".msgpack":
    arrays = open_msgpack(path)
  elif path.suffix in TORCH_SUFFIXES:
    arrays, is_torchscript = open_torch(path)
  else:
    raise UnusableFileError(
      f"{path}: no known format; weights files end in {', '.join(WEIGHT_SUFFIXES)}."
    )
  longest = max(map(len, arrays), default=0)
  printable = all(map(str.isprintable, arrays))
  if not 0 < len(arrays) <= _MOST_ARRAYS or longest > _LONGEST_NAME or not printable:
    raise UnusableFileError(
      f"{path}: has {len(arrays)} arrays, the longest name of {longest} characters"
      f"{'' if printable else ', some unprintable'}, which no weights have. Download it again."
    )
  configs = [_fields(path.parent / name) for name in CONFIG_FILES]
  return Checkpoint(arrays, str(path), path.parent, *configs, is_torchscript)


def _fields(file: Path) -> dict[str, Any] | None:
  """A config file's fields; `None` if there is no such file."""
  if not file.exists():
    return None
  content = read_json(file)
  if not isinstance(content, dict):
    raise UnusableFileError(f"{file} holds no fields but {content!r:.40}. Download it again.")
  return content
