"""Fine-tuning a vision-language model on episodes of one data set: from a config to a group."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging

from mdtrap_jax import checkpoints, models
from mdtrap_jax import config as configs
from mdtrap_jax.data.cache import ImageCache
from mdtrap_jax.data.class_selection import check_feasible, describe_classes
from mdtrap_jax.data.loader import episode_loader, task_batches
from mdtrap_jax.data.prompts import Prompts, check_distinct, make_prompts
from mdtrap_jax.data.source import Source
from mdtrap_jax.data.sources import make_source
from mdtrap_jax.data.task import Task, all_tasks
from mdtrap_jax.methods.finetune import FineTuning
from mdtrap_jax.methods.text_classifier import template_mean
from mdtrap_jax.methods.tuning.choices import make_parameterization
from mdtrap_jax.methods.tuning.parameterization import Parameterization
from mdtrap_jax.models.text_batches import encode_texts
from mdtrap_jax.models.vlm import Params, VisionLanguageModel
from mdtrap_jax.objectives import chain
from mdtrap_jax.objectives.terms import TERMS
from mdtrap_jax.run.experiment import Experiment, Group, Ready

Load = Callable[[], tuple[VisionLanguageModel, Params]]


def experiment(config: ml_collections.ConfigDict) -> Experiment:
  """The one group of a config of `configs/`, or with `config.variants` one run for each.

  Raises:
    ValueError, OSError: input that cannot be right.
  """
  config = settled(config)
  runs = configs.variants(config)
  check(config, runs)
  source = load_source(config)
  load = functools.cache(functools.partial(load_model, config))
  return Experiment(
    runs=runs,
    sources=dict.fromkeys(runs, identity(config, source)),
    groups=[make_group("episodes", config, runs, source, load)],
    placing=placing(config),
    about=about(config, source),
  )


def settled(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """A complete, checked copy, with what depends on the machine and on the model's family.

  Raises:
    FileNotFoundError, ValueError: a value that cannot be right, or an unknown model.
  """
  config = configs.resolve(config)
  settings: dict[str, Any] = {}
  if config.model.dtype == "auto":  # settled here, so that a resumed run keeps it
    settings["model.dtype"] = "float32" if jax.default_backend() == "cpu" else "bfloat16"
  if config.data.template is None or config.data.resize == "family":
    family = models.FAMILIES[_family(config.model)]
    settings["data.template"] = config.data.template or family.prompt
    if config.data.resize == "family":
      settings |= {"data.resize": family.resize, "data.interpolation": family.interpolation}
  return configs.replace(config, settings)


def check(config: ml_collections.ConfigDict, runs: Mapping[str, ml_collections.ConfigDict]) -> None:
  """Refuses an objective or adapters that cannot be, before a model is loaded.

  Raises:
    ValueError: names the field, its value and the remedy.
  """
  names = [config.model.name, *(n for n, m in models.MODELS.items() if m.hub == config.model.name)]
  known = next((name for name in names if name in models.MODELS), None)
  make_method(config, shared_objective(runs), known and models.build(known), logit_scale=1.0)


def _family(model: ml_collections.ConfigDict) -> str:
  if model.random_weights:
    return models.find(model.name).family
  return checkpoints.family_of(model.name)


def about(config: ml_collections.ConfigDict, source: Source) -> str:
  """What was understood: model, classes, counts, and what the first class's prompt is."""
  prompt = make_prompts(source.class_names[:1], config.data.template)[0]
  return f"{describe_classes(source)}\nprompts such as {prompt!r} to {config.model.name}"


