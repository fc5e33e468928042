"""All classes of a data set on frozen features: each image is encoded once, for all seeds.

Legend: `C` classes, `K` shots, `M = C·K` support images, `E` seeds at once, `B` images of a batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mdtrap_jax.data.class_selection import ClassSubset
from mdtrap_jax.data.feature_set import FeatureSet
from mdtrap_jax.data.features import Extractor, cached_features
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
from mdtrap_jax.methods import heads, ncc
from mdtrap_jax.methods.extractors import Backbone, make_extractor
from mdtrap_jax.methods.head import HeadMethod
from mdtrap_jax.methods.heads import METHODS
from mdtrap_jax.methods.probe import ProbeMethod
from mdtrap_jax.methods.settings import Domain
from mdtrap_jax.run.experiment import Experiment, Group, Ready
from mdtrap_jax.run.programs import over_tasks

Method = HeadMethod | ProbeMethod


def experiment(config: ml_collections.ConfigDict) -> Experiment:
  """One task for each seed.

  Raises:
    ValueError, OSError: input that cannot be right.
  """
  check(config.method, config.model.name, others=config.base_to_new or bool(config.transfer))
  config = finetune.settled(config)
  examination.check(config)
  make_method(config, ways=2, images=2)  # settings that cannot be are refused now
  parts, exams = open_parts(config)
  group = _make_group(config, parts, exams)
  return make_experiment(config, parts, exams, group, {"each": config.episodes_per_device})


def check(method: str, model: str, others: bool) -> None:
  """Refuses a method that cannot classify a whole test split.

  Args:
    method: of `METHODS`.
    model: name of the encoder.
    others: whether other classes than those of the support set are tested too.

  Raises:
    ValueError: says what else can.
  """
  definition = METHODS[method]
  if model == "resnet18":
    raise ValueError(
      "--config.model.name=resnet18: on all classes methods are measured against zero-shot; take a "
      "vision-language model (miniature, openai/clip-vit-base-patch16, …)."
    )
  if definition.needs not in ("pooled", "unprojected"):
    raise ValueError(
      f"config.method={method!r} needs the ResNet-18's feature maps or images, and runs on all "
      "classes have a vision-language model's features: run it on episodes, by configs/copa.py."
    )
  if definition.transductive:
    raise ValueError(
      f"config.method={method!r} is transductive: it would see the whole test split at once, "
      "whose images it compares with one another. Run it on episodes, by configs/copa.py."
    )
  if others and not definition.other_classes:
    able = [name for name, found in METHODS.items() if found.other_classes]
    raise ValueError(
      f"config.method={method!r} knows the classes of its support set alone: leave "
      f"config.base_to_new and config.transfer, or take {' or '.join(able)}, which go by the "
      "texts of any classes, or a method of fine-tuning."
    )


def make_method(
  config: ml_collections.ConfigDict, *, ways: int, images: int, logit_scale: float | None = None
) -> Method:
  """How `config` learns `C = ways` classes of `M = images` images.

  Where its authors take minibatches, the published number of steps is one of epochs.

  Raises:
    ValueError: settings that do not fit the method.
  """
  definition, fields = METHODS[config.method], config.head.to_dict()
  size = definition.batch if fields["batch_size"] is None else fields["batch_size"]
  size = min(size or images, images)
  per_epoch = images // size
  shots = max(1, images // ways)
  if fields["steps"] is None:
    fields["steps"] = per_epoch * definition.settings(Domain(shots=shots)).steps
  return heads.make_method(
    config.method,
    ways=ways,
    shots=shots,
    logit_scale=logit_scale if definition.text else None,
    **fields | {"batch_size": size, "per_epoch": per_epoch},
  )


def _make_group(config, parts: Parts, exams: Mapping[str, Source]) -> Group:
  """The tasks of all seeds, and the examinations of what comes out."""
  tasks = all_tasks(("",), range(config.seed, config.seed + config.seeds), config.episodes)

  def prepare() -> Ready:
    model, params = finetune.load_model(config)
    extractor = make_extractor(
      config.model.name, Backbone(model, params), METHODS[config.method].needs
    )
    encode = functools.partial(_features, config, extractor)
    drawn = {task: draw(parts, config.data.shots, task.seed, task.task) for task in tasks}
    train, val = encode_drawn(parts, list(drawn.values()), encode)
    prompts_of = lambda source: finetune.encode_prompts(
      model, params, source.class_names, config.data.template, config.model.batch_size
    )
    prompts, held = with_prompts(parts, exams, prompts_of)
    load = functools.partial(_load, parts, drawn, train, val, prompts)
    ways, shots = drawn[tasks[0]][0].shape
    scale = float(model.logit_scale(params))
    method = make_method(config, ways=ways, images=ways * shots, logit_scale=scale)
    # Once for each image: seeds are tested on the same.
    tests = functools.cache(lambda name: encode(name, exams[name]).features)
    return Ready(
      method=method,
      params=params,
      weights={},
      task=jax.tree.map(_shape, load(tasks[0])[0]),
      batches=functools.partial(batches, load),
      measure=functools.partial(_measure, method, held, tests, load, config.model.batch_size),
    )

  return Group("all_way", [""], tasks, prepare)


def encode_drawn(
  parts: Parts,
  drawn: Sequence[tuple[np.ndarray, np.ndarray]],
  encode: Callable[[str, Source], FeatureSet],
) -> tuple[np.ndarray, np.ndarray]:
  """Features `[n, D]` of the parts `train` and `val`, of no other images than were drawn of them.

  Args:
    parts: that were drawn from.
    drawn: support and validation rows of each task.
    encode: all images of a source that have a label.
  """
  support = np.concatenate([rows.ravel() for rows, _ in drawn])
  validation = np.concatenate([rows.ravel() for _, rows in drawn])
  if parts.val is parts.train:
    train = encode("train", _only(parts.train, np.concatenate([support, validation])))
    return train.features, train.features
  return (
    encode("train", _only(parts.train, support)).features,
    encode("val", _only(parts.val, validation)).features,
  )


def _only(source: Source, rows: np.ndarray) -> Source:
  """A source of which some rows alone have a label."""
  kept = ClassSubset(source, source.class_names)
  kept.labels = np.full_like(source.labels, -1)
  kept.labels[rows] = source.labels[rows]
  return kept


def _features(config, extractor: Extractor, name: str, source: Source) -> FeatureSet:
  """Features of a part of the data set, in batches, each image once; kept where that is asked."""
  data = config.data
  return cached_features(
    name,
    source,
    extractor,
    data.cache_dir or None,
    batch_size=config.model.batch_size,
    threads=data.threads,
    resize=data.resize,
    interpolation=data.interpolation,
  )


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype)


def _load(
  parts: Parts,
  drawn: Mapping[TaskId, tuple[np.ndarray, np.ndarray]],
  train: np.ndarray,
  val: np.ndarray,
  prompts: Prompts,
  task: TaskId,
) -> tuple[Task, dict[str, Any]]:
  """One task on the host."""
  support, validation = drawn[task]
  arrays = Task(
    support=train[support.ravel()],
    support_labels=task_labels(support),
    query=val[validation.ravel()],
    query_labels=task_labels(validation),
    seed=np.int32(task.seed),
    number=np.int32(task.task),
    text=prompts.text.astype(np.float32),
  )
  return arrays, about_task(parts, support, validation)


def _measure(
  method: Method,
  exams: Sequence[Examination],
  tests: Callable[[str], np.ndarray],
  load: Callable[[TaskId], Any],
  batch_size: int,
  mesh: Any,
  params: Any,
  state: Any,
  tasks: Sequence[TaskId],
  tick: Callable[[str], None],
) -> list[dict[str, Any]]:
  """What lines say of the whole test split; see `examination.examine`."""
  remember, predict = _programs(method, mesh)
  count = len(jax.tree.leaves(state.status)[0])
  (batch,) = batches(load, [*tasks, *[tasks[-1]] * (count - len(tasks))], count)
  anchors, memory = remember(params, batch.tasks, state.params)
  learned = tuple(exam.name for exam in exams[:1])

  def classify(exam):
    text = jnp.asarray(exam.prompts.text, jnp.float32)
    # Other classes than the support set's are told apart by their texts.
    texts = {} if exam.name in learned else {"text": text}
    return lambda rows: predict(params, state.params, anchors, memory, rows, text, texts)

  read = lambda exam, rows: iter(tests(exam.name)[rows])
  return examine(exams, read, classify, tasks=len(tasks), batch_size=batch_size, tick=tick)


@functools.lru_cache(maxsize=8)
def _programs(method: Method, mesh: Any) -> tuple[Any, Any]:
  """Compiled for a batch of tasks: what each remembers of its support set, and predictions."""

  def predict(params, trained, anchors, memory, rows, text, texts):
    found = method.classify(trained, anchors, {**memory, **texts}, rows)
    embed = getattr(getattr(method, "probe", None), "embed", None)
    zero_shot = ncc.cosines(embed(params, rows) if embed else rows, text)
    return jnp.argmax(found, -1), jnp.argmax(zero_shot, -1)

  return (
    over_tasks(method.remember, mesh, (False, True, True)),
    over_tasks(predict, mesh, (False, True, True, True, False, False, False)),
  )
