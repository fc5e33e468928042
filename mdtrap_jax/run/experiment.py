"""What the loop is given: runs with their configs, and groups of tasks that are adapted alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from mdtrap_jax.data.task import Task, TaskBatch, TaskId
from mdtrap_jax.methods.method import AdaptState, Evaluation, Method


class Ready(NamedTuple):
  """A group that has loaded what it needs."""

  method: Method
  params: Any  # of its model, whole
  weights: Mapping[str, np.ndarray]  # {term: [P]} of the variants; empty where there is one
  task: Task  # one task's shapes, `jax.ShapeDtypeStruct` leaves
  batches: Callable[[Sequence[TaskId], int], Iterator[TaskBatch]]  # (tasks, size)
  # (step, state, evaluations) of a batch after each segment; says a few words for the bar, may
  # keep what is trained after the last step, before the batch counts as finished, and may raise
  watch: Callable[[int, AdaptState, Mapping[int, Evaluation]], str] | None = None
  scale: float = 1.0  # of cosines: probabilities are softmax(scale · cosine)
  describe: Callable[[int], str] = "image {}".format  # what an image of the source is called
  # `(mesh, params, state, tasks, tick)`: what lines say of adapted tasks beyond their queries; it
  # calls `tick(words for the bar)` every few seconds, which may raise to stop
  measure: Callable[..., Sequence[Mapping[str, Any]]] | None = None


class Group(NamedTuple):
  """Tasks that one method adapts in one program, under `P` variants of its terms' weights."""

  name: str  # unique in the experiment; a snapshot is found by it
  runs: Sequence[str]  # P names of runs, where the variants' lines go
  tasks: Sequence[TaskId]  # all of them, done or not: a resumed run places them the same way
  prepare: Callable[[], Ready]  # called if something is left to do


class Experiment(NamedTuple):
  """All that a config asks for."""

  runs: Mapping[str, ml_collections.ConfigDict]  # by subdirectory; "" is the directory itself
  sources: Mapping[str, Mapping[str, Any]]  # by run, what its data and weights are
  groups: Sequence[Group]
  placing: dict[str, Any]  # `shards`, `each`, `fixed` and `devices` of `place.place`
  about: str = ""  # what was understood, for the person at the terminal
