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
from mdtrap_jax.models.lora import LoraConfig, LoraFactors
from mdtrap_jax.models.vlm import VisionLanguageModel

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
FINGERPRINT = "base_fingerprint"  # in the header of the weights
_TOWERS = {"image": "vision_model", "text": "text_model"}
_NAMES = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}


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
  for name, encoder, block, projection in _modules(model, lora):
    modules.append(name)
    a, b = (np.asarray(leaf[block, projection], np.float32).T for leaf in factors[encoder])
    arrays[f"base_model.model.{name}.lora_A.weight"] = np.ascontiguousarray(a)
    arrays[f"base_model.model.{name}.lora_B.weight"] = np.ascontiguousarray(b)
  config = {
    "peft_type": "LORA",
    "task_type": "FEATURE_EXTRACTION",
    "base_model_name_or_path": MODELS[base].hub or base if base in MODELS else base,
    "r": lora.rank,
    "lora_alpha": lora.alpha,
    "lora_dropout": lora.dropout,
    "use_rslora": lora.scale == "sqrt",
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
  for field, value in stated.items():
    if config.get(field) != value:
      raise ValueError(f"{folder / CONFIG}: {field}={config.get(field)!r}, expected {value!r}.")
  stored = open_safetensors(folder / WEIGHTS)
  halves: dict[str, tuple[list[Any], list[Any]]] = {}
  projections, read = len(lora.projections), set()
  for name, encoder, _, _ in _modules(model, lora):
    for half, rows in zip("AB", halves.setdefault(encoder, ([], [])), strict=True):
      key = f"base_model.model.{name}.lora_{half}.weight"
      if key not in stored:
        raise ValueError(f"{folder / WEIGHTS} has no {key}: an adapter of another model.")
      rows.append(stored[key].read().T)
      read.add(key)
  if rest := sorted(stored.keys() - read):
    raise ValueError(f"{folder / WEIGHTS}: {rest[0]} adapts what this model does not have.")
  stack = lambda rows: np.stack(rows).reshape(-1, projections, *rows[0].shape)
  return {encoder: LoraFactors(*map(stack, both)) for encoder, both in halves.items()}


def differences(
  model: VisionLanguageModel, lora: LoraConfig, factors: Mapping[str, LoraFactors]
) -> Iterator[tuple[str, np.ndarray]]:
  """What each adapted module's weight `[d_out, d_in]` gains, as `merge.add` takes it.

  Nothing, where nothing was trained.
  """
  for name, encoder, block, projection in _modules(model, lora) if factors else ():
    a, b = (np.asarray(leaf[block, projection], np.float32) for leaf in factors[encoder])
    yield name, lora.multiplier * (a @ b).T


def _modules(model: VisionLanguageModel, lora: LoraConfig) -> Iterator[tuple[str, str, int, int]]:
  """Each adapted projection: its module's name, encoder, row of blocks, row of projections."""
  depths = {"image": model.image.depth, "text": model.text.depth}
  for encoder in lora.encoders:
    for row, block in enumerate(lora.blocks(depths[encoder])):
      for column, projection in enumerate(lora.projections):
        layer = f"{_TOWERS[encoder]}.encoder.layers.{block}.self_attn"
        yield f"{layer}.{_NAMES[projection]}", encoder, row, column
