"""What adapts a user's own images: methods by name, and the config that a run of one would have."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from mdtrap_jax import config as configs
from mdtrap_jax.config import loading
from mdtrap_jax.experiments import finetune
from mdtrap_jax.methods import heads

MOST_SHOTS = 16  # the papers' largest setting: more images of a class do not mean more steps
ZERO_SHOT = "zero_shot"


def head_names() -> tuple[str, ...]:
  """Heads on frozen features that an image encoder of a vision-language model has.

  Without zero-shot, for which a classifier computes no features of the support set.
  """
  kinds = ("pooled", "unprojected")
  found = heads.METHODS.items()
  return tuple(name for name, own in found if own.needs in kinds and name != ZERO_SHOT)


def has_text(method: str) -> bool:
  """Whether a method takes the classes' prompts."""
  return method not in head_names() or heads.METHODS[method].text


def method_names() -> tuple[str, ...]:
  """Every method that adapts one task of one's own images."""
  loading.load("default")  # makes `configs` importable, from a wheel too
  return (ZERO_SHOT, *head_names(), *importlib.import_module("configs.default").METHODS)


def make_config(
  model: str,
  method: str,
  counts: Sequence[int],
  *,
  seed: int = 0,
  template: str | Sequence[str] | None = None,
  fields: Mapping[str, Any] | None = None,
) -> ml_collections.ConfigDict:
  """The config of a run whose episodes are like this task.

  Args:
    model: as `config.model.name`.
    method: of `method_names()`.
    counts: `[C]`, images of each class. Steps go by their mean, up to `MOST_SHOTS`.
    seed: of views, draws and start.
    template: of prompts; the model family's if `None`.
    fields: dotted fields of the config with other values; of a head, `head.steps` and the like.

  Raises:
    ValueError: no such method or field, or a value that cannot be right.
  """
  if method not in method_names():
    raise ValueError(f"method={method!r}: choose one of {', '.join(method_names())}.")
  head = method in head_names()
  fields = dict(fields or {})
  tune = (
    fields.pop("tune", "lora") if not head else "lora"
  )  # with the hyper-parameters of its own paper
  base = f"copa:{method}" if head else f"default:{'vlm' if method == ZERO_SHOT else method},{tune}"
  config = loading.load(base)
  shots = min(math.ceil(sum(counts) / len(counts)), MOST_SHOTS)
  values: dict[str, Any] = {
    "model.name": model,
    "seed": seed,
    "data.ways": len(counts),
    "data.shots": shots,
  }
  if has_text(method):
    values["data.template"] = tuple(template) if isinstance(template, list) else template
  # Its short schedule is the demonstration's.
  if not head and model == "miniature" and tune == "lora":
    demo = loading.load("demo")
    values["adapt.steps"] = demo.adapt.steps
    values["optimizer.learning_rate"] = demo.optimizer.learning_rate
  known = dict(configs.flatten(config))
  for field, value in {**values, **fields}.items():
    if field not in known:
      raise ValueError(f"config field {field!r}: {base} has no such field.")
    configs.put(config, field, value)
  return finetune.settled(config) if has_text(method) else configs.resolve(config)
