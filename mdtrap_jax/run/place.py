"""How many tasks are adapted at once, and on which devices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mdtrap_jax.data.task import Task
from mdtrap_jax.methods.method import Method
from mdtrap_jax.models import sharding
from mdtrap_jax.run.devices import MEMORY_SHARE, memory_limit, size_in_bytes
from mdtrap_jax.run.programs import make_programs, task_mesh


class Placement(NamedTuple):
  """Where tasks are adapted."""

  method: Method  # the one asked for, or a smaller one where that does not fit
  mesh: Mesh
  each: int  # tasks at once on each of its devices


def place(
  method: Method,
  params: Any,
  task: Task,
  weights: Any,
  *,
  most: int,
  shards: int = 1,
  each: int = 0,
  fixed: bool = False,
  devices: Sequence[jax.Device] | None = None,
  memory: int | None = None,
) -> Placement:
  """How many devices should adapt how many tasks at once, and by which form of the method.

  On CPU cores, where larger batches gain nothing, that is what keeps a core busy, on as many
  cores as the memory they share allows. Elsewhere it is what fits: the programs are compiled for
  one task a device, and what the compiler's own memory analysis says beyond the weights is what
  each one needs. Where not even one task fits, the method's smaller forms are tried.

  Args:
    method: what adapts.
    params: of the model, whole (`jax.ShapeDtypeStruct` leaves will do, as in `task`).
    task: one task.
    weights: `{term: [P]}`, of the variants; empty without.
    most: the number of tasks to run.
    shards: between how many devices the weights are split.
    each: tasks on a device, where the user says it; memory is then not looked at.
    fixed: whether the form of the method is the user's choice.
    devices: to choose from; this process's when `None`.
    memory: in bytes, of each device as if it were an accelerator, instead of asking.

  Raises:
    MemoryError: not even one task fits.
    ValueError: the devices are no multiple of `shards`.
  """
  devices = list(jax.local_devices() if devices is None else devices)
  if len(devices) % shards:
    raise ValueError(
      f"config.weight_shards={shards}: must divide the number of devices of a process, "
      f"{len(devices)}."
    )
  variants = len(jax.tree.leaves(weights)[0]) if weights else 1
  cores = devices[0].platform == "cpu" and memory is None
  work = method.work(params, task, variants) if cores else None
  if cores and work.alone:
    devices = devices[:shards]  # one task keeps all cores busy, in a part of the memory
  devices = devices[: -(-most // shards) * shards]
  most = -(-most // len(devices))
  if each:
    return Placement(method, task_mesh(devices, shards), min(each, most))
  limit = memory_limit(devices[0]) if memory is None else int(MEMORY_SHARE * memory)
  if cores and work.size is not None:
    busy = min(work.each, most)
    if len(devices) * (size_in_bytes(params) + busy * work.size) <= limit:
      return Placement(method, task_mesh(devices, shards), busy)  # sure to fit: no need to compile
  while True:
    need = bytes_needed(method, params, task, weights, task_mesh(devices[:shards], shards))
    if need and need.one * (shards if cores else 1) <= limit:
      break
    smaller = None if fixed else method.smaller(task)
    if smaller is None:
      raise MemoryError(_does_not_fit(need and need.one, limit, devices[0]))
    logging.warning(
      "one task does not fit into %s: trying with half as much encoded at a time.", devices[0]
    )
    method = smaller
  if cores:  # they share the memory
    devices = devices[: limit // (need.one * shards) * shards]
    return Placement(method, task_mesh(devices, shards), 1)
  each = 1 + (limit - need.one) // max(need.one - need.shared, 1)
  return Placement(method, task_mesh(devices, shards), max(1, min(most, each)))


class Need(NamedTuple):
  """Memory of a device, in bytes, by the compiler's analysis."""

  one: int  # the peak with one task
  shared: int  # the weights' part of it


def bytes_needed(method: Method, params: Any, task: Task, weights: Any, mesh: Mesh) -> Need | None:
  """What the programs for a batch of one task a device need; `None` if they do not even compile.

  A TPU's compiler refuses a program that does not fit.
  """

  def laid_out(tree, spec):
    layout = NamedSharding(mesh, spec)
    return jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout), tree
    )

  batches = PartitionSpec(mesh.axis_names)
  shards = mesh.shape.get(sharding.AXIS, 1)
  if isinstance(params, dict):  # of a model: nothing need be computed to know the shapes
    params = jax.eval_shape(lambda leaves: leaves, params)
  params = method.needed(params, shards)
  params = jax.tree.map(lambda spec, leaf: laid_out(leaf, spec), sharding.specs(params), params)
  tasks = laid_out(
    jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((mesh.size, *leaf.shape), leaf.dtype), task),
    batches,
  )
  programs = make_programs(method, mesh, bool(weights))
  step = jax.ShapeDtypeStruct((), jnp.int32)
  clean = any(phase.clean for phase in method.phases)
  try:
    prepared, state = laid_out(jax.eval_shape(programs.prepare, params, tasks, weights), batches)
    analyses = [
      program.compile().memory_analysis()
      for program in (
        programs.prepare.lower(params, tasks, weights),
        programs.evaluate.lower(params, prepared, state),
        *(
          [programs.run[clean].lower(params, prepared, state, step, step)] if method.phases else []
        ),
      )
    ]
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return None
  part = lambda leaf: math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
  peak = max(
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    + memory.temp_size_in_bytes
    - memory.alias_size_in_bytes
    for memory in analyses
  )
  return Need(peak, sum(map(part, jax.tree.leaves(params))))


def _does_not_fit(one: int | None, limit: int, device: jax.Device) -> str:
  needs = f"{one / 2**30:.2f} GiB" if one else "more than its compiler allows"
  return (
    f"one task needs {needs} and {device} may use {limit / 2**30:.2f} GiB: set "
    "--config.adapt.chunk, or use fewer views or shots, smaller tasks, a smaller model, bfloat16, "
    "or --config.weight_shards."
  )
