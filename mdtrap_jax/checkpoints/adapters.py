"""LoRA factors as the library `peft` stores them: `adapter_model.safetensors` and a config.

Modules have Hugging Face's names for CLIP and SigLIP. PE-Core's own projections are packed, so its
adapters have the same names here and fit no other library. `merge` reads adapters of others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from mdtrap_jax.checkpoints.formats.arrays import read_json
from mdtrap_jax.checkpoints.formats.safetensors_file import open_safetensors
from mdtrap_jax.models import MODELS
from mdtrap_jax.models.dora import kernels
from mdtrap_jax.models.lora import LoraConfig, LoraFactors
from mdtrap_jax.models.vlm import VisionLanguageModel

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
FINGERPRINT = "base_fingerprint"  # in the header of the weights
_TOWERS = {"image": "vision_model", "text": "text_model"}
_NAMES = {
  **{name: f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")},
  "fc1": "mlp.fc1",
  "fc2": "mlp.fc2",
}
_HALVES = {"a": "lora_A.weight", "b": "lora_B.weight", "magnitude": "lora_magnitude_vector"}


def to_peft(
  model: VisionLanguageModel,
  lora: LoraConfig,
  factors: Mapping[str, LoraFactors],
  base: str,
  fingerprint: str | None = None,
) -> dict[str, bytes]:
  """The two files of an adapter, by name.

  Args:
    model: that is adapted.
    lora: how.
    factors: by encoder.
    base: name of the base model; of a named size its name on the hub is written.
    fingerprint: of the base model, kept in the header of the weights: peft warns of fields in
      the config that it does not know.
  """
  arrays, modules = {}, []
  for name, encoder, row, _, projection in _modules(model, lora):
    modules.append(name)
    own, column = factors[encoder].of(projection, lora)
    for half, leaf in zip(_HALVES.values(), own[:3], strict=True):
      if leaf is not None:
        array = np.asarray(leaf[row, column], np.float32).T
        arrays[f"base_model.model.{name}.{half}"] = np.ascontiguousarray(array)
  config = {
    "peft_type": "LORA",
    "task_type": "FEATURE_EXTRACTION",
    "base_model_name_or_path": MODELS[base].hub or base if base in MODELS else base,
    "r": lora.rank,
    "lora_alpha": lora.alpha,
    "lora_dropout": lora.dropout,
    "use_rslora": lora.scale == "sqrt",
    "use_dora": lora.dora,
    "target_modules": "|".join(map(re.escape, modules)),  # a pattern: just these
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
  }
  text = json.dumps(config, indent=2) + "\n"
  metadata = {"format": "pt"} | ({FINGERPRINT: fingerprint} if fingerprint else {})
  return {WEIGHTS: save(arrays, metadata=metadata), CONFIG: text.encode()}


def from_peft(folder: Path, model: VisionLanguageModel, lora: LoraConfig) -> dict[str, LoraFactors]:
  """The factors in a folder, by encoder.

  Raises:
    OSError, ValueError: the files are not there, damaged, or adapt other modules.
  """
  config = read_json(folder / CONFIG)
  stated = {"r": lora.rank, "lora_alpha": lora.alpha, "use_rslora": lora.scale == "sqrt"}
  stated |= {"use_dora": True} if lora.dora else {}
  for field, value in stated.items():
    if config.get(field) != value:
      raise ValueError(f"{folder / CONFIG}: {field}={config.get(field)!r}, expected {value!r}.")
  stored = open_safetensors(folder / WEIGHTS)
  halves = [half for half in _HALVES if half != "magnitude" or lora.dora]
  rows: dict[tuple[str, str, str], list[Any]] = {}  # by encoder, whose widths they have, half
  read = set()
  for name, encoder, _, _, projection in _modules(model, lora):
    for half in halves:
      key = f"base_model.model.{name}.{_HALVES[half]}"
      if key not in stored:
        raise ValueError(f"{folder / WEIGHTS} has no {key}: an adapter of another model.")
      group = projection if projection in ("fc1", "fc2") else "attention"
      rows.setdefault((encoder, group, half), []).append(stored[key].read().T)
      read.add(key)
  if rest := sorted(stored.keys() - read):
    raise ValueError(f"{folder / WEIGHTS}: {rest[0]} adapts what this model does not have.")

  def together(encoder, group, count):
    if (encoder, group, "a") not in rows:
      return None
    leaves = (rows[encoder, group, half] for half in halves)
    return LoraFactors(*(np.stack(leaf).reshape(-1, count, *leaf[0].shape) for leaf in leaves))

  found = {}
  for encoder in lora.encoders:
    own = together(encoder, "attention", len(lora.attention)) or LoraFactors(None, None)
    mlp = {name: together(encoder, name, 1) for name in ("fc1", "fc2")}
    found[encoder] = own._replace(**mlp)
  return found


def differences(
  model: VisionLanguageModel, lora: LoraConfig, factors: Mapping[str, LoraFactors], params: Any
) -> Iterator[tuple[str, np.ndarray]]:
  """What each adapted module's weight `[d_out, d_in]` gains, as `merge.add` takes it.

  Args:
    model: that is adapted.
    lora: how.
    factors: by encoder.
    params: of the model, which DoRA's columns are multiples of.
  """
  for name, encoder, row, block, projection in _modules(model, lora):
    own, column = factors[encoder].of(projection, lora)
    a, b = (np.asarray(leaf[row, column], np.float32) for leaf in own[:2])
    gain = lora.multiplier * (a @ b)
    if own.magnitude is not None:
      weight = np.asarray(kernels(params[encoder]["blocks"], [projection])[block, 0], np.float32)
      total = weight + gain
      length = np.asarray(own.magnitude[row, column]) / np.linalg.norm(total, axis=0)
      gain = total * length[None] - weight
    yield name, gain.T


def _modules(
  model: VisionLanguageModel, lora: LoraConfig
) -> Iterator[tuple[str, str, int, int, str]]:
  """Each adapted projection: its module, encoder, row of the factors, block, and which it is."""
  depths = {"image": model.image.depth, "text": model.text.depth}
  for encoder in lora.encoders:
    for row, block in enumerate(lora.blocks(depths[encoder])):
      for projection in lora.projections:
        layer = f"{_TOWERS[encoder]}.encoder.layers.{block}"
        yield f"{layer}.{_NAMES[projection]}", encoder, row, block, projection
