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
from mdtrap_jax.checkpoints.resnet import DIALECT, TABLE, from_torchvision
from mdtrap_jax.checkpoints.rules import slots
from mdtrap_jax.heads import copa, url
from mdtrap_jax.heads.method import Fit, Method
from mdtrap_jax.heads.methods import make_method
from mdtrap_jax.heads.ncc import Prediction, Task
from mdtrap_jax.models.resnet import ResNet18, adapter_shapes, init_adapters
from mdtrap_jax.objectives.losses import symmetric_cross_entropy
from tests.replay.check import Check

TOLERANCE = 1e-8
SINGLE = 1e-6  # of accuracies, which the reference kept as float32
FEATURES = "features_efficientnet_lite0.npz"  # what `copa_real_*` index, in the same folder

Recording = Mapping[str, np.ndarray]


def replay(path: str | Path) -> list[Check]:
  """Compares every recorded number of a `copa_*` or `url_*` file; needs `jax_enable_x64`.

  Raises:
    ValueError: the file is of none of these formats, or the features it indexes are missing.
  """
  path = Path(path)
  with np.load(path) as file:
    recorded = {name: file[name] for name in file.files}
  if {"class_ids", "copa"} <= recorded.keys():
    return _real(recorded, path.parent / FEATURES)
  if "support_12x12" in recorded:
    return _adapters(recorded)
  if "pos_embedding_init_image" in recorded:
    return _transformer(recorded)
  if "head_image_final" in recorded:
    return _linear(recorded)
  if "head_final" in recorded:
    return _shared(recorded)
  raise ValueError(f"{path}: no recording of heads.")


def _linear(recorded: Recording) -> list[Check]:
  task = _task(recorded, recorded["support"], recorded["query"])
  domain, steps = _text(recorded, "dataset"), len(recorded["train_losses"])
  make = functools.partial(
      make_method, "copa", ways=_ways(recorded), domain=domain)
  fit = _fit(make(steps=steps), None, task)
  first = _fit(make(steps=1), None, task)
  checks = _trajectory(recorded, fit)
  for name, stage in (("step1", first), ("final", fit)):
    checks += [
        _check(f"head_{part}_{name}", stage.params[part].T, recorded[f"head_{part}_{name}"])
        for part in ("image", "proto")]
  return checks


def _shared(recorded: Recording) -> list[Check]:
  task = _task(recorded, recorded["support"], recorded["query"])
  method = make_method("url", ways=_ways(recorded), steps=len(recorded["train_losses"]))
  fit = _fit(method, None, task)
  after = method.represent(None, fit.params, task)
  loss = url.prototype_cross_entropy(
      after.query, after.prototypes, task.query_labels, url.LOGIT_SCALE)
  return [
      _check("train_losses", fit.losses, recorded["train_losses"]),
      _check("head_final", fit.params["shared"].T, recorded["head_final"]),
      _check("query_loss", loss, recorded["query_loss"]),
      _check("query_accuracy", method.predict(task, after).accuracy,
             recorded["query_accuracy"], SINGLE)]


def _transformer(recorded: Recording) -> list[Check]:
  maps = lambda name: recorded[name].transpose(0, 2, 3, 1)
  task = _task(recorded, maps("support"), maps("query"))
  method = make_method(
      "copa_transformer", ways=_ways(recorded), domain=_text(recorded, "dataset"),
      steps=len(recorded["train_losses"]))

  draw = method.head.init

  def init(key, row):  # the one thing replaced: the drawn positions
    params = draw(key, row)
    return {
        part: {**params[part], "position": jnp.asarray(
            recorded[f"pos_embedding_init_{part}"])} for part in ("image", "proto")}

  method = dataclasses.replace(method, head=method.head._replace(init=init))
  return _trajectory(recorded, _fit(method, None, task))


def _adapters(recorded: Recording) -> list[Check]:
  model, weights = from_torchvision(random_weights(int(recorded["seed"])), dtype=jnp.float64)
  images = lambda name: recorded[name].repeat(7, 2).repeat(7, 3).transpose(0, 2, 3, 1)
  task = _task(recorded, images("support_12x12"), images("query_12x12"))
  features = jax.jit(model.features)
  checks = [
      _check("backbone_features", features(weights, task.support),
             recorded["backbone_features"]),
      _check("backbone_features_with_initial_adapters",
             features(weights, task.support, init_adapters(jnp.float64)),
             recorded["backbone_features_with_initial_adapters"])]
  method = make_method(
      "copa_tsa", ways=_ways(recorded), domain=_text(recorded, "dataset"), model=model,
      steps=int(recorded["iterations"]))
  fit = _fit(method, weights, task)
  norms = [jnp.linalg.norm(fit.params["adapters"][name]) for name in adapter_shapes()]
  return [
      *checks, *_trajectory(recorded, fit),
      _check("adapter_norms", norms, recorded["adapter_norms"]),
      *(_check(f"head_{part}_row0", fit.params["head"][part][:, 0],
               recorded[f"head_{part}_row0"]) for part in ("image", "proto"))]


