"""All classes of a data set at once: from a config to one task a seed, and its whole test split.

Legend: `C` classes, `K` shots, `M = C·K` support images, `E` seeds at once, `B` images of a batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mdtrap_jax import config as configs
from mdtrap_jax.data import images
from mdtrap_jax.data.class_selection import ClassSubset, check_feasible
from mdtrap_jax.data.labeled import in_order
from mdtrap_jax.data.parts import Parts, draw, halves
from mdtrap_jax.data.prompts import Prompts
from mdtrap_jax.data.releases import RELEASES
from mdtrap_jax.data.source import Source
from mdtrap_jax.data.sources import make_source
from mdtrap_jax.data.task import Task, TaskBatch, TaskId, all_tasks
from mdtrap_jax.experiments import finetune
from mdtrap_jax.methods.all_way import AllWay
from mdtrap_jax.methods.tuning.choices import make_parameterization
from mdtrap_jax.models.vlm import VisionLanguageModel
from mdtrap_jax.objectives import chain
from mdtrap_jax.run.experiment import Experiment, Group, Ready
from mdtrap_jax.run.programs import over_tasks


class Examination(NamedTuple):
  """Test images with the classes to tell apart."""

  name: str  # "test", "new", or another data set
  source: Source
  prompts: Prompts


def experiment(config: ml_collections.ConfigDict) -> Experiment:
  """One task for each seed.

  Raises:
    ValueError, OSError: input that cannot be right.
  """
  config = finetune.settled(config)
  check(config)
  make_method(config, None, 1.0, images=2, width=1)  # an objective that cannot be is refused now
  parts, exams = open_parts(config)
  shared = parts.val is parts.train  # an image more, to validate on
  check_feasible(parts.train, 2, config.data.shots, int(shared))
  check_feasible(parts.val, 2, 1, 0)
  sources = {"train": parts.train, "val": parts.val} | exams
  identity = finetune.identity(config, parts.train)
  identity["domains"] = {
    name: {"class_names": list(source.class_names), "content": source.content()}
    for name, source in sources.items()
  }
  counted = [f"{name} {int((source.labels >= 0).sum())}" for name, source in sources.items()]
  about = (
    f"{parts.train.name}: all {len(parts.train.class_names)} classes, {config.data.shots} images "
    f"of each; images: {', '.join(counted)}\n"
    + finetune.about(config, parts.train).rpartition("\n")[2]
  )
  return Experiment(
    runs={"": config},
    sources={"": identity},
    groups=[_make_group(config, parts, exams)],
    placing=finetune.placing(config),
    about=about,
  )


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses what means nothing here, before anything is opened.

  Raises:
    ValueError: names the field, its value and the remedy.
  """
  if config.variants:
    raise ValueError("config.variants: runs on all classes have none; start one run for each.")
  for field, value, why in (
    ("data.small_classes", "error", "all classes take part; name those to keep in data.classes"),
    ("data.unreadable", "error", "the whole test split is classified; repair what is unreadable"),
    ("data.cache_dir", "", "test images are read once; leave it empty"),
    ("predictions", False, "it would be of the validation images alone; leave it"),
  ):
    if (given := configs.get(config, field)) != value:
      raise ValueError(f"--config.{field}={given}: {why}.")


