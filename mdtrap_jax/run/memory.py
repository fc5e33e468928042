"""Adapts tasks that are in memory by the loop's own programs; nothing goes to the disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from mdtrap_jax.data.task import Task
from mdtrap_jax.methods.method import STATUS, Evaluation, Method
from mdtrap_jax.run.loop import PACE, Lengths, adapt_batch
from mdtrap_jax.run.place import halved, place
from mdtrap_jax.run.programs import make_programs, replicate, spread


class Adapted(NamedTuple):
  """What tasks came to, on the host."""

  params: Any  # [E, ...], what was trained
  evaluations: Mapping[int, Evaluation]  # [E, ...] by step; 0 is the baseline
  ok: np.ndarray  # [E] bool; false where a task became non-finite
  losses: Mapping[str, np.ndarray]  # [E], the last value of each term

  def params_of(self, task: int) -> Any:
    """What was trained of one task."""
    return jax.tree.map(lambda leaf: leaf[task], self.params)


def adapt(
  method: Method,
  params: Any,
  tasks: Task,
  *,
  placing: Mapping[str, Any] | None = None,
  report: Callable[[float], None] = lambda done: None,
) -> Adapted:
  """Adapts tasks of one shape, as many at once as there is room for, halved if there is not.

  Args:
    method: that adapts.
    params: of the model.
    tasks: `[E, ...]`, NumPy arrays.
    placing: as in `run.experiment.Experiment`.
    report: told after each segment which share of all steps is done.

  Raises:
    MemoryError: not even one task fits.
  """
  placing, count = dict(placing or {}), len(tasks.support_labels)
  shape = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), tasks)
  placement = place(method, params, shape, {}, most=count, **placing)
  method, mesh = placement.method, placement.mesh
  params = replicate(method.needed(params, placing.get("shards", 1)), mesh)
  programs, lengths = make_programs(method, mesh, False), Lengths(PACE.segment)

  def adapted(start: int, size: int) -> Adapted:
    rows = np.minimum(np.arange(start, start + size), count - 1)  # the last one fills the batch
    prepared, state = programs.prepare(
      params, spread(jax.tree.map(lambda leaf: leaf[rows], tasks), mesh), {}
    )

    def after(step, done, state, evaluations):
      nonlocal furthest  # a batch that starts again does not take it back
      del done, state, evaluations
      rows = start + -(-(count - start) // size) * size
      furthest = max(furthest, (start + size * step / method.steps) / rows)
      report(furthest)

    outcome, state = adapt_batch(programs, method, params, prepared, state, lengths, after=after)
    evaluations = {  # without the axis of variants
      step: jax.tree.map(lambda leaf: leaf[:, 0], found)
      for step, found in outcome.evaluations.items()
    }
    ok = outcome.status[:, 0] == STATUS.index("ok")
    losses = {name: term.value[:, 0] for name, term in outcome.last.terms.items()}
    part = Adapted(jax.device_get(state.params), evaluations, ok, losses)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[: count - start], part)

  parts, start, furthest = [], 0, 0.0
  while start < count:
    size = mesh.size * placement.each
    try:
      parts.append(adapted(start, size))
    except jax.errors.JaxRuntimeError as error:
      placement = halved(placement, error)
    else:
      start += size
  return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
