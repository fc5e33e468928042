"""The folder of a saved classifier: written aside and put in place as a whole, read with checks."""

from __future__ import annotations

import ctypes
import glob
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from safetensors.numpy import save as to_safetensors

from mdtrap_jax import buckets, checkpoints, files
from mdtrap_jax import config as configs
from mdtrap_jax.checkpoints import adapters
from mdtrap_jax.checkpoints.formats.arrays import read_json
from mdtrap_jax.checkpoints.formats.safetensors_file import open_safetensors
from mdtrap_jax.checkpoints.layouts import huggingface
from mdtrap_jax.classifier import task as own_images
from mdtrap_jax.classifier.choices import ZERO_SHOT, has_text
from mdtrap_jax.classifier.task import Fitted, Setting
from mdtrap_jax.methods.tuning import parameterization
from mdtrap_jax.report import classification

FORMAT = 1
ABOUT, ARRAYS, CROSSVAL = "classifier.json", "classifier.safetensors", "crossval.csv"
CLASSES = "classes.json"  # of an export
_OURS = classification.FILES | {  # `mdtrap fit --folds` writes a report beside the model
  ABOUT, ARRAYS, CROSSVAL, adapters.WEIGHTS, adapters.CONFIG, parameterization.WEIGHTS,
}  # fmt: skip
_MARK, _NAME = "saved_by", "mdtrap_jax classifier"
_FIELDS = {
  "method", "base_fingerprint", "preprocessing", "config", "classes", "class_names", "counts",
  "temperature", "accuracy_at", "losses", "parameters",
}  # fmt: skip
_OLD = ".old"  # the end of its name while a folder is replaced
_EXCHANGE = 2  # of Linux's renameat2: two folders change their names in one step


class Saved(NamedTuple):
  """What a folder holds."""

  setting: Setting
  fitted: Fitted
  about: Mapping[str, Any]  # what was given to `save`, as JSON has it


