"""Replays recordings of CoPA's and URL's reference implementations with the library's heads."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mdtrap_jax.checkpoints.convert import parameter_shapes
from mdtrap_jax.checkpoints.layouts.resnet import DIALECT, TABLE, from_torchvision
from mdtrap_jax.checkpoints.rules import slots
from mdtrap_jax.data.task import Task
from mdtrap_jax.methods import copa, url
from mdtrap_jax.methods.head import Fit, HeadMethod
from mdtrap_jax.methods.heads import METHODS, SEEN, Domain, make_method
from mdtrap_jax.methods.ncc import Representations
from mdtrap_jax.models.resnet import LAYERS, ResNet18, adapter_shapes, init_adapters
from mdtrap_jax.objectives.losses import symmetric_cross_entropy
from tests.replay.check import Check

TOLERANCE = 1e-8
SINGLE = 1e-6  # of accuracies, which the reference kept as float32
FEATURES = "features_*.npz"  # what `copa_real_*` index, in the same folder
# Their accuracies: of which method, and whether the domain counts as seen.
REAL = {
  "ncc": ("ncc", False),
  "url": ("url", True),
  "url_unseen": ("url", False),
  "copa": ("copa", False),
}

Recording = Mapping[str, np.ndarray]


def replay(path: str | Path) -> list[Check]:
  """Compares every recorded number of a `copa_*` or `url_*` file; needs `jax_enable_x64`.

  Sizes, steps, seeds and, where it names them, `lr_head`, `lr_adapters` and `layers` are the
  file's. Other rates follow, as published, from its `dataset` and, for adapters, from whether
  the task is 5-way 1-shot; without a `dataset`, URL's domain is a seen one.

  Raises:
    ValueError: the file is of none of these formats, or the features it indexes are missing.
  """
  path = Path(path)
  with np.load(path) as file:
    recorded = {name: file[name] for name in file.files}
  if {"class_ids", "support", "query"} <= recorded.keys():
    return _real(recorded, path)
  if "support_12x12" in recorded:
    return _adapters(recorded)
  if "pos_embedding_init_image" in recorded:
    return _transformer(recorded)
  if {"head_image_step1", "head_image_final"} & recorded.keys():
    return _linear(recorded)
  if "head_final" in recorded:
    return _shared(recorded)
  raise ValueError(f"{path}: no recording of heads.")


def _linear(recorded: Recording) -> list[Check]:
  task = _task(recorded, recorded["support"], recorded["query"])
  make = functools.partial(make_method, "copa", **_published(recorded))
  fit = _fit(make(steps=len(recorded["train_losses"])), None, task)
  ours = _trajectory(fit)
  stages = {"final": fit}
  if "head_image_step1" in recorded:
    stages["step1"] = _fit(make(steps=1), None, task)
  for name, stage in stages.items():
    ours |= {f"head_{part}_{name}": stage.params[part].T for part in ("image", "proto")}
  return _checks(recorded, ours)


def _shared(recorded: Recording) -> list[Check]:
  task = _task(recorded, recorded["support"], recorded["query"])
  method = make_method("url", **_published(recorded), steps=len(recorded["train_losses"]))
  fit = _fit(method, None, task, _prototype_loss)
  ours = _trajectory(fit)
  return _checks(
    recorded,
    ours
    | {
      "head_final": fit.params["shared"].T,
      "query_loss": ours["val_losses"][-1],
      "query_accuracy": ours["val_accs"][-1],
    },
  )


def _transformer(recorded: Recording) -> list[Check]:
  maps = lambda name: recorded[name].transpose(0, 2, 3, 1)
  task = _task(recorded, maps("support"), maps("query"))
  method = make_method(
    "copa_transformer", **_published(recorded), steps=len(recorded["train_losses"])
  )

  draw = method.head.init

  def init(key, row):  # the one thing replaced: the drawn positions
    params = draw(key, row)
    return {
      part: {**params[part], "position": jnp.asarray(recorded[f"pos_embedding_init_{part}"])}
      for part in ("image", "proto")
    }

  method = dataclasses.replace(method, head=method.head._replace(init=init))
  return _checks(recorded, _trajectory(_fit(method, None, task)))


def _adapters(recorded: Recording) -> list[Check]:
  model, weights = from_torchvision(random_weights(int(recorded["seed"])), dtype=jnp.float64)
  images = lambda name: recorded[name].repeat(7, 2).repeat(7, 3).transpose(0, 2, 3, 1)
  task = _task(recorded, images("support_12x12"), images("query_12x12"))
  layers = tuple(map(str, recorded.get("layers", LAYERS)))
  features = jax.jit(model.features)
  ours = {
    "backbone_features": features(weights, task.support),
    "backbone_features_with_initial_adapters": features(
      weights, task.support, init_adapters(jnp.float64, layers=layers)
    ),
  }
  shared = "head_row0" in recorded
  method = make_method(
    "url_tsa" if shared else "copa_tsa",
    **_published(recorded, "url_tsa" if shared else "copa_tsa"),
    model=model,
    steps=len(recorded["train_losses"]),
    layers=layers,
  )
  fit = _fit(method, weights, task, _prototype_loss if shared else _symmetric_loss)
  ours |= _trajectory(fit)
  adapters, head = fit.params["adapters"], fit.params["head"]
  ours["adapter_norms"] = [
    jnp.linalg.norm(adapters[name]) for name in adapter_shapes(layers=layers)
  ]
  rows = {"shared": "head_row0", "image": "head_image_row0", "proto": "head_proto_row0"}
  return _checks(recorded, ours | {rows[part]: weight[:, 0] for part, weight in head.items()})


def _real(recorded: Recording, path: Path) -> list[Check]:
  """Per-episode results on real features; accuracies must be equal."""
  domain = _domain(recorded)
  features = _features(path, domain).astype(np.float64)
  episodes, ways, shots = recorded["support"].shape
  queries = recorded["query"].shape[2]
  labels = lambda count: jnp.repeat(jnp.arange(ways), count)
  rows = lambda name, e: jnp.asarray(features[recorded[name][e].reshape(-1)])
  tasks = [
    Task(rows("support", e), labels(shots), rows("query", e), labels(queries))
    for e in range(episodes)
  ]
  ours = {}
  for name, (method, seen) in REAL.items():
    if name not in recorded:
      continue
    method = make_method(method, ways=ways, domain=domain, seen=seen)
    run = jax.jit(functools.partial(_whole, method))
    outcomes = [jax.device_get(run(task)) for task in tasks]
    ours[name], train, query = map(np.array, zip(*outcomes, strict=True))
    if name == "copa":  # the only one whose losses are recorded
      ours |= {"copa_train_loss": train, "copa_val_loss": query}
  return _checks(recorded, ours)


def _features(path: Path, domain: str) -> np.ndarray:
  """The features that a recording on real images indexes."""
  for file_path in sorted(path.parent.glob(FEATURES)):
    with np.load(file_path) as file:
      if f"{domain}/features" in file:
        return file[f"{domain}/features"]
  raise ValueError(
    f"{path} indexes the features of {domain!r}, but no {FEATURES} beside it "
    f"holds {domain}/features."
  )


def _whole(method: HeadMethod, task: Task) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Accuracy, last training loss and final loss of the queries of one task."""
  fit = method.fit(None, task, jax.random.key(0))
  after = method.represent(None, fit.params, task)
  train = fit.losses[-1] if method.steps else jnp.nan
  return method.predict(task, after).accuracy, train, _symmetric_loss(task, after)


