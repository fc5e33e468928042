"""How much of a device's memory a run's programs need, which only compiling them tells."""

from __future__ import annotations

import math
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mdtrap_jax.data.task import Task
from mdtrap_jax.methods.method import Method
from mdtrap_jax.models import sharding
from mdtrap_jax.run.programs import make_programs

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# As a TPU's compiler words it: "Used 20.25G of 15.75G hbm", or "the total memory required for HLO
# temporaries (18.63G) exceeds available HBM (15.75G)", which leaves out the arguments.
_USED = re.compile(r"(?:Used |required for [^(]*\()([\d.]+)([KMGT]?)")


class Need(NamedTuple):
  """Memory of a device, in bytes, by the compiler."""

  peak: int | None  # None: more than there is, and it does not say how much
  shared: int  # the weights' part of it


def bytes_needed(
  method: Method, params: Any, task: Task, weights: Any, mesh: Mesh, each: int = 1
) -> Need:
  """Compiles the programs for a batch of `each` tasks a device, all at the same time.

  They are the very programs that run afterwards: `make_programs` keeps them, and a call with
  arrays of these shapes does not compile again.

  Args:
    method: what adapts.
    params: of the model, whole (`jax.ShapeDtypeStruct` leaves will do, as in `task`).
    task: one task.
    weights: `{term: [P]}`, of the variants; empty without.
    mesh: from `task_mesh`.
    each: tasks on a device.
  """

  def laid_out(tree, spec):
    layout = NamedSharding(mesh, spec)
    return jax.tree.map(  # with a weak type, such as a scalar's, where arrays will have one
      lambda leaf: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=layout, weak_type=getattr(leaf, "weak_type", False)
      ),
      tree,
    )

  batches = PartitionSpec(mesh.axis_names)
  shards = mesh.shape.get(sharding.AXIS, 1)
  if isinstance(params, dict):  # of a model: nothing need be computed to know the shapes
    params = jax.eval_shape(lambda leaves: leaves, params)
  params = method.needed(params, shards)
  params = jax.tree.map(lambda spec, leaf: laid_out(leaf, spec), sharding.specs(params), params)
  rows = mesh.size * each
  tasks = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape), leaf.dtype), task)
  tasks = laid_out(tasks, batches)
  programs = make_programs(method, mesh, bool(weights))
  step = jax.ShapeDtypeStruct((), jnp.int32, weak_type=True)  # as Python's numbers are

  def lowered():
    """The largest first, that it may compile while the others are traced."""
    prepared, state = laid_out(jax.eval_shape(programs.prepare, params, tasks, weights), batches)
    for clean in sorted({phase.clean for phase in method.phases}, reverse=True):
      yield programs.run[clean].lower(params, prepared, state, step, step)
    yield programs.evaluate.lower(params, prepared, state)
    if programs.baseline is not programs.evaluate:
      yield programs.baseline.lower(params, prepared, state)
    yield programs.prepare.lower(params, tasks, weights)

  with ThreadPoolExecutor() as pool:
    compiling = [pool.submit(_peak, program) for program in lowered()]
  peaks = [peak.result() for peak in compiling]
  part = lambda leaf: math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
  return Need(None if None in peaks else max(peaks), sum(map(part, jax.tree.leaves(params))))


def _peak(program: jax.stages.Lowered) -> int | None:
  """Bytes that a program needs; a TPU's compiler refuses one that does not fit."""
  try:
    return peak_bytes(program.compile())
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    used = _USED.search(str(error))
    return int(float(used[1]) * _UNITS[used[2]]) if used else None


def peak_bytes(compiled: jax.stages.Compiled) -> int:
  """Memory of one device, by the compiler's analysis: arguments, results and what lies between."""
  memory = compiled.memory_analysis()
  return (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    + memory.temp_size_in_bytes
    - memory.alias_size_in_bytes
  )