def write(
  path: str | os.PathLike[str],
  setting: Setting,
  fitted: Fitted,
  about: Mapping[str, Any],
  *,
  crossval: str | None = None,
  overwrite: bool = False,
) -> None:
  """Writes a classifier; a kill leaves what was there before, or the new one.

  In a bucket, which replaces no folder in one step, a kill leaves what `read` finds incomplete.

  Args:
    path: of the folder.
    setting: of the classifier.
    fitted: its arrays.
    about: what else to keep, of what JSON can hold.
    crossval: a table of predictions by folds, kept beside.
    overwrite: replace a classifier that was saved there; nothing else is ever replaced.

  Raises:
    FileExistsError: the folder holds something else, or a classifier and not `overwrite`.
  """
  if not buckets.is_bucket(path):
    _restore(Path(files.local(path)))
  check_target(path, overwrite)
  config, model = setting.config, setting.model
  how, trained = setting.preprocessing, bool(fitted.params)
  facts = {
    _MARK: _NAME,
    "format": FORMAT,
    "method": setting.method_name,
    "base_model": config.model.name,
    "base_fingerprint": own_images.fingerprint(config),
    "preprocessing": {
      "size": how.size,
      "resize": how.resize,
      "interpolation": how.interpolation,
      "mean": list(model.image_mean),
      "std": list(model.image_std),
    },
    "templates": _templates(config) if has_text(setting.method_name) else None,
    "logit_scale": setting.scale,
    "config": config.to_dict(),
    **about,
  }
  arrays, contents = {"anchors": np.ascontiguousarray(fitted.anchors, np.float32)}, {}
  if setting.head:
    parts = {"head": fitted.params, "memory": fitted.memory}
    arrays |= {
      f"{part}.{name}": np.ascontiguousarray(leaf)
      for part, leaves in parts.items()
      for name, leaf in leaves.items()
    }
  elif trained:
    base, digest = config.model.name, facts["base_fingerprint"]
    contents = setting.parameterization.save(model, fitted.params, base, digest)
  if crossval is not None:
    contents[CROSSVAL] = crossval.encode(errors="surrogateescape")
  contents[ARRAYS] = to_safetensors(arrays)
  contents[ABOUT] = (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode()
  with files.writing(path, last=ABOUT) as folder, files.folder_aside(folder) as aside:
    for name, content in contents.items():
      files.write(aside / name, content)
    _put(aside, folder)


def check_target(path: str | os.PathLike[str], overwrite: bool) -> None:
  """Refuses to replace what must stay, before minutes of work.

  Raises:
    FileExistsError: as `write`.
  """
  try:
    folder = Path(files.local(path))
  except FileNotFoundError:  # of a bucket
    buckets.Bucket(path).find()
    return
  if not os.path.lexists(folder):
    return
  if folder.is_symlink() or not folder.is_dir():
    raise FileExistsError(f"{path} is no folder of its own; give another name.")
  if not any(folder.iterdir()):
    return
  if not is_saved(folder):
    raise FileExistsError(
      f"{path} holds something that is no saved classifier, which is never replaced; give "
      "another name."
    )
  if not overwrite:
    raise FileExistsError(
      f"{path} holds a saved classifier; give another name, or overwrite=True (--force)."
    )


def is_saved(folder: Path) -> bool:
  """Whether everything in a folder was written by `write`."""
  names = {path.name for path in folder.iterdir()}
  if not names <= _OURS or ABOUT not in names:
    return False
  try:
    facts = read_json(folder / ABOUT)
  except (OSError, ValueError):
    return False
  return isinstance(facts, dict) and facts.get(_MARK) == _NAME


def _put(aside: Path, folder: Path) -> None:
  """Moves a complete folder to its place; what was there is then `aside`."""
  try:
    aside.rename(folder)  # there is nothing, or an empty folder
    return
  except OSError:
    pass
  exchange = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
  here = -100  # AT_FDCWD
  if exchange and not exchange(here, os.fsencode(aside), here, os.fsencode(folder), _EXCHANGE):
    return
  old = aside.with_suffix(_OLD)  # where a file system cannot exchange
  folder.rename(old)
  aside.rename(folder)
  shutil.rmtree(old, ignore_errors=True)


def _restore(folder: Path) -> None:
  """Takes back what a kill left between the two names that `_put` may have to give it."""
  if not os.path.lexists(folder):
    for old in sorted(folder.parent.glob(f".{glob.escape(folder.name)}.*{_OLD}")):
      old.rename(folder)
      return


def read(path: str | os.PathLike[str], model: str | None = None) -> Saved:
  """Reads a classifier back.

  Args:
    path: of the folder.
    model: where its base model lies now, if not where it was.

  Raises:
    OSError: there is none, or its base model is not to be found.
    ValueError: it is damaged, of another version, or the base model is another one.
  """
  folder = Path(files.local(path))
  _restore(folder)
  if not (folder / ABOUT).is_file():
    raise FileNotFoundError(f"{path} holds no saved classifier (no {ABOUT}).")
  facts = read_json(folder / ABOUT)
  if not isinstance(facts, dict) or facts.get(_MARK) != _NAME:
    raise ValueError(f"{folder / ABOUT} was not written by this library.")
  if facts.get("format") != FORMAT:
    raise ValueError(
      f"{folder} is of format {facts.get('format')!r} and this version reads {FORMAT}: fit again, "
      "or use the version that saved it."
    )
  if missing := _FIELDS - facts.keys():
    raise ValueError(f"{folder / ABOUT} is damaged (no {min(missing)}); save it again.")
  try:
    config = ml_collections.ConfigDict(facts["config"])
    method, digest = facts["method"], facts["base_fingerprint"]
    how = facts["preprocessing"]
    base = config.model.name
  except (KeyError, TypeError, AttributeError, ValueError) as error:
    raise ValueError(f"{folder / ABOUT} is damaged ({error}); save it again.") from error
  if model is not None:
    configs.put(config, "model.name", str(model))
  try:
    found = own_images.fingerprint(config)
  except OSError as error:
    raise FileNotFoundError(
      f"{folder} needs its base model {base}: {error} If it lies elsewhere, give --model."
    ) from error
  if found != digest:
    raise ValueError(
      f"{folder} was fitted on another base model: {base} had the fingerprint {str(digest)[:12]}, "
      f"{config.model.name} has {str(found)[:12]}. Give that model, or fit again."
    )
  setting = own_images.load_setting(config, method, None)
  if how["size"] != setting.model.image.image_size:
    raise ValueError(f"{folder / ABOUT} is damaged (size={how['size']}); save it again.")
  stored = {name: array.read() for name, array in open_safetensors(folder / ARRAYS).items()}
  if "anchors" not in stored or len(stored["anchors"]) != len(facts.get("classes", ())):
    raise ValueError(f"{folder / ARRAYS} does not fit {ABOUT}: save the classifier again.")
  part = lambda prefix: {
    name.removeprefix(prefix): leaf for name, leaf in stored.items() if name.startswith(prefix)
  }
  if setting.head:
    params = part("head.")
  elif method == ZERO_SHOT:
    params = {}
  else:
    params = setting.parameterization.load(folder, setting.model, len(stored["anchors"]))
  return Saved(setting, Fitted(params, stored["anchors"], part("memory.")), facts)


def read_crossval(path: str | os.PathLike[str]) -> str | None:
  """The table of predictions by folds, if there is one."""
  file = Path(files.local(path)) / CROSSVAL
  return file.read_text(encoding="utf-8", errors="surrogateescape") if file.exists() else None


def export(path: str | os.PathLike[str], saved: Saved, form: str) -> None:
  """Writes an adapter for peft, or a whole model for transformers, into a new folder.

  `classes.json` beside it says classes, names in prompts, templates, temperature and base model.

  Args:
    path: of the folder.
    saved: what `read` gives.
    form: `peft` or `hf`.

  Raises:
    FileExistsError: the folder is not empty.
    ValueError: that library has no such thing.
  """
  setting, fitted, facts = saved
  if files.is_there(path):
    raise FileExistsError(f"{path} is not empty; give another folder.")
  if setting.head:
    raise ValueError(
      f"{setting.method_name} is a head on frozen features, which neither peft nor transformers "
      "has; hand on the folder itself."
    )
  model, how_tuned = setting.model, setting.parameterization
  huggingface.writable(model)
  kept = ("classes", "class_names", "templates", "temperature", "base_model", "base_fingerprint")
  about = json.dumps({name: facts[name] for name in kept}, indent=2, ensure_ascii=False) + "\n"
  with files.writing(path) as folder, files.folder_aside(folder) as aside:
    if form == "hf":
      params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), setting.params)
      if fitted.params:
        params = how_tuned.merge(model, params, fitted.params)
      how = setting.preprocessing
      checkpoints.save(aside, model, params, resize=how.resize, interpolation=how.interpolation)
    elif fitted.params:
      base, digest = facts["base_model"], facts["base_fingerprint"]
      contents = how_tuned.export(model, setting.params, fitted.params, base, digest)
      for name, content in contents.items():
        files.write(aside / name, content)
    else:
      raise ValueError("zero-shot has nothing trained: there is no adapter to export.")
    files.write(aside / CLASSES, about)
    aside.rename(folder)


def _templates(config: ml_collections.ConfigDict) -> list[str]:
  template = config.data.template
  return [template] if isinstance(template, str) else list(template)
