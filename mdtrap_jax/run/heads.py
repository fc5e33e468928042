"""From a config of heads to one table over domains and seeds; resumes like `runner.run`."""

from __future__ import annotations

import itertools
import platform
import time
import types
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging

from mdtrap_jax.data import tasks as task_data
from mdtrap_jax.data.domains import domain_name, open_domain
from mdtrap_jax.data.features import FeatureSet, cached_features
from mdtrap_jax.data.images import RESIZE_MODES
from mdtrap_jax.data.sources import Source
from mdtrap_jax.keys import episode_key
from mdtrap_jax.methods import gap, ncc
from mdtrap_jax.methods.extractors import (
  Backbone,
  check_backbone,
  check_kind,
  load_backbone,
  make_extractor,
)
from mdtrap_jax.methods.head import Method, Representations
from mdtrap_jax.methods.heads import METHODS, make_method, seen_domains
from mdtrap_jax.report.diagnosis import diagnose
from mdtrap_jax.report.heads import summarize
from mdtrap_jax.run import parallel, results
from mdtrap_jax.run.progress import Progress

CPU_BYTES = 8 * 2**20  # of heads, gradients and moments: more spills out of a core's cache
NO_TERMS = types.SimpleNamespace(terms={})  # of a batch, for the progress bar
PACKAGES = ("jax", "jaxlib", "flax", "optax")


class Slot(NamedTuple):
  """Identity of one task of a run; its number in the files does not depend on `episodes`."""

  episode: int
  domain: str
  seed: int
  task: int


class Outcome(NamedTuple):
  """What is kept of an adapted task."""

  accuracy: jax.Array  # [] in [0, 1]
  ncc_accuracy: jax.Array  # [] in [0, 1], before adaptation
  loss: jax.Array  # [], in the last step; NaN without steps
  gap_before: jax.Array  # []
  gap_after: jax.Array  # []
  finite: jax.Array  # [] bool


