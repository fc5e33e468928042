"""Few-shot heads on frozen features, or on images with adapters: one group of tasks a domain."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mdtrap_jax import models
from mdtrap_jax.data import tasks as task_data
from mdtrap_jax.data.domains import domain_name, open_domain
from mdtrap_jax.data.feature_set import FeatureSet, feature_content
from mdtrap_jax.data.features import cached_features
from mdtrap_jax.data.loader import task_batches
from mdtrap_jax.data.names import nfc
from mdtrap_jax.data.prompts import Prompts
from mdtrap_jax.data.source import Source
from mdtrap_jax.data.task import Loaded, TaskId, all_tasks
from mdtrap_jax.experiments.finetune import encode_prompts
from mdtrap_jax.methods.extractors import (
  Backbone,
  check_backbone,
  check_kind,
  load_backbone,
  make_extractor,
  weights_of,
)
from mdtrap_jax.methods.heads import METHODS, make_method, seen_domains
from mdtrap_jax.report.diagnosis import diagnose
from mdtrap_jax.run.experiment import Experiment, Group, Ready

Found = Callable[[], FeatureSet]  # the features of a domain, computed when first asked for


def experiment(config: ml_collections.ConfigDict) -> tuple[Experiment, Mapping[str, Found]]:
  """One group for each of `config.domains`, and what gives their features.

  Args:
    config: resolved, of `configs/copa.py`.

  Raises:
    ValueError, OSError: input that cannot be right.
  """
  check(config)
  rule = make_rule(config.data)
  domains = {domain_name(entry): open_domain(config, entry) for entry in config.domains}
  for name, data in domains.items():
    hierarchy = getattr(data, "hierarchy", None)
    task_data.check_rule(name, data.labels, data.class_names, rule, hierarchy)
    if isinstance(data, FeatureSet):
      check_kind(data, METHODS[config.method].needs)
  contents = {
    name: {"class_names": list(data.class_names), "content": _content(data)}
    for name, data in domains.items()
  }
  if config.data.features:
    _check_distinct(config, contents)
  backbone = functools.cache(functools.partial(load_backbone, config.model, config.seed))
  found = {
    name: functools.cache(functools.partial(_features, config, name, data, backbone))
    for name, data in domains.items()
  }
  seeds = range(config.seed, config.seed + config.seeds)
  tasks = all_tasks(list(domains), seeds, config.episodes)
  groups = [
    Group(
      name=name,
      runs=("",),
      tasks=own,
      prepare=functools.partial(_prepare, config, found[name], backbone, rule, own, domains[name]),
    )
    for name in domains
    if (own := [task for task in tasks if task.domain == name])
  ]
  placing = {"each": config.episodes_per_device}
  weights = None if config.data.features else weights_of(config.model)
  source = {"weights": weights, "domains": contents}
  about = [
    f"{name}: {len(data.class_names)} classes, {len(data.labels)} images"
    for name, data in domains.items()
  ]
  if METHODS[config.method].transductive:
    about.append(
      f"{config.method} is transductive: it classifies all queries of a task together. Compare it "
      "with methods that do."
    )
  return Experiment({"": config}, {"": source}, groups, placing, "\n".join(about)), found


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses a config whose fields do not fit each other.

  Raises:
    ValueError: names the field, its value and the remedy.
  """
  names = [domain_name(entry) for entry in config.domains]
  if not names or len({_figure(name).casefold() for name in names}) < len(names):
    raise ValueError(f"config.domains={tuple(config.domains)}: give at least one, each once.")
  folders = sum("=" in entry for entry in config.domains)
  if config.data.class_names and (folders != 1 or config.data.features):
    raise ValueError(
      f"config.data.class_names={tuple(config.data.class_names)}: these name the classes of one "
      f"folder of images, and config.domains={tuple(config.domains)} has {folders}: give one "
      "NAME=FOLDER alone, or no class names."
    )
  _seen(config)  # its names too
  definition = METHODS[config.method]
  needs = definition.needs
  if definition.text and (config.data.features or config.model.name == "resnet18"):
    without = "stored features have" if config.data.features else "the ResNet-18 has"
    raise ValueError(
      f"config.method={config.method!r} compares images with the texts of their classes, and "
      f"{without} none: leave config.data.features empty and set --config.model.name= to a "
      "vision-language model (miniature, openai/clip-vit-base-patch16, …)."
    )
  if needs == "image" and config.data.features:
    raise ValueError(
      f"config.method={config.method!r} tunes adapters inside the ResNet-18 and cannot run on "
      "stored features: leave config.data.features empty."
    )
  if needs != "image":
    make_method(config.method, ways=2, **config.head.to_dict())
  if not config.data.features:
    check_backbone(config.model)
  if needs != "pooled" and config.diagnosis.tasks:
    raise ValueError(
      "config.diagnosis.tasks: the gap is studied on pooled features; use the methods ncc, url "
      "or copa for it."
    )


def _check_distinct(config, contents: Mapping[str, Any]) -> None:
  """Refuses one set of features that stands in the table under the names of several domains."""
  names: dict[str, str] = {}
  for name, content in contents.items():
    if (first := names.setdefault(str(content), name)) != name:
      raise ValueError(
        f"config.domains={tuple(config.domains)}: {config.data.features} holds the same features "
        f"for {first} and {name}. Name the one domain that they are of, as "
        "--config.domains=\"('mine',)\"."
      )


def _seen(config) -> frozenset[str]:
  """The domains that the backbone was trained on."""
  return seen_domains(config.seen, {domain_name(entry): entry for entry in config.domains})


