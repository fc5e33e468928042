"""Some tasks of a run adapted again, from its config alone, with everything that can be looked at.

Randomness follows from what a task is, so that this is what the run did, but for the order in
which numbers were added; the accuracies say whether it was.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mdtrap_jax import config as configs
from mdtrap_jax.analysis import attention, gradients
from mdtrap_jax.analysis.gradients import Gradients
from mdtrap_jax.analysis.measures import present
from mdtrap_jax.data.task import Task
from mdtrap_jax.data.views import normalize
from mdtrap_jax.experiments import finetune, heads
from mdtrap_jax.methods import url
from mdtrap_jax.methods.finetune import FineTuning
from mdtrap_jax.methods.head import HeadMethod
from mdtrap_jax.methods.method import AdaptState, Embeddings
from mdtrap_jax.objectives.chain import enabled_terms
from mdtrap_jax.run import identity
from mdtrap_jax.run.experiment import Experiment, Ready
from mdtrap_jax.run.lines import read_episodes, read_object


class Look(NamedTuple):
  """Where an adapted encoder looks, for a task's first support image of each class."""

  images: np.ndarray  # [C, H, W, 3] uint8
  before: np.ndarray  # [C, G, G], shares of attention
  after: np.ndarray  # [C, G, G]


class Readapted(NamedTuple):
  """One task before and after."""

  line: Mapping[str, Any]  # of `episodes.jsonl`
  class_names: list[str]  # [C]
  before: Embeddings
  after: Embeddings
  gradients: Gradients | None  # [T, K]; None for a method without terms
  look: Look | None  # None for a method without an encoder of its own


class Run(NamedTuple):
  """A finished run, or one under way."""

  path: Path
  config: ml_collections.ConfigDict
  lines: list[dict[str, Any]]  # of the tasks that did not fail
  experiment: Experiment


def open_run(path: Path) -> Run:
  """A run's config, lines, and the experiment that made it.

  Raises:
    ValueError, OSError: it is no run, has no finished task, is of a kind that adapts nothing, or
      its images or weights are not what they were.
  """
  lines = [line for line in read_episodes(path) if line["status"] == "ok"]
  if not lines:
    raise ValueError(f"{path} has no finished episode: there is nothing to analyze yet.")
  stored = read_object(path / "config.json")
  fields = {name: value for name, value in stored.items() if name != "source"}
  config = configs.resolve(ml_collections.ConfigDict(fields))
  if config.experiment == "finetune":
    experiment = finetune.experiment(config)
  elif config.experiment == "heads":
    experiment, _ = heads.experiment(config)
  else:
    raise ValueError(f"{path} is a run of {config.experiment!r}, which adapts no episodes.")
  here = json.loads(json.dumps(experiment.sources[""]))
  if changed := identity.source_changes(here, stored.get("source")):
    raise ValueError(
      f"{path}: what the run was made of is not there any more ({'; '.join(changed[:5])}): put the "
      "same images and weights back."
    )
  return Run(path, config, lines, experiment)


def terms_of(run: Run) -> list[str]:
  """Names of a run's terms, in the order of `Gradients`; none of a head's."""
  return list(enabled_terms(run.config.objective.to_dict())) if "objective" in run.config else []


def readapt(run: Run, count: int) -> Iterator[Readapted]:
  """The first tasks of a run, one after the other.

  Args:
    run: from `open_run`.
    count: how many, at most.
  """
  wanted = {line["episode"]: line for line in run.lines[:count]}
  for group in run.experiment.groups:
    tasks = [task for task in group.tasks if task.episode in wanted]
    if not tasks:
      continue
    ready = group.prepare()
    adapt = _fine_tuning(ready) if isinstance(ready.method, FineTuning) else _head(ready)
    for batch in ready.batches(tasks, 1):
      task = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), batch.tasks)
      line = wanted[batch.ids[0].episode]
      yield Readapted(line, batch.about[0]["class_names"], *adapt(task))


def _fine_tuning(ready: Ready) -> Callable[[Task], tuple]:
  method: FineTuning = ready.method
  params = method.needed(ready.params)
  prepare, embed = jax.jit(method.prepare), jax.jit(method.embeddings)
  phases = [
    jax.jit(
      functools.partial(
        gradients.run, method, start=phase.start, stop=phase.stop, clean=phase.clean
      )
    )
    for phase in method.phases
  ]
  maps = jax.jit(functools.partial(attention.attention_maps, method.model))

  def adapt(task):
    prepared, state = prepare(params, task)
    before = embed(params, prepared)
    found = []
    for phase in phases:
      state, own = phase(params, prepared, state)
      found.append(own)
    traced = jax.tree.map(lambda *parts: np.concatenate(parts), *jax.device_get(found))
    after = embed(params, prepared, state)
    look = _look(method, ready.params, task, state, maps)
    return present(before), present(after), traced, look

  return adapt


def _look(method: FineTuning, params, task: Task, state: AdaptState, maps) -> Look | None:
  """Maps of the pretrained and of the adapted encoder, where the latter is one of its kind."""
  first = np.unique(task.support_labels, return_index=True)[1]
  shown, model = np.asarray(task.support)[first], method.model
  images = normalize(
    jnp.asarray(shown), model.image_mean, model.image_std, params["image"]["stem"]["position"].dtype
  )
  own = params
  if "image" in method.parameterization.encoders:
    try:
      own = method.parameterization.merge(model, params, jax.device_get(state.params))
    except ValueError:  # what it trains are tokens, which the encoder alone does not have
      return None
  return Look(shown, np.asarray(maps(params, images)), np.asarray(maps(own, images)))


def _head(ready: Ready) -> Callable[[Task], tuple]:
  method: HeadMethod = ready.method
  prepare = jax.jit(method.prepare)
  run = jax.jit(method.run)

  @jax.jit
  def embed(prepared, state: AdaptState):
    found = method.represent(ready.params, state.params, prepared.task)
    task = prepared.task
    scale = jnp.float32(url.LOGIT_SCALE)
    return Embeddings(
      found.support, task.support_labels, found.query, task.query_labels, found.prototypes, scale
    )

  def adapt(task):
    prepared, state = prepare(ready.params, task)
    before = embed(prepared, state)
    state = run(ready.params, prepared, state, 0, method.steps)
    return present(before), present(embed(prepared, state)), None, None

  return adapt
