"""LoRA adapters in peft's format, ours or others', added to the weights of their base model.

An adapter's folder is then a model like any other: its config names the base.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from safetensors import safe_open

from mdtrap_jax import files
from mdtrap_jax.checkpoints import adapters
from mdtrap_jax.checkpoints.convert import parameter_shapes, piece
from mdtrap_jax.checkpoints.formats.arrays import read_json, reading
from mdtrap_jax.checkpoints.formats.safetensors_file import open_safetensors
from mdtrap_jax.checkpoints.layouts.clip import hf_blocks
from mdtrap_jax.checkpoints.layouts.huggingface import WRITABLE
from mdtrap_jax.checkpoints.rules import TORCH, slots
from mdtrap_jax.models.vlm import VisionLanguageModel

# PE-Core has no names in transformers; its adapters have those that `adapters` gives them.
_BLOCKS = (
  *hf_blocks("vision_model.encoder.layers", "image/blocks"),
  *hf_blocks("text_model.encoder.layers", "text/blocks"),
)
_FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight")
_POOLING = "vision_model.head.attention."  # torch's own attention, which ignores adapters in it
# What would make an adapter more than `W + s B A`, and the values that do not.
_PLAIN = {
  "peft_type": ("LORA",),
  "use_dora": (False, None),
  "bias": ("none", None),
  "modules_to_save": (None, []),
  "fan_in_fan_out": (False, None),
  "layer_replication": (None, []),
  "trainable_token_indices": (None, []),
  "use_qalora": (False, None),
  "alora_invocation_tokens": (None, []),
}


def is_adapter(weights: Path) -> bool:
  """Whether a file of weights is a LoRA adapter of peft."""
  return weights.name == adapters.WEIGHTS


def base_of(folder: Path) -> str:
  """The base model that an adapter's config names.

  Raises:
    OSError, ValueError: there is no config, it is damaged, or it names none.
  """
  base = _config(folder).get("base_model_name_or_path")
  if not isinstance(base, str) or not base:
    raise ValueError(
      f"{folder / adapters.CONFIG} names no base model; set base_model_name_or_path there to its "
      "hub name, folder or file."
    )
  return base


def digest(folder: Path, base_fingerprint: str) -> str:
  """Of an adapter and its base model: of all that decides what the merged weights are.

  Raises:
    OSError: a file cannot be read.
    ValueError: the adapter was trained on another base model.
  """
  check_base(folder, lambda: base_fingerprint)
  parts = files.digests([folder / adapters.WEIGHTS, folder / adapters.CONFIG])
  return hashlib.sha256("\n".join([base_fingerprint, *parts]).encode()).hexdigest()


def check_base(folder: Path, fingerprint: Callable[[], str]) -> None:
  """Refuses a base model other than the one that the adapter says it belongs to, if it does."""
  path = folder / adapters.WEIGHTS
  with reading(path), safe_open(path, "np") as file:
    expected = (file.metadata() or {}).get(adapters.FINGERPRINT)
  if expected is not None and (found := fingerprint()) != expected:
    raise ValueError(
      f"{folder} was trained on another base model: that had the fingerprint {expected[:12]}, "
      f"{base_of(folder)} has {found[:12]}. Set base_model_name_or_path in {adapters.CONFIG} to "
      "where the right one lies."
    )


def read_differences(folder: Path) -> dict[str, np.ndarray]:
  """What an adapter adds to each module's weight, `s B A [d_out, d_in]` float32, by module.

  Raises:
    OSError: a file is not there.
    ValueError: it is damaged, or is more than a LoRA of linear layers.
  """
  config, path = _config(folder), folder / adapters.WEIGHTS
  for field, plain in _PLAIN.items():
    if (value := config.get(field)) not in plain:
      raise ValueError(
        f"{folder / adapters.CONFIG}: {field}={value!r:.60} is not supported, only a plain LoRA of "
        "linear layers; merge the adapter by peft (merge_and_unload) and give the whole model."
      )
  factors: dict[str, dict[str, np.ndarray]] = {}
  for key, array in open_safetensors(path).items():
    if (match := _FACTOR.fullmatch(key)) is None or len(array.shape) != 2:
      raise ValueError(
        f"{path}: {key} {list(array.shape)} is no factor of a linear layer, so it cannot be added; "
        "merge the adapter by peft (merge_and_unload) and give the whole model."
      )
    factors.setdefault(match[1], {})[match[2]] = np.asarray(array.read(), np.float32)
  result = {}
  for name, halves in factors.items():
    if halves.keys() != {"A", "B"} or len(halves["A"]) != halves["B"].shape[1]:
      raise ValueError(f"{path}: the factors of {name} do not fit each other; it is damaged.")
    result[name] = _scale(config, name, len(halves["A"])) * (halves["B"] @ halves["A"])
  if not result:
    raise ValueError(f"{path} holds no LoRA factors.")
  return result


def _scale(config: Mapping[str, Any], name: str, rank: int) -> float:
  """`alpha / r`, or rank-stabilized `alpha / sqrt(r)`; patterns give modules an alpha of their own.

  A pattern means a module if it is the end of its name, as peft has it.
  """
  own = (config.get("alpha_pattern") or {}).items()
  fits = lambda pattern: re.match(rf"(.*\.)?({pattern})$", name)
  alpha = next((a for pattern, a in own if fits(pattern)), config.get("lora_alpha", 8))
  return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def add(
  model: VisionLanguageModel, params: Any, differences: Iterable[tuple[str, np.ndarray]], of: str
) -> Any:
  """The parameters with some modules' weights changed, as NumPy arrays where they are.

  Args:
    model: whose parameters they are.
    params: of the model; left as they are.
    differences: names of modules in transformers, and what `[d_out, d_in]` their weights gain.
    of: what they come from, for messages.

  Raises:
    ValueError: a module that the model does not have, or of another size.
  """
  shapes = parameter_shapes(model)
  table = WRITABLE[model.family].table if model.family in WRITABLE else _BLOCKS
  known = {slot.name: slot for slot in slots(table, TORCH, shapes)}
  flat, changed = traverse_util.flatten_dict(params, sep="/"), {}
  for name, difference in differences:
    slot = known.get(f"{name}.weight")
    if slot is None or name.startswith(_POOLING):
      raise ValueError(f"{of} adapts {name}, which {model.name} does not have as a linear layer.")
    buffer = changed.setdefault(slot.path, np.array(flat[slot.path]))
    view = piece(buffer, slot)
    how = slot.arrange(view.shape)
    if difference.shape != how.stored:
      raise ValueError(
        f"{of}: {name} has shape {list(difference.shape)}, but {list(how.stored)} in {model.name}: "
        "an adapter of another model."
      )
    part = difference.reshape(how.split).transpose(how.order).reshape(view.shape)
    view[...] = (view.astype(np.float32) + part).astype(view.dtype)
  return traverse_util.unflatten_dict({**flat, **changed}, sep="/")


def _config(folder: Path) -> dict[str, Any]:
  path = folder / adapters.CONFIG
  if not path.exists():
    raise FileNotFoundError(f"{folder} has {adapters.WEIGHTS} but no {adapters.CONFIG}.")
  config = read_json(path)
  if not isinstance(config, dict):
    raise ValueError(f"{path} holds no fields but {config!r:.40}.")
  return config
