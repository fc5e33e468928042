"""Pretraining the miniature: from a config to one task, and what its run leaves beside its line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mdtrap_jax import checkpoints, files, models
from mdtrap_jax import config as configs
from mdtrap_jax.data.prompts import DEFAULT_TEMPLATE, make_prompts
from mdtrap_jax.data.sources import Source
from mdtrap_jax.data.task import Task, TaskBatch, TaskId, all_tasks
from mdtrap_jax.methods.method import STATUS, AdaptState, Evaluation
from mdtrap_jax.models.families import miniature
from mdtrap_jax.models.vlm import VisionLanguageModel
from mdtrap_jax.report import tables
from mdtrap_jax.run import claim
from mdtrap_jax.run.experiment import Experiment, Group, Ready
from mdtrap_jax.run.lines import read_object
from mdtrap_jax.world import WorldSource, zero_shot
from mdtrap_jax.world.pretrain import Pretraining, make_optimizer

WAYS, QUERIES = 5, 3  # of a zero-shot episode
_SHOWN = 20  # steps that the bar's loss is the mean of


def experiment(config: ml_collections.ConfigDict, workdir: str | Path) -> Experiment:
  """One task, which leaves `model/` and `metrics.json` in the work directory.

  Several processes gain nothing: the first one trains, and the others wait for it.

  Raises:
    ValueError: a field that cannot be right.
  """
  config = configs.resolve(config)
  source = WorldSource("source", images_per_class=QUERIES + 1)
  domain = {"class_names": list(source.class_names), "content": source.content()}
  return Experiment(
    runs={"": config},
    sources={"": {"weights": None, "domains": {source.name: domain}}},
    groups=[make_group(config, make_method(config, source), source, workdir)],
    placing={},
    about=f"{config.steps} steps of {config.batch_size} generated images with captions",
  )


def make_model(config: ml_collections.ConfigDict) -> VisionLanguageModel:
  """The untrained miniature of the config's size."""
  model = models.build(miniature.specification(**config.model))
  return dataclasses.replace(model, name="miniature", tokenize=miniature.tokenizer())


def make_method(config: ml_collections.ConfigDict, source: Source) -> Pretraining:
  """How `config` trains.

  Args:
    config: resolved.
    source: of the held-out images.
  """
  names = (
    "steps", "learning_rate", "warmup_steps", "weight_decay", "b1", "b2", "clip_norm",
  )  # fmt: skip
  return Pretraining(
    model=make_model(config),
    tx=make_optimizer(**{name: config[name] for name in names}),
    steps=config.steps,
    marks=(*range(config.evaluate_every, config.steps, config.evaluate_every), config.steps),
    batch_size=config.batch_size,
    seed=config.seed,
    max_scale=config.max_scale,
    episodes=zero_shot.draw(
      source.labels, episodes=config.evaluate_episodes, ways=WAYS, queries=QUERIES, seed=0
    ),
  )


def make_group(
  config: ml_collections.ConfigDict, method: Pretraining, source: Source, workdir: str | Path
) -> Group:
  """The one task: the images of `source`, each class with its prompt.

  Args:
    config: resolved.
    method: that trains.
    source: held-out images of the model's size.
    workdir: where the model goes.
  """
  workdir = Path(workdir).resolve()

  def prepare() -> Ready:
    claim.mark(workdir / "model")  # something else's is refused now, and not when all is done
    images = np.stack([source.image(index) for index in range(len(source.labels))])
    ids = method.model.tokenize(make_prompts(source.class_names, DEFAULT_TEMPLATE))
    task = Task(
      support=np.zeros((0, *images.shape[1:]), np.uint8),
      support_labels=np.zeros(0, np.int32),
      query=images,
      query_labels=source.labels,
      seed=np.int32(0),
      number=np.int32(0),
      token_ids=ids,
    )

    def batches(tasks: Sequence[TaskId], size: int) -> Iterator[TaskBatch]:
      yield TaskBatch(tasks, jax.tree.map(lambda leaf: leaf[None], task), [{}])

    def watch(step: int, state: AdaptState, evaluations: Mapping[int, Evaluation]) -> str:
      return _watch(config, method, workdir, step, state, evaluations)

    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), task)
    return Ready(method, {}, {}, shapes, batches, watch)

  return Group("pretraining", [""], all_tasks(("",), [config.seed], 1), prepare)


def _watch(
  config: ml_collections.ConfigDict,
  method: Pretraining,
  workdir: Path,
  step: int,
  state: AdaptState,
  evaluations: Mapping[int, Evaluation],
) -> str:
  """Says where the training is; writes the model and its curves after the last step.

  Raises:
    ValueError: the loss is not finite.
  """
  status, curve = jax.device_get((state.status[0], state.opt_state["curve"]))
  loss, accuracy = (values[0, :step] for values in curve)
  if STATUS[status] != "ok":
    first = int(np.argmin(np.isfinite(loss)))
    raise ValueError(
      f"the loss is {loss[first]} at step {first + 1}: lower --config.learning_rate="
      f"{config.learning_rate} and give another --workdir."
    )
  zero_shots = {
    str(mark): round(float(evaluations[mark].accuracy[0, 0]), 6) for mark in sorted(evaluations)
  }
  if step == method.steps:
    params = jax.tree.map(lambda leaf: np.asarray(leaf[0]), state.params)
    checkpoints.save(workdir / "model", method.model, params, dtype=jnp.float16, overwrite=True)
    curves = {"loss": _rounded(loss), "accuracy": _rounded(accuracy), "zero_shot": zero_shots}
    files.write(workdir / "metrics.json", json.dumps(curves) + "\n")
  return (
    f"step {step}/{method.steps}, loss {loss[-_SHOWN:].mean():.3f}, "
    f"zero-shot {list(zero_shots.values())[-1]:.1%}"
  )


def _rounded(values: np.ndarray) -> list[float]:
  return [round(float(value), 6) for value in values]


def tabulate(config: ml_collections.ConfigDict, workdir: Path, rate: float | None) -> str:
  """The table that a run ends with.

  Args:
    config: of the run.
    workdir: with its `metrics.json`.
    rate: trainings per second, if it is known.

  Raises:
    FileNotFoundError: somebody removed what the run had left.
  """
  for name in ("model", "metrics.json"):
    if not (workdir / name).exists():
      raise FileNotFoundError(
        f"{workdir / name} is gone, and the training that made it is finished: give another "
        "--workdir to train again."
      )
  metrics = read_object(workdir / "metrics.json")
  rows: list[tuple[str, Any]] = [
    ("pairs of image and caption", config.steps * config.batch_size),
    (f"loss, last {_SHOWN} steps", f"{np.mean(metrics['loss'][-_SHOWN:]):.3f}"),
  ]
  rows += [
    (f"zero-shot after {mark} steps (%)", f"{100 * value:.1f}")
    for mark, value in metrics["zero_shot"].items()
  ]
  if rate:
    rows.append(("images per second", f"{rate * config.steps * config.batch_size:.0f}"))
  return tables.text(("steps", config.steps), rows)