def open_parts(config: ml_collections.ConfigDict) -> tuple[Parts, dict[str, Source]]:
  """The parts to draw from, and the test images by examination.

  With `config.base_to_new` the classes are split in half as CoOp does it: adapted are the first,
  tested both. A source that has no published split is split in half class by class.

  Raises:
    ValueError, OSError: the data are not as they should be.
  """
  data = config.data
  if data.name == "fsl":
    opened = [make_source(configs.replace(config, {"data.split": p}).data) for p in _parts(data)]
    parts = Parts(*(opened if len(opened) == 3 else (opened[0], *opened)))
  else:
    parts = halves(make_source(data))
  exams = {"test": parts.test}
  if config.base_to_new:
    names = parts.train.class_names
    base, new = names[: -(-len(names) // 2)], names[-(-len(names) // 2) :]
    kept = {
      id(part): ClassSubset(part, base) for part in parts
    }  # `val` may be `train`, and stays so
    parts = Parts(*(kept[id(part)] for part in parts))
    exams = {"base": parts.test, "new": ClassSubset(exams["test"], new)}
  for entry in config.transfer:
    name, _, path = entry.partition("=")
    other = configs.replace(
      config,
      {"data.name": "fsl", "data.domain": name, "data.path": path, "data.split": "test",
       "data.split_file": "", "data.classes": (), "data.files": ""},
    )  # fmt: skip
    exams[name] = make_source(other.data)
  for name, source in exams.items():
    if not (source.labels >= 0).any():
      raise ValueError(f"{source.name}: there are no test images for {name}.")
  return parts, exams


def _parts(data: Any) -> tuple[str, ...]:
  """ImageNet has two: validation images come from its training folders."""
  release = RELEASES.get(data.domain)
  return ("train", "test") if release and release.images[1] is None else ("train", "val", "test")


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
  adapt, parameterization = config.adapt, make_parameterization(config)
  objective = config.objective.to_dict()
  if adapt.diagnose:
    raise ValueError("config.adapt.diagnose=True: only few-shot episodes are diagnosed; leave it.")
  if model:
    parameterization.check(model)
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
    loss_scaling=config.model.dtype == "float16",
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
    evaluated=config.model.batch_size,
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
    prompts = encode(parts.train)
    held = [
      Examination(name, source, prompts if name in ("test", "base") else encode(source))
      for name, source in exams.items()
    ]
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
      batches=functools.partial(_batches, load),
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
  labels = lambda rows: np.repeat(np.arange(len(rows), dtype=np.int32), rows.shape[1])
  arrays = Task(
    support=pixels(parts.train, support),
    support_labels=labels(support),
    query=pixels(parts.val, validation),
    query_labels=labels(validation),
    seed=np.int32(task.seed),
    number=np.int32(task.task),
    token_ids=prompts.token_ids,
    text=prompts.text,
  )
  about = {
    "class_names": list(parts.train.class_names),
    "support": support.tolist(),
    "query": validation.tolist(),
  }
  return arrays, about


def _batches(load: Callable[..., Any], tasks: Sequence[TaskId], size: int) -> Iterator[TaskBatch]:
  """Tasks in batches of `size`; the next is loaded while the last is adapted."""
  for start in range(0, len(tasks), size):
    ids = tasks[start : start + size]
    arrays, about = zip(*map(load, ids), strict=True)
    yield TaskBatch(ids, jax.tree.map(lambda *leaves: np.stack(leaves), *arrays), about)


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
  """Classifies all test images by what each task has learned, and by the pretrained model.

  Returns:
    For each task, what its line says: of the first examination as `accuracy` and
    `zero_shot_accuracy`, of all in `tests`.
  """
  texts, trained = _programs(method, mesh)
  tests: list[dict[str, Any]] = [{} for _ in tasks]
  for exam in exams:
    text = texts(params, state.params, exam.prompts.token_ids, exam.prompts.text)
    rows = np.flatnonzero(exam.source.labels >= 0)
    right, before = np.zeros(len(tasks), np.int64), 0
    decoded = in_order(functools.partial(read, exam.source), rows)
    for start in range(0, len(rows), batch_size):
      chosen = rows[start : start + batch_size]
      pixels = [next(decoded) for _ in chosen]
      pixels = np.stack(pixels + pixels[-1:] * (batch_size - len(chosen)))
      found, zero_shot = trained(params, state.params, text, pixels, exam.prompts.text)
      labels = exam.source.labels[chosen]
      right += (np.asarray(found)[: len(tasks), : len(chosen)] == labels).sum(1)
      before += int((np.asarray(zero_shot)[0, : len(chosen)] == labels).sum())
      tick(f"{exam.name}: {start + len(chosen)} of {len(rows)} test images")
    for line, count in zip(tests, right, strict=True):
      line[exam.name] = {
        "images": len(rows),
        "accuracy": round(int(count) / len(rows), 6),
        "zero_shot_accuracy": round(before / len(rows), 6),
      }
  first = exams[0].name
  return [
    {name: line[first][name] for name in ("accuracy", "zero_shot_accuracy")} | {"tests": line}
    for line in tests
  ]


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
