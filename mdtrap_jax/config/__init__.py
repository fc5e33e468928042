"""From a config as written to one that is complete, checked, comparable and not changed again."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections

from mdtrap_jax import files
from mdtrap_jax.config.fields import KINDS, MOST_TASKS, complaint, nearest, unknown
from mdtrap_jax.config.rules import MOST, one_of, real

# How a run is carried out, not what it computes: free to differ when a run is resumed.
RUNTIME_FIELDS = (
  "episodes",
  "predictions",
  "episodes_per_device",
  "weight_shards",
  "data.threads",
  "data.cache_dir",
  "model.batch_size",
  "adapt.chunk",
  "diagnosis.tasks",
  "diagnosis.distances",
)
LEAST_STEPS = 5  # of adapting: one in each fifth


class ConfigMismatchError(ValueError):
  """What is on the disk was made by another config."""


def resolve(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """A complete and checked copy of a config of any kind, before anything is computed.

  Args:
    config: from a file of `configs/`, with the command line's overrides.

  Returns:
    A locked copy, not to be changed (`replace` makes another). Paths have no `~`; what was left
    as `None` and follows from other fields has the paper's value.

  Raises:
    ValueError: a field that is unknown, missing or cannot be right; the message shows it as
      typed on the command line and says what it must be.
  """
  config = config.copy_and_resolve_references()
  kind = config.get("experiment")
  _check(one_of(lambda: KINDS), "experiment", kind)
  known, given = KINDS[kind], dict(flatten(config))
  for field in sorted(known.keys() - given.keys()):
    if not field.startswith("objective."):  # of a term that this config does without
      raise ValueError(
        f"config.{field} is absent: start from configs/default.py or configs/copa.py"
      )
  for field, value in given.items():
    if not field.startswith("variants."):
      put(config, field, _check(_rule(known, field, given), field, value))
  for term, options in config.get("objective", {}).items():
    for field in sorted({"weight", "window"}.difference(options)):
      raise ValueError(f"config.objective.{term}.{field} is absent: a term has weight and window.")
  if "seeds" in config and (last := config.seed + config.seeds - 1) > MOST:
    raise complaint(
      "seed", config.seed, f"of config.seeds={config.seeds} the last is {last}, beyond {MOST}"
    )
  _check_variants(config)
  {"all_way": _complete, "finetune": _complete, "pretrain": _check_pretraining}.get(kind, id)(
    config
  )
  _check_tasks(config)
  config.lock()
  return config


def replace(
  config: ml_collections.ConfigDict, fields: Mapping[str, Any]
) -> ml_collections.ConfigDict:
  """A locked copy of a config with other values of some (dotted) fields."""
  config = config.copy_and_resolve_references()
  for field, value in fields.items():
    put(config, field, value)
  config.lock()
  return config


def _rule(known, field: str, given):
  """What a field must be; the options of a term of one's own are the term's to check."""
  if field in known:
    return known[field]
  section, _, rest = field.partition(".")
  term, _, option = rest.partition(".")
  if section == "objective" and option and "objective.*.weight" in known:
    return known.get(f"objective.*.{option}", lambda value: value)
  raise unknown(field, [*given.keys() & known.keys()])


def _check(rule, field: str, value: Any) -> Any:
  try:
    return rule(value)
  except ValueError as error:
    raise complaint(field, value, str(error)) from None


def put(config: ml_collections.ConfigDict, field: str, value: Any) -> None:
  """Sets a dotted field of a config that is not resolved yet, whatever was there before."""
  section, _, name = field.rpartition(".")
  section = get(config, section) if section else config
  with section.unlocked():
    if name in section:
      del section[name]  # what replaces a list would become one
    section[name] = value


def _complete(config: ml_collections.ConfigDict) -> None:
  """The paper's values of what was left open."""
  epochs = config.adapt.get("epochs")
  if isinstance(epochs, tuple):
    epochs = max(pair for pair in epochs if pair[0] <= config.data.shots)[1]
    put(config, "adapt.epochs", epochs)
  if config.adapt.steps is None and epochs is None:
    put(config, "adapt.steps", config.adapt.steps_per_shot * config.data.shots)
    if config.adapt.steps > MOST:
      raise complaint(
        "adapt.steps_per_shot",
        config.adapt.steps_per_shot,
        f"of config.data.shots={config.data.shots} these are more than {MOST} steps",
      )
  if config.episodes is None:
    put(config, "episodes", 800 if config.data.shots == 1 else 400)
  if "svl" in config.objective and config.objective.svl.weight is None:
    put(config, "objective.svl.weight", 0.001 if _tuned(config) == "text" else 0.1)
  if config.coop.tokens is None:  # as CoOp counts them
    put(config, "coop.tokens", len(config.coop.words.split()) or 16)
  # Of epochs the images say how many steps they are; the warm-up is counted likewise.
  counted, length = ("steps", config.adapt.steps) if config.adapt.steps else ("epochs", epochs)
  if config.optimizer.warmup_steps >= length:
    raise complaint(
      "optimizer.warmup_steps",
      config.optimizer.warmup_steps,
      f"must be below config.adapt.{counted}={length}",
    )
  if counted == "steps" and length < LEAST_STEPS:
    raise complaint("adapt.steps", length, f"an episode needs at least {LEAST_STEPS} steps")


