"""From a config as written to one that is complete, checked and comparable."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from typing import Any

import ml_collections

# How a run is carried out, not what it computes: free to differ when a run is resumed.
RUNTIME_FIELDS = (
  "episodes",
  "episodes_per_device",
  "weight_shards",
  "data.threads",
  "data.cache_dir",
  "adapt.chunk",
  "features.batch_size",
  "diagnosis.tasks",
  "diagnosis.distances",
)
CHOICES = {
  "model.dtype": ("auto", "float32", "bfloat16"),
  "data.resize": ("squash", "crop", "family"),
  "data.unreadable": ("error", "skip"),
  "data.small_classes": ("error", "drop"),
}
POSITIVE = (
  "episodes",
  "weight_shards",
  "data.ways",
  "data.shots",
  "data.queries",
  "data.threads",
  "adapt.views",
  "adapt.steps",
  "lora.rank",
  "optimizer.learning_rate",
)


class ConfigMismatchError(ValueError):
  """What is on the disk was made by another config."""


def resolve(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """A complete copy of `config`: what was left as `None` gets the paper's value.

  Args:
    config: from a file of `configs/`, with the command line's overrides.

  Returns:
    A locked copy: `adapt.steps` and `episodes` are numbers.

  Raises:
    ValueError: a value that cannot be right; the message names field, value and choices.
  """
  config = config.copy_and_resolve_references()
  with config.unlocked():
    if config.adapt.steps is None:
      config.adapt.steps = config.adapt.steps_per_shot * config.data.shots
    if config.episodes is None:
      config.episodes = 800 if config.data.shots == 1 else 400
    if config.objective.svl.weight is None:
      config.objective.svl.weight = 0.001 if config.lora.encoder == "text" else 0.1
  for field, choices in CHOICES.items():
    if (value := get(config, field)) not in choices:
      raise ValueError(f"config.{field}={value!r}: choose one of {list(choices)}.")
  for field in POSITIVE:
    if not (value := get(config, field)) > 0:
      raise ValueError(f"config.{field}={value!r}: must be greater than 0.")
  for field in ("adapt.batch_size", "adapt.chunk", "episodes_per_device", "seed"):
    if (value := get(config, field)) < 0:
      raise ValueError(f"config.{field}={value!r}: must not be negative.")
  return config


def variants(config: ml_collections.ConfigDict) -> dict[str, ml_collections.ConfigDict]:
  """The runs that a config asks for, by the name of their subdirectory.

  Returns:
    `{"": config}`, or for each entry of `config.variants` a config of its own, with the
    entry's term weights and without variants: what would do the same run alone. The one
    with the fewest terms comes first; it is what the others are compared with.

  Raises:
    ValueError: a variant sets the weight of a term that the objective does not have.
  """
  if not config.variants:
    return {"": config}
  runs = {}
  for name, weights in config.variants.items():
    run = runs[name] = config.copy_and_resolve_references()
    with run.unlocked():
      run.variants = ml_collections.ConfigDict()
    for term, weight in weights.items():
      if term not in run.objective:
        raise ValueError(
          f"config.variants.{name}.{term}: the objective has no such term."
          + nearest(term, list(run.objective))
        )
      run.objective[term].weight = float(weight)
  terms = lambda name: sum(term.weight != 0 for term in runs[name].objective.values())
  return {name: runs[name] for name in sorted(runs, key=lambda name: (terms(name), name))}


def get(config: Any, field: str) -> Any:
  """The value of a dotted field name."""
  for part in field.split("."):
    config = config[part]
  return config


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """Dotted field names and values, in order."""
  for name, value in config.items():
    if isinstance(value, dict | ml_collections.ConfigDict):
      yield from flatten(value, f"{prefix}{name}.")
    else:
      yield prefix + name, value


def to_json(config: ml_collections.ConfigDict) -> str:
  """The text of `config.json`."""
  return json.dumps(config.to_dict(), indent=2) + "\n"


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
  """Fields in which two configs (as read from JSON) would compute something else.

  Returns:
    Lines such as `data.shots: 1 there, 5 here`, for `theirs` and `ours`.
  """
  here, there = dict(flatten(ours)), dict(flatten(theirs))
  return [
    f"{field}: {there.get(field, 'absent')} there, {here.get(field, 'absent')} here"
    for field in sorted(here.keys() | there.keys())
    if field not in RUNTIME_FIELDS and here.get(field) != there.get(field)
  ]


def nearest(name: str, known: list[str]) -> str:
  """A clause that suggests the known name most like `name`, or nothing."""
  close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
  return f" Did you mean {close[0]}?" if close else ""