def _symmetric_loss(task: Task, seen: Representations) -> jax.Array:
  return symmetric_cross_entropy(seen.query, seen.prototypes, task.query_labels, copa.LOGIT_SCALE)


def _prototype_loss(task: Task, seen: Representations) -> jax.Array:
  return url.prototype_cross_entropy(
    seen.query, seen.prototypes, task.query_labels, url.LOGIT_SCALE
  )


def _fit(method: HeadMethod, weights: Any, task: Task, query_loss=_symmetric_loss) -> Fit:
  """Adapts, and measures the queries before each step and after the last."""

  def look(representations, params):
    del params
    on_support = task._replace(query_labels=task.support_labels)
    return (
      query_loss(task, representations),
      method.predict(task, representations).accuracy,
      method.predict(on_support, representations._replace(query=representations.support)).accuracy,
    )

  run = jax.jit(lambda w, t: method.fit(w, t, jax.random.key(0), look))
  return jax.device_get(run(weights, task))


def _trajectory(fit: Fit) -> dict[str, np.ndarray]:
  losses, accuracies, on_support = fit.trace
  return {
    "train_losses": fit.losses,
    "train_accs": on_support[:-1],
    "val_losses": losses,
    "val_accs": accuracies,
  }


def random_weights(seed: int) -> dict[str, np.ndarray]:
  """The backbone's state dict, drawn in sorted order as the recording did."""
  shapes = parameter_shapes(ResNet18())
  stored = {
    slot.name: slot.arrange(shapes[slot.path]).stored for slot in slots(TABLE, DIALECT, shapes)
  }
  rng = np.random.RandomState(seed)
  weights = {}
  for name in sorted(stored):
    shape = stored[name]
    g = rng.standard_normal(shape)
    if len(shape) == 4:
      weights[name] = g * np.sqrt(2 / (shape[0] * shape[2] * shape[3]))
    elif name.endswith("running_var"):
      weights[name] = 1 + 0.1 * np.abs(g)
    elif name.endswith("weight"):
      weights[name] = 1 + 0.1 * g
    else:
      weights[name] = 0.1 * g
  return weights


