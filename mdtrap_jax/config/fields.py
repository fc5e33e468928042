"""What every field of a config must be: one table for all kinds of experiment, of `rules`."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Sequence
from typing import Any

from mdtrap_jax import files
from mdtrap_jax.config.rules import (
  MOST,
  Rule,
  distinct,
  flag,
  increasing,
  one_of,
  optional,
  owned,
  path,
  real,
  several,
  text,
  whole,
)

MOST_TASKS = 10_000_000  # of a run, which keeps a list of them
DTYPES = ("auto", "float32", "bfloat16", "float16")
SMALL_CLASSES = ("error", "drop")
# What fields were called before; looked at for a field that is unknown.
RENAMED = {
  **{f"tasks.{name}": f"data.{name}" for name in ("protocol", "ways", "shots", "queries")},
  "features.path": "data.features",
  "features.model": "model.name",
  "features.checkpoint": "model.checkpoint",
  "features.random_weights": "model.random_weights",
  "features.batch_size": "model.batch_size",
  "data.name": "domains",  # of heads, which take many data sets
}


def _template(value: Any) -> str | tuple[str, ...]:
  texts = (value,) if isinstance(value, str) else value
  if not isinstance(texts, list | tuple) or not texts:
    raise ValueError("must be a prompt or a tuple of prompts, {} the class name")
  if any(not isinstance(item, str) or "{}" not in item for item in texts):
    raise ValueError("each prompt must hold {} for the class name, as in 'a photo of a {}.'")
  return value if isinstance(value, str) else tuple(texts)


def _seeds(value: Any) -> int:
  if isinstance(value, list | tuple):
    raise ValueError(
      "is now how many seeds; give --config.seed= the first and --config.seeds= how many"
    )
  return whole(1)(value)


def _window(value: Any) -> tuple[float, ...]:
  value = increasing(several(real(), "(0,4095)", most=2))(value)
  if len(value) == 1:
    raise ValueError('must be () or two numbers, as in "(0,4095)"')
  return value


def _epochs(value: Any) -> int | tuple[tuple[int, int], ...]:
  pairs = ((1, value),) if not isinstance(value, list | tuple) else value
  pair = several(whole(1), "(1,50)", least=2, most=2)
  try:
    pairs = several(pair, "((1,50),(8,200))", least=1)(pairs)
    shots = [least for least, _ in pairs]
    if shots[0] != 1 or shots != sorted(set(shots)):
      raise ValueError
  except ValueError:
    raise ValueError(
      "must be a whole number from 1, or pairs of shots and epochs that go up from 1 shot on, as "
      'in "((1,50),(8,200))"'
    ) from None
  return pairs if isinstance(value, list | tuple) else pairs[0][1]


def _fifths(value: Any) -> tuple[int, ...]:
  rule = distinct(several(whole(1, 5), "(1,2,3,4,5)", least=1))
  value = tuple(sorted(rule(value)))
  if value[-1] != 5:
    raise ValueError("must hold 5: a run's accuracy is that after the last step")
  return value


def _projections(value: Any) -> tuple[str, ...]:
  from mdtrap_jax.models.lora import PROJECTIONS

  rule = several(one_of(lambda: PROJECTIONS), "('q','k','v')", least=1)
  chosen = distinct(rule)(value)
  return tuple(name for name in PROJECTIONS if name in chosen)


def _position(value: Any) -> str:
  blocks = text(value).split(",")
  if not all(block.strip().isdecimal() for block in blocks if block.strip()) or not value.strip(
    ", "
  ):
    owned("models.lora", "POSITIONS")(value)
  return value


def _domain(value: Any) -> str:
  name, equals, folder = text(value).partition("=")
  if equals:
    files.check_name(name, "a data set")
    return f"{name}={path(folder)}"
  if not name:
    raise ValueError("a data set has a name")
  return name


def _distances(value: Any) -> tuple[float, float, int]:
  first, last, count = several(real(), "(-2.0,2.0,41)", least=3, most=3)(value)
  return *increasing(tuple)((first, last)), whole(2)(value[2])


NAMES = several(text, "('MEL','NV')")
COMMON: dict[str, Rule] = {
  "experiment": text,
  "seed": whole(0, MOST),
  "seeds": _seeds,
  "episodes": optional(whole(1)),
  "predictions": flag,
  "episodes_per_device": whole(0),
  "weight_shards": whole(1),
  "data.severity": real(0, 1),
  "data.images_per_class": whole(1, 100_000),
  "data.data_dir": path,
  "data.split": text,
  "data.files": path,
  "data.classes": distinct(NAMES),
  "data.small_classes": one_of(lambda: SMALL_CLASSES),
  "data.unreadable": owned("data.loader", "UNREADABLE"),
  "data.ways": whole(2),
  "data.shots": whole(1),
  "data.queries": whole(1),
  "data.resize": owned("data.images", "RESIZE_MODES", "family"),
  "data.interpolation": owned("data.images", "INTERPOLATIONS"),
  "data.background": several(whole(0, 255), "(255,255,255)", least=3, most=3),
  "data.window": _window,
  "data.max_pixels": whole(0, 2**63 - 1),
  "data.threads": whole(1, 1024),
  "data.cache_dir": path,
  "model.name": path,
  "model.checkpoint": path,
  "model.random_weights": flag,
  "model.dtype": one_of(lambda: DTYPES),
  "model.batch_size": whole(1),
}
FINETUNE = COMMON | {
  "data.name": text,
  "data.path": path,
  "data.split_file": path,
  "data.class_names": NAMES,
  "data.domain": text,
  "data.template": optional(_template),
  "tune": owned("methods.tuning.choices", "PARAMETERIZATIONS"),
  "lora.encoder": owned("models.lora", "ENCODERS"),
  "lora.position": _position,
  "lora.projections": _projections,
  "lora.rank": whole(1),
  "lora.alpha": real(),
  "lora.scale": owned("models.lora", "SCALES"),
  "lora.dropout": real(0, below=1),
  "lora.dora": flag,
  "lora.start": owned("models.lora", "STARTS"),
  "coop.tokens": optional(whole(1)),
  "coop.words": text,
  "coop.per_class": flag,
  "maple.depth": whole(1),
  "maple.tokens": whole(1),
  "maple.words": text,
  **{
    f"{subset}.{field}": rule
    for subset in ("layernorm", "bias")
    for field, rule in (("encoder", owned("models.lora", "ENCODERS")), ("position", _position))
  },
  "objective.*.weight": real(),
  "objective.*.window": increasing(several(whole(0, 5), "(0,3)", least=2, most=2)),
  "objective.svl.weight": optional(real()),
  "objective.ra.divergence": owned("objectives.losses", "DIVERGENCES"),
  "adapt.views": whole(1),
  "adapt.steps_per_shot": whole(1),
  "adapt.steps": optional(whole(1)),
  "adapt.batch_size": whole(0),
  "adapt.chunk": whole(0),
  "adapt.evaluate_at": _fifths,
  "adapt.diagnose": flag,
  "optimizer.name": owned("objectives.chain", "OPTIMIZERS"),
  "optimizer.learning_rate": real(above=0),
  "optimizer.floor": real(0),
  "optimizer.periods": real(above=0),
  "optimizer.weight_decay": real(0),
  "optimizer.b1": real(0, below=1),
  "optimizer.b2": real(0, below=1),
  "optimizer.eps": real(above=0),
  "optimizer.momentum": real(0, below=1),
  "optimizer.warmup_steps": whole(0),
  "optimizer.warmup_rate": real(above=0),
}
HEADS = COMMON | {
  "method": owned("methods.heads", "METHODS"),
  "domains": several(_domain, "('isic','eurosat')", least=1),
  "seen": text,
  "data.protocol": owned("data.tasks", "RULES", "fixed"),
  "data.records": path,
  "data.records_split": one_of(lambda: ("train", "valid", "test")),
  "data.features": path,
  "data.class_names": NAMES,
  "data.template": optional(_template),
  "head.steps": optional(whole(0)),
  "head.learning_rate": optional(real(above=0)),
  "head.l2": optional(real(0)),
  "head.adapter_ratio": optional(real(0)),
  "head.alpha": optional(real(0)),
  "head.beta": optional(real(above=0)),
  "head.neighbors": optional(whole(1)),
  "head.prototypes": optional(owned("methods.ncc", "POOLS")),
  "head.distance": optional(owned("methods.ncc", "DISTANCES")),
  "diagnosis.tasks": whole(0),
  "diagnosis.distances": _distances,
}
ALL_WAY = {
  name: rule for name, rule in FINETUNE.items() if name not in ("data.ways", "data.queries")
} | {
  "adapt.augmentation": owned("methods.all_way", "AUGMENTATIONS"),
  "adapt.epochs": optional(_epochs),
  "base_to_new": flag,
  "transfer": distinct(several(_domain, "('dtd=DIR',)")),
}  # fmt: skip
_DATA = ("name", "path", "split_file", "class_names", "domain", "template")
ALL_WAY_HEADS = (
  {name: rule for name, rule in COMMON.items() if name in ALL_WAY}
  | {name: FINETUNE[name] for name in map("data.{}".format, _DATA)}
  | {name: rule for name, rule in HEADS.items() if name == "method" or name.startswith("head.")}
  | {"head.batch_size": optional(whole(0))}
  | {name: ALL_WAY[name] for name in ("base_to_new", "transfer")}
)
STUDY = FINETUNE | {
  "study.domains": distinct(several(text, "('radiograph','digits')", least=1)),
  "study.severities": distinct(several(real(0, 1), "(0.5,1.0)", least=1)),
  "study.shots": distinct(several(whole(1), "(1,5)", least=1)),
}
PRETRAIN: dict[str, Rule] = {
  "experiment": text,
  "seed": whole(0, MOST),
  **{f"model.{name}": whole(1) for name in (
    "width", "image_depth", "text_depth", "heads", "mlp_width", "embed_dim", "patch_size",
  )},
  "model.activation": owned("models.layers", "ACTIVATIONS"),
  **{name: whole(1) for name in (
    "steps", "batch_size", "evaluate_every", "evaluate_episodes",
  )},
  "warmup_steps": whole(0),
  "learning_rate": real(above=0),
  "weight_decay": real(0),
  "b1": real(0, below=1),
  "b2": real(0, below=1),
  "clip_norm": real(above=0),
  "max_scale": real(above=0),
}  # fmt: skip
SWEEP: dict[str, Rule] = {
  "experiment": text,
  "sweep.config": text,
  "sweep.fields": several(text, "('data.shots={shots}',)"),
  **{f"sweep.{name}": distinct(several(text, "('isic','eurosat')", least=1)) for name in (
    "backbones", "targets", "methods",
  )},
  "sweep.references": distinct(several(text, "('baseline','svl_ra')")),
  "sweep.shots": distinct(several(whole(1), "(1,5)", least=1)),
  "sweep.seeds": distinct(several(whole(0, MOST), "(0,1)", least=1)),
}  # fmt: skip
KINDS = {
  "all_way": ALL_WAY, "all_way_heads": ALL_WAY_HEADS, "finetune": FINETUNE, "heads": HEADS,
  "study": STUDY, "pretrain": PRETRAIN, "sweep": SWEEP,
}  # fmt: skip


def complaint(field: str, value: Any, must: str) -> ValueError:
  """What is wrong with a field, as it is typed on the command line."""
  shown = value if isinstance(value, str) and value.isprintable() else repr(value)
  if isinstance(value, float):
    shown = f"{value:.12g}"
  if len(shown) > 100:
    shown = f"{shown[:100]}…"
  return ValueError(f"--config.{field}={shlex.quote(shown)}: {must}.")


def unknown(field: str, known: Sequence[str]) -> ValueError:
  """What to write in place of a field that there is not."""
  if field in RENAMED and RENAMED[field] in known:
    return ValueError(f"config.{field} is now config.{RENAMED[field]}.")
  leaf = lambda name: name.rpartition(".")[2]
  close = [name for name in sorted(known) if leaf(name) == leaf(field)]
  if not 1 <= len(close) <= 2:
    close = difflib.get_close_matches(field, known, 1, 0.7)
  if not close:
    leaves = difflib.get_close_matches(leaf(field), sorted(map(leaf, known)), 1, 0.6)
    close = [name for name in known if leaf(name) in leaves][:1]
  meant = f" Did you mean {' or '.join(f'--config.{name}' for name in close)}?" if close else ""
  return ValueError(f"--config.{field}: there is no such field.{meant}")


def nearest(name: str, known: Sequence[str]) -> str:
  """A clause that suggests the known name most like `name`, or nothing."""
  close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
  return f" (did you mean {close[0]}?)" if close else ""
