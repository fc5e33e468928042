"""The gap between prototypes and images before and after URL and CoPA, on a few tasks."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mdtrap_jax.data.features import FeatureSet
from mdtrap_jax.data.tasks import TaskIndices, common_sizes, gather
from mdtrap_jax.methods import copa, gap
from mdtrap_jax.methods.head import HeadMethod
from mdtrap_jax.methods.heads import make_method

COMPARED = ("ncc", "url", "copa")


def diagnose(
  found: FeatureSet,
  tasks: Sequence[TaskIndices],
  distances: Sequence[float],
  seen: bool = False,
) -> dict[str, Any]:
  """Means over tasks, as they go into `summary.json`.

  Args:
    found: pooled features of a domain.
    tasks: some of its tasks.
    distances: gaps to set by hand.
    seen: whether the features' backbone was trained on the domain; URL's rate depends on it.

  Returns:
    `gap` by method (`ncc` is before adaptation), `shift` by method with `loss` and `accuracy`
    per distance, and `bound_scale` and `gap_ratio` before each step of URL and after the last
    (see `methods.gap`). Methods have their published settings.
  """
  sizes = common_sizes(tasks)
  grid = jnp.asarray(distances, jnp.float32)
  result: dict[str, Any] = {
    "tasks": len(tasks),
    "distances": [float(d) for d in distances],
    "gap": {},
    "shift": {},
  }
  for name in COMPARED:
    method = make_method(name, ways=sizes.ways, domain=found.name, seen=seen)
    run = jax.jit(functools.partial(_one, method, name, grid))
    # One task after another: memory stays small, and these are few.
    outcomes = [
      jax.device_get(
        run(jax.tree.map(lambda rows: jnp.asarray(rows[0]), gather(found.features, [task], sizes)))
      )
      for task in tasks
    ]
    length, curve, bound = jax.tree.map(lambda *rows: np.mean(rows, axis=0), *outcomes)
    result["gap"][name] = float(length)
    result["shift"][name] = {"loss": _rounded(curve.loss), "accuracy": _rounded(curve.accuracy)}
    if bound is not None:
      result |= {name: _rounded(values) for name, values in bound.items()}
  return result


def _one(method: HeadMethod, name: str, grid: jax.Array, task):
  """Gap, shift curve and, for the shared map, what becomes of the gap per step of one task."""
  task = task._replace(
    support=task.support.astype(jnp.float32), query=task.query.astype(jnp.float32)
  )
  trace = None
  if name == "url":
    embeddings = make_method("ncc", ways=method.ways).represent(None, {}, task)
    delta = gap.gap_vector(embeddings, task.support_labels)
    trace = lambda representations, params: {
      "bound_scale": gap.bound_scale(params["shared"], delta),
      "gap_ratio": gap.gap_ratio(params["shared"], delta),
    }
  fit = method.fit(None, task, jax.random.key(0), trace)
  representations = method.represent(None, fit.params, task)
  return (
    gap.gap(representations, task.support_labels),
    gap.shift_gap(representations, task, grid, copa.LOGIT_SCALE),
    fit.trace,
  )


def _rounded(values: np.ndarray) -> list[float]:
  return [round(float(value), 6) for value in values]