def run(config: ml_collections.ConfigDict, workdir: str | Path) -> dict[str, Any]:
  """Adapts every task of `config` that `workdir` does not hold yet.

  Args:
    config: from `configs/copa.py`.
    workdir: where the run's files are; made, or resumed.

  Returns:
    What `summary.json` says.

  Raises:
    ValueError, OSError: input that cannot be right.
  """
  config = config.copy_and_resolve_references()
  check(config)
  rule = make_rule(config.tasks)
  domains = {domain_name(entry): open_domain(config, entry) for entry in config.domains}
  for name, data in domains.items():
    task_data.check_rule(name, data.labels, data.class_names, rule)
    if isinstance(data, FeatureSet):
      check_kind(data, METHODS[config.method].needs)
  identity = {
    name: {"class_names": list(data.class_names), "images": len(data.labels)}
    for name, data in domains.items()
  }
  with results.WorkDirectory(workdir, config, identity) as directory:
    slots = [slot for slot in all_slots(config) if slot.episode not in directory.finished]
    seconds, diagnoses, backbone = 0.0, {}, None
    if (slots or config.diagnosis.tasks) and not config.features.path:
      backbone = load_backbone(config.features, config.seeds[0])
    with Progress({"": directory}, len(slots), 1) as progress:
      for name, data in domains.items():
        todo = [slot for slot in slots if slot.domain == name]
        if not todo and not config.diagnosis.tasks:
          continue
        found = _features(config, name, data, backbone)
        # Once more, as images that cannot be read may have been left out.
        task_data.check_rule(name, found.labels, found.class_names, rule)
        started = time.monotonic()
        _run_domain(config, found, rule, backbone, directory, todo, progress)
        seconds += time.monotonic() - started
        if config.diagnosis.tasks:
          diagnoses[name] = _diagnose(config, found, rule, directory)
    return _finish(config, directory, len(slots), seconds, diagnoses)


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses a config that cannot be right.

  Raises:
    ValueError: names the field, its value and the remedy.
  """
  if config.method not in METHODS:
    raise ValueError(f"config.method={config.method!r}: choose one of {sorted(METHODS)}.")
  if not config.domains:
    raise ValueError("config.domains is empty: name at least one data set.")
  for field in ("domains", "seeds"):
    values = [domain_name(v) if field == "domains" else v for v in config[field]]
    if len(set(values)) < len(values) or not values:
      raise ValueError(f"config.{field}={tuple(config[field])}: give at least one, each once.")
  if not config.episodes > 0:
    raise ValueError(f"config.episodes={config.episodes}: must be greater than 0.")
  _seen(config)  # its names too
  needs = METHODS[config.method].needs
  if needs == "image" and config.features.path:
    raise ValueError(
      f"config.method={config.method!r} tunes adapters inside the ResNet-18 and "
      "cannot run on stored features: leave config.features.path empty."
    )
  for field, choices in (("unreadable", ("error", "skip")), ("resize", RESIZE_MODES)):
    if config.data[field] not in choices:
      raise ValueError(
        f"config.data.{field}={config.data[field]!r}: choose one of {list(choices)}."
      )
  if not config.features.path:
    check_backbone(config.features)
  if needs != "pooled" and config.diagnosis.tasks:
    raise ValueError(
      "config.diagnosis.tasks: the gap is studied on pooled features; use the "
      "methods ncc, url or copa for it."
    )


def make_rule(config: Any) -> task_data.Rule | task_data.Fixed:
  """The task sizes of `config.tasks`.

  Raises:
    ValueError: no such protocol.
  """
  if config.protocol == "fixed":
    return task_data.Fixed(config.ways, config.shots, config.queries)
  if config.protocol not in task_data.RULES:
    raise ValueError(
      f"config.tasks.protocol={config.protocol!r}: choose one of {['fixed', *task_data.RULES]}."
    )
  return task_data.RULES[config.protocol]


def all_slots(config: Any) -> Iterator[Slot]:
  """Every task of a run, domain by domain.

  The tasks' numbers interleave domains and seeds, so that a run may be resumed with more tasks.
  """
  pairs = list(itertools.product(map(domain_name, config.domains), config.seeds))
  for column, (domain, seed) in enumerate(pairs):
    for task in range(config.episodes):
      yield Slot(task * len(pairs) + column, domain, seed, task)


def _features(
  config: Any, name: str, data: FeatureSet | Source, backbone: Backbone | None
) -> FeatureSet:
  """The features (or images) of a domain: as read, from the cache, or computed."""
  needs = METHODS[config.method].needs
  if isinstance(data, FeatureSet):
    return data
  extractor = make_extractor(config.features.model, backbone, needs)
  return cached_features(
    name,
    data,
    extractor,
    config.data.cache_dir or None,
    batch_size=config.features.batch_size,
    threads=config.data.threads,
    resize=config.data.resize,
    unreadable=config.data.unreadable,
  )


def adapt_and_evaluate(
  method: Method, backbone: Any, task: ncc.Task, seed: jax.Array, number: jax.Array
) -> Outcome:
  """One task from start to end; a pure function, to be batched by `over_episodes`."""
  before = _baseline(method, backbone, task)
  fit = method.fit(backbone, task, episode_key(seed, number))
  after = method.represent(backbone, fit.params, task)
  predicted = method.predict(task, after)
  real = jnp.isfinite(after.query).all(-1) | (task.query_labels < 0)
  return Outcome(
    accuracy=predicted.accuracy,
    ncc_accuracy=method.predict(task, before).accuracy,
    loss=fit.losses[-1] if method.steps else jnp.nan,
    gap_before=gap.gap(before, task.support_labels),
    gap_after=gap.gap(after, task.support_labels),
    finite=real.all() & jnp.isfinite(after.prototypes).all() & jnp.isfinite(fit.losses).all(),
  )


def _baseline(method: Method, backbone: Any, task: ncc.Task) -> Representations:
  """NCC on the frozen, pooled features."""
  rows = [task.support, task.query]
  if method.head.features:
    # The adapters at zero: the backbone as it was published.
    shape = jax.ShapeDtypeStruct(task.support.shape[1:], task.support.dtype)
    params = jax.tree.map(jnp.zeros_like, method.head.init(jax.random.key(0), shape))
    rows = [method.head.features(params, backbone, images) for images in rows]
  support, query = (r.mean((1, 2)) if r.ndim == 4 else r for r in rows)
  means = ncc.prototypes(support, task.support_labels, method.ways)
  return Representations(support, query, means)


def _run_domain(config, found: FeatureSet, rule, backbone, directory, todo, progress) -> None:
  """Adapts the tasks `todo` of one domain in one compiled program."""
  if not todo:
    return
  sample = lambda seed, number: task_data.sample_task(
    found.labels, seed=seed, number=number, rule=rule
  )
  # All tasks of the domain, done or not: a resumed run is padded to the same shape.
  drawn = {(seed, n): sample(seed, n) for seed in config.seeds for n in range(config.episodes)}
  sizes = task_data.common_sizes(list(drawn.values()))
  method = make_method(
    config.method,
    ways=sizes.ways,
    domain=found.name,
    seen=found.name in _seen(config),
    one_shot=sizes.support == sizes.ways == 5,
    model=backbone.model if METHODS[config.method].needs == "image" else None,
    **config.head.to_dict(),
  )
  params = None if not method.head.features else backbone.params
  mesh, each = place(method, params, found, sizes, len(drawn), config.episodes_per_device)
  params = parallel.replicate(params, mesh)
  program = make_program(method, mesh)
  size = mesh.size * each
  logging.info("%s: %d tasks at once, padded to %s", found.name, size, sizes)
  for start in range(0, len(todo), size):
    slots = todo[start : start + size]
    rows = [slots[min(i, len(slots) - 1)] for i in range(size)]  # the last one fills the batch
    batch = _floats(
      task_data.gather(found.features, [drawn[slot.seed, slot.task] for slot in rows], sizes)
    )
    identity = (
      np.array([slot.seed for slot in rows], np.int32),
      np.array([slot.task for slot in rows], np.int32),
    )
    outcome = jax.device_get(program(params, *parallel.spread((batch, *identity), mesh)))
    lines = [
      _line(
        slot,
        drawn[slot.seed, slot.task],
        found,
        jax.tree.map(lambda leaf: leaf[i], outcome),  # noqa: B023
        config.method,
      )
      for i, slot in enumerate(slots)
    ]
    directory.append(lines)
    progress.stepped(len(slots), 1)
    progress.finished(NO_TERMS, len(slots))


def make_program(method: Method, mesh: jax.sharding.Mesh):
  """`adapt_and_evaluate` for a batch: `(params, tasks, seeds, numbers) -> Outcome`."""
  return parallel.over_episodes(
    lambda params, task, seed, number: adapt_and_evaluate(method, params, task, seed, number),
    mesh,
    (False, True, True, True),
  )


def place(
  method: Method,
  params: Any,
  found: FeatureSet,
  sizes: task_data.Sizes,
  most: int,
  each: int = 0,
) -> parallel.Placement:
  """How many devices adapt how many tasks at once.

  On a CPU core as many as keep the heads, their gradients and moments in its caches, on as many
  cores as the memory they share allows; elsewhere what fits into a device's memory, by the
  compiler's analysis of one and of two tasks.

  Args:
    method: how they are adapted.
    params: of the backbone, or `None`.
    found: the features or images.
    sizes: that every task is padded to.
    most: the number of tasks.
    each: tasks on each device, where the user says it.

  Raises:
    MemoryError: not even one task fits.
  """
  devices = jax.local_devices()[:most]
  most = -(-most // len(devices))
  if each:
    return parallel.Placement(parallel.episode_mesh(devices), min(each, most))
  row, dtype = found.features.shape[1:], _float_dtype(found.features)
  shapes = ncc.Task(
    jax.ShapeDtypeStruct((sizes.support, *row), dtype),
    jax.ShapeDtypeStruct((sizes.support,), jnp.int32),
    jax.ShapeDtypeStruct((sizes.query, *row), dtype),
    jax.ShapeDtypeStruct((sizes.query,), jnp.int32),
  )

  def needed(count: int) -> int:
    batch = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype),
      (shapes, *[jax.ShapeDtypeStruct((), jnp.int32)] * 2),
    )
    program = make_program(method, parallel.episode_mesh(devices[:1]))
    memory = program.lower(params, *batch).compile().memory_analysis()
    return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes

  limit, cores = parallel.memory_limit(devices[0]), devices[0].platform == "cpu"
  if cores:
    head = jax.eval_shape(method.head.init, jax.random.key(0), shapes.support.update(shape=row))
    own = parallel.size_in_bytes((shapes.support, shapes.query)) + 4 * parallel.size_in_bytes(head)
    each = max(1, min(most, CPU_BYTES // own))
    fits = len(devices) * each * parallel.CPU_COPIES * own <= limit
    if fits and not method.head.features:
      return parallel.Placement(parallel.episode_mesh(devices), each)
  first = needed(1)
  if first > limit:
    raise MemoryError(
      f"one task needs {first / 2**30:.2f} GiB and {devices[0]} may use "
      f"{limit / 2**30:.2f} GiB: use smaller tasks."
    )
  if cores:
    return parallel.Placement(parallel.episode_mesh(devices[: limit // first]), 1)
  each = 1 + int((limit - first) // max(needed(2) - first, 1))
  return parallel.Placement(parallel.episode_mesh(devices), min(each, most))


def _float_dtype(features: np.ndarray):
  """Images stay bytes; features become what heads compute in."""
  return features.dtype if features.dtype == np.uint8 else jnp.zeros((), float).dtype


def _floats(task: ncc.Task) -> ncc.Task:
  cast = lambda rows: rows.astype(_float_dtype(rows))
  return task._replace(support=cast(task.support), query=cast(task.query))


def _line(slot: Slot, task, found: FeatureSet, outcome: Outcome, method: str) -> dict[str, Any]:
  """What `episodes.jsonl` says of a task."""
  ok = bool(outcome.finite)
  if not ok:
    logging.warning(
      "%s, seed %d, task %d became non-finite: counted as failed.",
      slot.domain,
      slot.seed,
      slot.task,
    )
  number = lambda value: round(float(value), 6) if np.isfinite(value) else None
  accuracy = number(outcome.accuracy) if ok else None
  return {
    **slot._asdict(),
    "status": "ok" if ok else "non-finite",
    "accuracy": accuracy,
    "accuracy_at": {},
    "zero_shot_accuracy": number(outcome.ncc_accuracy),
    "gap_before": number(outcome.gap_before),
    "gap_after": number(outcome.gap_after),
    "losses": {method: number(outcome.loss)},
    "class_names": [found.class_names[c] for c in task.classes],
    "support": _by_class(task.support, task.support_labels),
    "query": _by_class(task.query, task.query_labels),
  }


def _by_class(indices: np.ndarray, labels: np.ndarray) -> list[list[int]]:
  return [indices[labels == label].tolist() for label in np.unique(labels)]


def _seen(config) -> frozenset[str]:
  return seen_domains(config.seen, {domain_name(entry): entry for entry in config.domains})


def _diagnose(config, found: FeatureSet, rule, directory) -> dict[str, Any]:
  """Diagnosis of one domain, with its figure."""
  drawn = [
    task_data.sample_task(found.labels, seed=config.seeds[0], number=n, rule=rule)
    for n in range(config.diagnosis.tasks)
  ]
  first, last, count = config.diagnosis.distances
  seen = found.name in _seen(config)
  diagnosis = diagnose(found, drawn, np.linspace(first, last, int(count)), seen)
  file = f"gap_{found.name.replace('/', '-')}.png"
  gap.draw(directory.path / "figures" / file, found.name, diagnosis)
  return diagnosis


def _finish(config, directory, ran: int, seconds: float, diagnoses) -> dict[str, Any]:
  """Writes `summary.json` over all tasks of the config."""
  wanted = {slot.episode for slot in all_slots(config)}
  lines = [line for n, line in sorted(directory.finished.items()) if n in wanted]
  summary = summarize(lines, config.method) | {
    "episodes_per_second": ran / seconds if seconds and ran else None,
    "peak_memory_bytes": parallel.peak_memory(),
    "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
    "platform": jax.default_backend(),
    "python": platform.python_version(),
    "versions": {name: version(name) for name in PACKAGES},
  }
  if diagnoses:
    summary["diagnosis"] = diagnoses
  directory.write_json("summary.json", summary)
  return summary