def placing(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """What a config says of placing tasks on devices."""
  return {
    "shards": config.weight_shards,
    "each": config.episodes_per_device,
    "fixed": bool(config.adapt.chunk),
  }


def load_source(config: ml_collections.ConfigDict) -> Source:
  """The images of `config.data`, once it is sure that every episode can be drawn."""
  data = config.data
  return check_feasible(make_source(data), data.ways, data.shots, data.queries, data.small_classes)


def identity(config: ml_collections.ConfigDict, source: Source) -> dict[str, Any]:
  """What the indices and numbers in a run's lines refer to; see `run.identity`."""
  random = config.model.random_weights  # these follow from the config
  domain = {"class_names": list(source.class_names), "content": source.content()}
  return {
    "weights": None if random else checkpoints.fingerprint(config.model.name),
    "domains": {config.data.name: domain},
  }


def load_model(config: ml_collections.ConfigDict) -> tuple[VisionLanguageModel, Params]:
  """The model of `config.model`, published or of random weights."""
  dtype = "float32" if config.model.dtype == "auto" else config.model.dtype
  if not config.model.random_weights:
    return checkpoints.load(config.model.name, dtype=jnp.dtype(dtype))
  logging.warning("%s has random weights: its accuracy means nothing.", config.model.name)
  model = models.build(config.model.name)
  params = models.random_weights(model, jax.random.key(config.seed))
  return model, jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def make_group(
  name: str,
  config: ml_collections.ConfigDict,
  runs: Mapping[str, ml_collections.ConfigDict],
  source: Source,
  load: Load,
) -> Group:
  """Episodes of one source, under the weights of all `runs` in one program.

  Args:
    name: of the group.
    config: settled; what the runs share.
    runs: configs that differ in the terms' weights alone.
    source: of the images.
    load: gives the model and its parameters, when they are needed.
  """
  seeds = range(config.seed, config.seed + config.seeds)
  tasks = all_tasks(("",), seeds, config.episodes)

  def prepare() -> Ready:
    model, params = load()
    objective = shared_objective(runs)
    method = make_method(config, objective, model, float(model.logit_scale(params)))
    prompts = encode_prompts(
      model,
      params,
      source.class_names,
      config.data.template,
      config.model.batch_size,
      method.parameterization,
    )
    data = config.data
    load_task = episode_loader(
      source,
      ways=data.ways,
      shots=data.shots,
      queries=data.queries,
      size=model.image.image_size,
      resize=data.resize,
      interpolation=data.interpolation,
      unreadable=data.unreadable,
      cache=_image_cache(config, source, model),
      prompts=prompts,
    )
    return Ready(
      method=method,
      params=params,
      weights=make_weights(runs),
      task=task_shape(
        model,
        support=data.ways * data.shots,
        query=data.ways * data.queries,
        ways=data.ways,
        token_ids=prompts.token_ids.shape[1:],
      ),
      batches=functools.partial(task_batches, load_task, threads=data.threads),
      scale=float(model.logit_scale(params)),
      describe=source.describe,
    )

  return Group(name, list(runs), tasks, prepare)


def shared_objective(runs: Mapping[str, ml_collections.ConfigDict]) -> dict[str, Any]:
  """The objective of a program that serves all runs: a term is in it if any of them uses it."""
  objectives = [run.objective.to_dict() for run in runs.values()]
  shared = {name: dict(options) for name, options in objectives[0].items()}
  for name in shared:
    shared[name]["weight"] = max((o[name]["weight"] for o in objectives), key=abs)
  return shared


def make_weights(runs: Mapping[str, ml_collections.ConfigDict]) -> dict[str, np.ndarray]:
  """`{term: [P]}`, the weights of every term that any of the runs uses."""
  objectives = [run.objective.to_dict() for run in runs.values()]
  names = {name for objective in objectives for name in chain.enabled_terms(objective)}
  return {
    name: np.array([objective[name]["weight"] for objective in objectives], np.float32)
    for name in sorted(names)
  }


def make_method(
  config: ml_collections.ConfigDict,
  objective: Mapping[str, Mapping[str, Any]],
  model: VisionLanguageModel | None,
  logit_scale: float,
  rows: int | None = None,
) -> FineTuning:
  """How `config` adapts an episode of `model`.

  Args:
    config: settled.
    objective: `config.objective`, or that of several runs.
    model: what is adapted; `None` where nothing but the settings is of interest.
    logit_scale: `s`.
    rows: support images of a task, where they are not ways · shots.

  Raises:
    ValueError: settings that do not fit each other or the model.
  """
  parameterization = make_parameterization(config)
  chain.evaluation_marks(config.adapt.steps)  # raises where there are too few
  if model:
    parameterization.check(model)
  return _make_method(
    configs.as_text(adapt=config.adapt, optimizer=config.optimizer, objective=objective),
    tuple(TERMS.items()),
    parameterization,
    model,
    logit_scale,
    config.data.ways * config.data.shots if rows is None else rows,
    config.model.dtype == "float16",
    jnp.result_type(float),
  )


@functools.lru_cache(maxsize=16)  # runs that adapt alike share what is compiled for a method
def _make_method(
  settings, terms, parameterization, model, logit_scale, num_clean, loss_scaling, dtype
) -> FineTuning:
  del terms, dtype  # which may be registered anew; of arrays that a method may hold
  config = ml_collections.ConfigDict(json.loads(settings))
  adapt, objective = config.adapt, config.objective.to_dict()
  batch_size = adapt.batch_size or None
  sizes = dict(
    steps=adapt.steps,
    logit_scale=logit_scale,
    num_views=adapt.views * num_clean,
    num_clean=num_clean,
    batch_size=batch_size,
  )
  optimizer = chain.make_optimizer(steps=adapt.steps, **config.optimizer.to_dict())
  return FineTuning(
    model=model,
    parameterization=parameterization,
    tx=chain.make_objective(objective, optimizer, loss_scaling=loss_scaling, **sizes),
    steps=adapt.steps,
    phases=chain.make_phases(objective, adapt.steps),
    views=adapt.views,
    batch_size=batch_size,
    chunk=adapt.chunk or None,
    fifths=tuple(adapt.evaluate_at),
    diagnose=adapt.diagnose,
    patches=chain.needs_patches(objective),
    terms=chain.make_terms(objective, **sizes),
  )


def encode_prompts(
  model: VisionLanguageModel,
  params: Params,
  class_names: Sequence[str],
  template: str | Sequence[str],
  batch_size: int = 256,
  parameterization: Parameterization | None = None,
) -> Prompts:
  """Tokens and base-model embeddings of every class of a source, computed once.

  Args:
    model: whose texts they are.
    params: of the model.
    class_names: `n` of them.
    template: one, or several, `P`, over which normalized embeddings are averaged.
    batch_size: prompts encoded at once.
    parameterization: what is trained, if it reads other tokens.

  Raises:
    ValueError: classes that are the same to the text encoder, or a template without `{}`.
  """
  token_ids = model.tokenize(make_prompts(class_names, template))
  check_distinct(token_ids, class_names)
  text = encode_texts(model, params, token_ids, batch_size)
  count = len(class_names)
  if len(token_ids) > count:  # several templates
    text = np.asarray(template_mean(text.reshape(count, -1, text.shape[-1])))
  if parameterization:
    token_ids = parameterization.token_ids(model, class_names, template)
    check_distinct(token_ids, class_names)
  if len(token_ids) > count:
    token_ids = token_ids.reshape(count, -1, token_ids.shape[-1])
  return Prompts(token_ids, text)


def task_shape(
  model: VisionLanguageModel, *, support: int, query: int, ways: int, token_ids: tuple[int, ...]
) -> Task:
  """The shapes of one task.

  Args:
    model: that is adapted.
    support: images.
    query: images.
    ways: `C`.
    token_ids: `(L,)` or `(P, L)`, of one class.
  """
  size = model.image.image_size
  images = lambda count: jax.ShapeDtypeStruct((count, size, size, 3), jnp.uint8)
  integers = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
  return Task(
    support=images(support),
    support_labels=integers(support),
    query=images(query),
    query_labels=integers(query),
    seed=integers(),
    number=integers(),
    token_ids=integers(ways, *token_ids),
    text=jax.ShapeDtypeStruct((ways, model.text.embed_dim), jnp.float32),
  )


def _image_cache(config, source: Source, model: VisionLanguageModel) -> ImageCache | None:
  if not config.data.cache_dir:
    return None
  return ImageCache(
    config.data.cache_dir,
    source.identity,
    len(source.labels),
    model.image.image_size,
    config.data.resize,
    config.data.interpolation,
  )