def _real(recorded: Recording, path: Path) -> list[Check]:
  """Per-episode results on real features; accuracies must be equal."""
  if not path.is_file():
    raise ValueError(f"{path} is missing: this recording indexes its features.")
  domain = _text(recorded, "dataset")
  with np.load(path) as file:
    features = file[f"{domain}/features"].astype(np.float64)
  episodes, ways, shots = recorded["support"].shape
  queries = recorded["query"].shape[2]
  labels = lambda count: jnp.repeat(jnp.arange(ways), count)
  tasks = [
      Task(jnp.asarray(features[recorded["support"][e].reshape(-1)]), labels(shots),
           jnp.asarray(features[recorded["query"][e].reshape(-1)]), labels(queries))
      for e in range(episodes)]
  results = {}
  for name in ("ncc", "url", "copa"):
    run = jax.jit(functools.partial(_whole, make_method(name, ways=ways, domain=domain)))
    outcomes = [jax.device_get(run(task)) for task in tasks]
    results[name] = [np.array(column) for column in zip(*outcomes, strict=True)]
  checks = [
      _check(f"{name} accuracy", results[name][0], recorded[name], SINGLE)
      for name in ("ncc", "url", "copa")]
  for name, column in (("copa_train_loss", 1), ("copa_val_loss", 2)):
    if name in recorded:
      checks.append(_check(name, results["copa"][column], recorded[name]))
  return checks


def _whole(method: Method, task: Task) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Accuracy, last training loss and final loss of the queries of one task."""
  fit = method.fit(None, task, jax.random.key(0))
  after = method.represent(None, fit.params, task)
  loss = symmetric_cross_entropy(
      after.query, after.prototypes, task.query_labels, copa.LOGIT_SCALE)
  return (method.predict(task, after).accuracy,
          fit.losses[-1] if method.steps else jnp.nan, loss)


def _fit(method: Method, weights: Any, task: Task) -> Fit:
  """Adapts, and measures the queries before each step and after the last."""

  def look(representations, params):
    del params
    loss = symmetric_cross_entropy(
        representations.query, representations.prototypes, task.query_labels, copa.LOGIT_SCALE)
    prediction: Prediction = method.predict(task, representations)
    return loss, prediction.accuracy

  run = jax.jit(lambda w, t: method.fit(w, t, jax.random.key(0), look))
  return jax.device_get(run(weights, task))


def _trajectory(recorded: Recording, fit: Fit) -> list[Check]:
  losses, accuracies = fit.trace
  return [
      _check("train_losses", fit.losses, recorded["train_losses"]),
      _check("val_losses", losses, recorded["val_losses"]),
      _check("val_accs", accuracies, recorded["val_accs"], SINGLE)]


def random_weights(seed: int) -> dict[str, np.ndarray]:
  """The backbone's state dict, drawn in sorted order as the recording did."""
  shapes = parameter_shapes(ResNet18())
  stored = {slot.name: slot.arrange(shapes[slot.path]).stored
            for slot in slots(TABLE, DIALECT, shapes)}
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
      jnp.asarray(support), jnp.asarray(recorded["support_labels"]), jnp.asarray(query),
      jnp.asarray(recorded["query_labels"]))


def _ways(recorded: Recording) -> int:
  return int(recorded["support_labels"].max()) + 1


def _text(recorded: Recording, name: str) -> str:
  return str(recorded[name]) if name in recorded else ""


def _check(name: str, ours, theirs: np.ndarray, tolerance: float = TOLERANCE) -> Check:
  """Largest absolute difference, relative to the largest recorded number where that is over 1."""
  ours, theirs = np.asarray(ours), np.asarray(theirs)
  if ours.shape != theirs.shape:
    return Check(name, np.inf, tolerance)
  scale = max(1.0, float(np.abs(theirs).max()))
  return Check(name, float(np.abs(ours - theirs).max()) / scale, tolerance)