def _tuned(config: ml_collections.ConfigDict) -> str:
  """Which encoder is tuned: vision, text or both."""
  return config[config.tune].get("encoder") or {"coop": "text", "maple": "both"}[config.tune]


def _check_tasks(config: ml_collections.ConfigDict) -> None:
  """As many as a machine can list."""
  count = (config.get("episodes") or 0) * config.get("seeds", 1) * len(config.get("domains", ("",)))
  if count > MOST_TASKS:
    raise complaint(
      "episodes",
      config.episodes,
      f"of all seeds and domains these are {count} tasks; a run has {MOST_TASKS} at most",
    )


def _check_variants(config: ml_collections.ConfigDict) -> None:
  """Names that can be folders, and contents that are weights of terms of the objective."""
  same = {}
  for name, weights in config.get("variants", {}).items():
    field = f"variants.{name}"
    files.check_name(name, f"config.{field}")
    if files.is_reserved(name):
      raise ValueError(
        f"config.{field}: a run keeps files of that name; name the variant otherwise."
      )
    if (other := same.setdefault(unicodedata.normalize("NFC", name).casefold(), name)) != name:
      raise ValueError(f"config.{field}: some disks take {name!r} and {other!r} for one folder.")
    if not isinstance(weights, dict | ml_collections.ConfigDict):
      raise complaint(field, weights, "must be weights of terms, as in {'svl': 0.0, 'ra': 0.0}")
    for term, weight in weights.items():
      if term not in config.objective:
        raise complaint(
          f"{field}.{term}",
          weight,
          "the objective has no such term" + nearest(term, list(config.objective)),
        )
      put(config, f"{field}.{term}", _check(real(), f"{field}.{term}", weight))


def _check_pretraining(config: ml_collections.ConfigDict) -> None:
  """The warm-up of pretraining must end before the training does."""
  if config.warmup_steps >= config.steps:
    raise complaint(
      "warmup_steps", config.warmup_steps, f"must be below config.steps={config.steps}"
    )


def variants(config: ml_collections.ConfigDict) -> dict[str, ml_collections.ConfigDict]:
  """The runs that a resolved config asks for, by the name of their subdirectory.

  Returns:
    `{"": config}`, or for each entry of `config.variants` a config of its own, with the
    entry's term weights and without variants: what would do the same run alone. The one
    with the fewest terms comes first; it is what the others are compared with.
  """
  if not config.get("variants"):
    return {"": config}
  runs = {
    name: replace(
      config,
      {"variants": ml_collections.ConfigDict()}
      | {f"objective.{term}.weight": float(weight) for term, weight in weights.items()},
    )
    for name, weights in config.variants.items()
  }
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


def as_text(**sections: Mapping[str, Any]) -> str:
  """Sections of a config as JSON, the same for what is equal once it is written and read."""
  plain = lambda section: section.to_dict() if hasattr(section, "to_dict") else dict(section)
  return json.dumps({name: plain(section) for name, section in sections.items()}, sort_keys=True)


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