def make_rule(data: Any) -> task_data.Rule | task_data.Fixed:
  """The task sizes of `config.data`.

  Raises:
    ValueError: no such protocol.
  """
  if data.protocol == "fixed":
    return task_data.Fixed(data.ways, data.shots, data.queries)
  if data.protocol not in task_data.RULES:
    raise ValueError(
      f"config.data.protocol={data.protocol!r}: choose one of {['fixed', *task_data.RULES]}."
    )
  return task_data.RULES[data.protocol]


def _content(data: FeatureSet | Source) -> dict[str, Any]:
  return feature_content(data) if isinstance(data, FeatureSet) else data.content()


def _features(config, name: str, data: FeatureSet | Source, backbone) -> FeatureSet:
  """The features (or images) of a domain: as read, from the cache, or computed."""
  if isinstance(data, FeatureSet):
    return data
  extractor = make_extractor(config.model.name, backbone(), METHODS[config.method].needs)
  resize, interpolation = config.data.resize, config.data.interpolation
  if resize == "family":  # of which the ResNet-18 has none
    family = models.FAMILIES.get(getattr(backbone().model, "family", None))
    resize, interpolation = (
      (family.resize, family.interpolation) if family else ("squash", "bilinear")
    )
  return cached_features(
    name,
    data,
    extractor,
    config.data.cache_dir or None,
    batch_size=config.model.batch_size,
    threads=config.data.threads,
    resize=resize,
    interpolation=interpolation,
    unreadable=config.data.unreadable,
  )


def _prepare(
  config,
  features: Found,
  backbone: Callable[[], Backbone],
  rule,
  tasks: list[TaskId],
  data: FeatureSet | Source,
) -> Ready:
  """Draws all tasks of a domain, done or not: a resumed run is padded to the same shape."""
  found = features()
  # Once more, as images that cannot be read may have been left out.
  task_data.check_rule(found.name, found.labels, found.class_names, rule, found.hierarchy)
  drawn = {
    task: task_data.sample_task(
      found.labels, seed=task.seed, number=task.task, rule=rule, hierarchy=found.hierarchy
    )
    for task in tasks
  }
  sizes = task_data.common_sizes(list(drawn.values()))
  definition = METHODS[config.method]
  adapters = definition.needs == "image"
  model, weights = backbone() if adapters or definition.text else (None, None)
  text = None
  if definition.text:
    text = _prompts(config, model, weights, found.class_names).text
  method = make_method(
    config.method,
    ways=sizes.ways,
    domain=found.name,
    seen=found.name in _seen(config),
    one_shot=sizes.support == sizes.ways == 5,
    shots=round(np.mean([len(task.support) / len(task.classes) for task in drawn.values()])),
    model=model if adapters else None,
    logit_scale=float(model.logit_scale(weights)) if definition.text else None,
    **config.head.to_dict(),
  )

  def load(task: TaskId) -> Loaded:
    indices = drawn[task]
    arrays = jax.tree.map(lambda leaf: leaf[0], task_data.gather(found.features, [indices], sizes))
    arrays = arrays._replace(
      support=_floats(arrays.support),
      query=_floats(arrays.query),
      seed=np.int32(task.seed),
      number=np.int32(task.task),
      text=None if text is None else _rows_of(text, indices.classes, sizes.ways),
    )
    about = {
      "class_names": [found.class_names[label] for label in indices.classes],
      "support": _by_class(indices.support, indices.support_labels),
      "query": _by_class(indices.query, indices.query_labels),
    }
    return Loaded(arrays, about)

  return Ready(
    method=method,
    params=weights if adapters or definition.weights else None,
    weights={},
    task=jax.tree.map(_shape, load(tasks[0]).task),
    batches=functools.partial(task_batches, load, threads=0),
    scale=method.logit_scale,
    describe=getattr(data, "describe", "row {}".format),
  )


def _prompts(config, model, weights, class_names) -> Prompts:
  """The texts of a domain's classes, by the config's template or the model family's own."""
  template = config.data.template or models.FAMILIES[model.family].prompt
  return encode_prompts(model, weights, class_names, template, config.model.batch_size)


def _rows_of(text: np.ndarray, classes: np.ndarray, ways: int) -> np.ndarray:
  """The texts of a task's classes, `[C, D]`, zeros for those that it lacks."""
  missing = ways - len(classes)
  return np.pad(_floats(text[classes]), ((0, missing), (0, 0)))


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype)


def _floats(rows: np.ndarray) -> np.ndarray:
  """Images stay bytes; features become what heads compute in."""
  return rows if rows.dtype == np.uint8 else rows.astype(jnp.zeros((), float).dtype)


def _by_class(indices: np.ndarray, labels: np.ndarray) -> list[list[int]]:
  return [indices[labels == label].tolist() for label in np.unique(labels)]


def _figure(domain: str) -> str:
  """The file of a domain's figure."""
  return f"gap_{nfc(domain).replace('/', '-')}.png"


def diagnoses(
  config: ml_collections.ConfigDict, found: Mapping[str, Found], folder: Path
) -> dict[str, Any]:
  """The gap study of each domain, with its figures in `folder`."""
  from mdtrap_jax.report import figures  # matplotlib, which no run waits for

  rule, results = make_rule(config.data), {}
  for name, features in found.items():
    drawn = [
      task_data.sample_task(
        features().labels,
        seed=config.seed,
        number=number,
        rule=rule,
        hierarchy=features().hierarchy,
      )
      for number in range(config.diagnosis.tasks)
    ]
    first, last, count = config.diagnosis.distances
    distances = np.linspace(first, last, int(count))
    results[name] = diagnose(features(), drawn, distances, name in _seen(config))
    figures.plot_gap(folder / _figure(name), name, results[name])
  return results
