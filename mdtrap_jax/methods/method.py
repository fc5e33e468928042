"""What adapts a task: the protocol by which runs know methods, and the types that methods share.

A method is written for one task. `run.programs` maps it over variants and tasks by one `vmap`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax

from mdtrap_jax.data.task import Task
from mdtrap_jax.objectives.chain import Phase, TermState

STATUS = ("ok", "non-finite")


class AdaptState(NamedTuple):
  """What changes from step to step."""

  params: Any  # what is trained, float32
  opt_state: Any  # of the objective chain, the terms' memories included
  status: jax.Array  # [] int32, index into STATUS; a non-finite task is frozen


class Evaluation(NamedTuple):
  """How a task's queries are classified."""

  accuracy: jax.Array  # [] float32 in [0, 1], over the rows that are not padding
  cosines: jax.Array  # [Q, C], or logits; -inf for a class that the task does not have
  extras: Mapping[str, jax.Array]  # named numbers [], such as "gap"
  # by name, after the step just done, without their memories; `run.programs` adds them
  terms: Mapping[str, TermState] = {}


class Embeddings(NamedTuple):
  """A task as an adapted model sees it; rows are not normalized."""

  support: jax.Array  # [M, D], the clean support images
  support_labels: jax.Array  # [M] int32
  query: jax.Array  # [Q, D]
  query_labels: jax.Array  # [Q] int32
  classes: jax.Array  # [C, D], texts, or prototypes where a method has no texts
  scale: jax.Array  # [], `s` of the cosines


class Work(NamedTuple):
  """What a method knows, without compiling, of what one task asks of a device."""

  each: int  # tasks at once that keep a CPU core busy and within its caches
  size: int | None  # bytes that a task surely needs no more than; None: ask the compiler
  alone: bool  # whether one task keeps all CPU cores busy
  likely: int | None = None  # bytes that it needs on an accelerator, a guess; None: not known


class Method(Protocol):
  """Pure functions of one task, and what is static about them."""

  steps: int  # T
  phases: Sequence[Phase]  # that the steps are made of; each has a program of its own
  marks: Sequence[int]  # steps after which the queries are classified

  # (params, prepared, state): the reference that adaptation is measured against, zero-shot or
  # nearest centroid; None where `evaluate` before the first step is just that.
  baseline: Callable[[Any, Any, AdaptState], Evaluation] | None

  def needed(self, params: Any, shards: int = 1) -> Any:
    """The part of the model's parameters that adapting takes, split between devices."""

  def prepare(self, params: Any, task: Task) -> tuple[Any, AdaptState]:
    """What stays the same in all steps, and the state before the first."""

  def run(
    self, params: Any, prepared: Any, state: AdaptState, start: Any, stop: Any, *, clean: bool
  ) -> AdaptState:
    """Steps `start … stop-1`, `[] int32` shared by all tasks."""

  def evaluate(self, params: Any, prepared: Any, state: AdaptState) -> Evaluation:
    """Classifies the queries."""

  def work(self, params: Any, task: Task, variants: int) -> Work:
    """What `task` (`jax.ShapeDtypeStruct` leaves) asks of a device."""

  def smaller(self, task: Task) -> Method | None:
    """The same method in less memory and more time; `None` if there is no such thing."""
