"""All classes of a data set at once: from a config to one task a seed, and its whole test split.

Legend: `C` classes, `K` shots, `M = C·K` support images, `E` seeds at once, `B` images of a batch.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np

from mdtrap_jax import config as configs
from mdtrap_jax.data import images
from mdtrap_jax.data.labeled import in_order
from mdtrap_jax.data.parts import Parts, draw
from mdtrap_jax.data.prompts import Prompts
from mdtrap_jax.data.source import Source
from mdtrap_jax.data.task import Task, TaskId, all_tasks
from mdtrap_jax.experiments import examination, finetune
from mdtrap_jax.experiments.examination import (
  Examination,
  about_task,
  batches,
  examine,
  make_experiment,
  open_parts,
  task_labels,
  with_prompts,
)
from mdtrap_jax.methods.all_way import AllWay
from mdtrap_jax.methods.tuning.choices import make_parameterization
from mdtrap_jax.models.vlm import VisionLanguageModel
from mdtrap_jax.objectives import chain
from mdtrap_jax.objectives.terms import TERMS
from mdtrap_jax.run.experiment import Experiment, Group, Ready
from mdtrap_jax.run.programs import over_tasks


def experiment(config: ml_collections.ConfigDict) -> Experiment:
  """One task for each seed.

  Raises:
    ValueError, OSError: input that cannot be right.
  """
  config = finetune.settled(config)
  check(config)
  # An objective that cannot be is refused now, however many steps there will be.
  some = configs.replace(config, {"adapt.steps": config.adapt.steps or configs.LEAST_STEPS})
  make_method(some, None, 1.0, images=2, width=1)
  parts, exams = open_parts(config)
  config = with_steps(config, config.data.shots * len(parts.train.class_names))
  group = _make_group(config, parts, exams)
  return make_experiment(config, parts, exams, group, finetune.placing(config))


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses what means nothing here, before anything is opened.

  Raises:
    ValueError: names the field, its value and the remedy.
  """
  if config.variants:
    raise ValueError("config.variants: runs on all classes have none; start one run for each.")
  if config.data.cache_dir:
    raise ValueError(
      f"--config.data.cache_dir={config.data.cache_dir}: test images are read once; leave it empty."
    )
  examination.check(config)


def with_steps(config: ml_collections.ConfigDict, images: int) -> ml_collections.ConfigDict:
  """With as many steps as `adapt.epochs` of `M = images` images are, and the warm-up's likewise.

  Raises:
    ValueError: they cannot be right.
  """
  adapt, warmup = config.adapt, config.optimizer.warmup_steps
  if adapt.steps is not None:
    return config
  rows = images * (adapt.views if adapt.augmentation == "views" else 1)
  per_epoch = rows // min(adapt.batch_size or rows, rows)  # what is left over is left out
  steps = adapt.epochs * per_epoch
  if steps > configs.MOST:
    raise configs.complaint("adapt.epochs", adapt.epochs, f"these are {steps} steps; give fewer")
  if steps < configs.LEAST_STEPS:
    raise configs.complaint(
      "adapt.epochs",
      adapt.epochs,
      f"of {rows} images in batches of {min(adapt.batch_size or rows, rows)} these are {steps} "
      f"steps; give as many as come to {configs.LEAST_STEPS} steps or more",
    )
  return configs.replace(
    config, {"adapt.steps": steps, "optimizer.warmup_steps": warmup * per_epoch}
  )


def make_method(
  config: ml_collections.ConfigDict,
  model: VisionLanguageModel | None,
  logit_scale: float,
  *,
  images: int,
  width: int,
) -> AllWay:
  """How `config` adapts `M = images` images of a model with embeddings of `D = width`.

  Raises:
    ValueError: settings that do not fit each other or the model.
  """
  parameterization = make_parameterization(config)
  if config.adapt.diagnose:
    raise ValueError("config.adapt.diagnose=True: only few-shot episodes are diagnosed; leave it.")
  if model:
    parameterization.check(model)
  return _make_method(
    configs.as_text(adapt=config.adapt, optimizer=config.optimizer, objective=config.objective),
    tuple(TERMS.items()),
    parameterization,
    model,
    logit_scale,
    images,
    width,
    config.model.batch_size,
    config.model.dtype == "float16",
    jnp.result_type(float),
  )