def _task(recorded: Recording, support: np.ndarray, query: np.ndarray) -> Task:
  return Task(
    jnp.asarray(support),
    jnp.asarray(recorded["support_labels"]),
    jnp.asarray(query),
    jnp.asarray(recorded["query_labels"]),
  )


def _published(recorded: Recording, name: str = "url") -> dict[str, Any]:
  """What the published settings of a method follow from, and the rates that the file names."""
  ways, domain = int(recorded["support_labels"].max()) + 1, _domain(recorded)
  known = {
    "domain": domain,
    "seen": not domain or domain in SEEN["mdl"],
    "one_shot": ways == len(recorded["support_labels"]) == 5,
  }
  if "lr_head" in recorded:
    known["learning_rate"] = float(recorded["lr_head"])
  if "lr_adapters" in recorded:
    published = METHODS[name].settings(Domain(domain, known["seen"], known["one_shot"]))
    rate = known.get("learning_rate", published.learning_rate)
    known["adapter_ratio"] = float(recorded["lr_adapters"]) / rate
  return {"ways": ways, **known}


def _domain(recorded: Recording) -> str:
  return str(recorded["dataset"]) if "dataset" in recorded else ""


def _checks(recorded: Recording, ours: Mapping[str, Any]) -> list[Check]:
  """Compares what the file holds; an accuracy is compared as the float32 it was kept as.

  Raises:
    ValueError: the file holds none of it.
  """
  checks = [
    _check(
      name,
      value,
      recorded[name],
      SINGLE if name in REAL or "_acc" in name else TOLERANCE,
    )
    for name, value in ours.items()
    if name in recorded
  ]
  if not checks:
    raise ValueError(f"the recording has none of the arrays {', '.join(ours)}.")
  return checks


def _check(name: str, ours, theirs: np.ndarray, tolerance: float) -> Check:
  """Largest absolute difference, relative to the largest recorded number where that is over 1."""
  ours, theirs = np.asarray(ours), np.asarray(theirs)
  if ours.shape != theirs.shape:
    return Check(name, np.inf, tolerance)
  scale = max(1.0, float(np.abs(theirs).max()))
  return Check(name, float(np.abs(ours - theirs).max()) / scale, tolerance)