@functools.lru_cache(maxsize=8)  # runs that adapt alike share what is compiled for a method
def _make_method(
  settings,
  terms,
  parameterization,
  model,
  logit_scale,
  images,
  width,
  evaluated,
  loss_scaling,
  dtype,
) -> AllWay:
  del terms, dtype  # which may be registered anew; of arrays that a method may hold
  config = ml_collections.ConfigDict(json.loads(settings))
  adapt, objective = config.adapt, config.objective.to_dict()
  copies = adapt.views if adapt.augmentation == "views" else 1
  batch_size = min(adapt.batch_size or copies * images, copies * images)
  tx = chain.make_objective(
    objective,
    chain.make_optimizer(steps=adapt.steps, **config.optimizer.to_dict()),
    steps=adapt.steps,
    logit_scale=logit_scale,
    num_views=batch_size,
    num_clean=images,
    batch_size=batch_size if adapt.batch_size else None,
    width=width,
    loss_scaling=loss_scaling,
  )
  return AllWay(
    model=model,
    parameterization=parameterization,
    tx=tx,
    steps=adapt.steps,
    phases=chain.make_phases(objective, adapt.steps),
    views=adapt.views,
    batch_size=batch_size,
    chunk=adapt.chunk or None,
    fifths=tuple(adapt.evaluate_at),
    augmentation=adapt.augmentation,
    evaluated=evaluated,
    patches=chain.needs_patches(objective),
  )


def _make_group(config, parts: Parts, exams: Mapping[str, Source]) -> Group:
  """The tasks of all seeds, and the examinations of what comes out."""
  seeds = range(config.seed, config.seed + config.seeds)
  tasks = all_tasks(("",), seeds, config.episodes)

  def prepare() -> Ready:
    model, params = finetune.load_model(config)
    support, validation = draw(parts, config.data.shots, tasks[0].seed, tasks[0].task)
    scale = float(model.logit_scale(params))
    method = make_method(config, model, scale, images=support.size, width=model.image.embed_dim)
    encode = lambda source: finetune.encode_prompts(
      model,
      params,
      source.class_names,
      config.data.template,
      config.model.batch_size,
      method.parameterization,
    )
    prompts, held = with_prompts(parts, exams, encode)
    read = functools.partial(_read, config.data, model.image.image_size)
    load = functools.partial(_load, config, parts, prompts, read)
    return Ready(
      method=method,
      params=params,
      weights={},
      task=finetune.task_shape(
        model,
        support=support.size,
        query=validation.size,
        ways=len(prompts.text),
        token_ids=prompts.token_ids.shape[1:],
      ),
      batches=functools.partial(batches, load),
      measure=functools.partial(_measure, method, held, read, config.model.batch_size),
    )

  return Group("all_way", [""], tasks, prepare)


def _read(data: Any, size: int, source: Source, index: int) -> np.ndarray:
  """One image, uint8 `[S, S, 3]`."""
  return images.resize(source.image(index), size, data.resize, data.interpolation)


def _load(config, parts: Parts, prompts: Prompts, read: Callable[..., np.ndarray], task: TaskId):
  """One task on the host, its images decoded by several threads."""
  support, validation = draw(parts, config.data.shots, task.seed, task.task)
  pixels = lambda source, rows: np.stack(list(in_order(functools.partial(read, source), rows.flat)))
  arrays = Task(
    support=pixels(parts.train, support),
    support_labels=task_labels(support),
    query=pixels(parts.val, validation),
    query_labels=task_labels(validation),
    seed=np.int32(task.seed),
    number=np.int32(task.task),
    token_ids=prompts.token_ids,
    text=prompts.text,
  )
  return arrays, about_task(parts, support, validation)


def _measure(
  method: AllWay,
  exams: Sequence[Examination],
  read: Callable[..., np.ndarray],
  batch_size: int,
  mesh: Any,
  params: Any,
  state: Any,
  tasks: Sequence[TaskId],
  tick: Callable[[str], None],
) -> list[dict[str, Any]]:
  """What lines say of the whole test split; see `examination.examine`."""
  texts, trained = _programs(method, mesh)

  def classify(exam):
    text = texts(params, state.params, exam.prompts.token_ids, exam.prompts.text)
    return lambda pixels: trained(params, state.params, text, pixels, exam.prompts.text)

  decode = lambda exam, rows: in_order(functools.partial(read, exam.source), rows)
  return examine(exams, decode, classify, tasks=len(tasks), batch_size=batch_size, tick=tick)


@functools.lru_cache(maxsize=8)
def _programs(method: AllWay, mesh: Any) -> tuple[Any, Any]:
  """Compiled for a batch of tasks: their classes' texts `[E, C, D]`, and predictions `[E, B]`."""

  def texts(params, trained, token_ids, text):
    tuned = "text" in method.parameterization.encoders
    return method.texts(params, token_ids, trained) if tuned else text

  def predict(params, trained, text, pixels, pretrained_text):
    adapted = method.pixel_cosines(params, pixels, trained, text)
    zero_shot = method.pixel_cosines(params, pixels, None, pretrained_text)
    return jnp.argmax(adapted, -1), jnp.argmax(zero_shot, -1)

  return (
    over_tasks(texts, mesh, (False, True, False, False)),
    over_tasks(predict, mesh, (False, True, True, False, False)),
  )
