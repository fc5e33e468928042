"""How many tasks are adapted at once, and on which devices."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from absl import logging
from jax.sharding import Mesh

from mdtrap_jax.data.task import Task
from mdtrap_jax.methods.method import Method
from mdtrap_jax.run.devices import MEMORY_SHARE, memory_limit, size_in_bytes
from mdtrap_jax.run.needs import Need, bytes_needed
from mdtrap_jax.run.programs import task_mesh

ATTEMPTS = 3  # at a number of tasks that fits: each may compile for minutes
CAUTION = 0.95  # of the memory that a straight line may fill: another attempt costs more
# Of a GPU's memory beside the weights, what several tasks may fill: a program's temporaries are one
# piece there, and the next batch's images may lie in the middle of what is free.
PIECE = 0.5


class Placement(NamedTuple):
  """Where tasks are adapted."""

  method: Method  # the one asked for, or a smaller one where that does not fit
  mesh: Mesh
  each: int  # tasks at once on each of its devices
  why: str = ""  # so many, for whoever watches


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
  cores as the memory they share allows. Elsewhere it is what fits, which the compiler
  says; see `most_that_fit`. On a GPU several tasks have half of the memory beside the weights
  (`PIECE`), and one all of it. Where not even one fits, the method's smaller forms are tried.

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
  mesh = task_mesh(devices[:shards] if cores else devices, shards)
  room, tasks = (limit // shards, 1) if cores else (limit, most)
  piece = room
  if devices[0].platform == "gpu":
    model = size_in_bytes(params) // shards
    piece = model + int(PIECE * max(room - model, 0))
  guess = 1 if cores else _guess(method, params, task, variants, shards, piece)
  while True:
    needed = functools.cache(functools.partial(bytes_needed, method, params, task, weights, mesh))
    each, need = most_that_fit(needed, piece, tasks, guess)
    if not each and piece < room:
      each, need = most_that_fit(needed, room, 1, 1)
    if each:
      break
    method, guess = None if fixed else _smaller(method, task, need, room), 1
    if method is None:
      raise MemoryError(_does_not_fit(need.peak, room, devices[0]))
    logging.warning(
      "one task does not fit into %s: trying with less encoded at a time.", devices[0]
    )
  if cores:  # they share the memory
    devices = devices[: limit // (need.peak * shards) * shards]
    mesh = task_mesh(devices, shards)
  why = f"{need.peak / 2**30:.2f} of {room / 2**30:.2f} GiB on each"
  return Placement(method, mesh, each, why)


def halved(placement: Placement, error: jax.errors.JaxRuntimeError) -> Placement:
  """Half as many tasks at once, for when the memory was not enough after all.

  What programs need is known before they run, but not how much of the memory is free in one piece,
  or taken by another process.

  Args:
    placement: of the batch that failed.
    error: with which it failed.

  Raises:
    jax.errors.JaxRuntimeError: `error`, if it is about something else or a single task.
  """
  if "RESOURCE_EXHAUSTED" not in str(error) or placement.each == 1:
    raise error
  logging.warning(
    "%d tasks at once did not fit into the memory that is free on each device: going on with half "
    "as many (config.episodes_per_device says how many). %s",
    placement.each,
    str(error).partition("\n")[0],
  )
  return placement._replace(each=placement.each // 2, why="half of what did not fit")


def most_that_fit(
  needed: Callable[[int], Need], limit: int, most: int, guess: int
) -> tuple[int, Need]:
  """How many tasks fit on a device, found with few compilations.

  What tasks need grows as a straight line. So a guess that is too high costs one more
  compilation, or two where what all tasks share besides the weights is large; one that is too
  low costs one more where twice as many would fit, and is good enough where not. Only a
  compiler that names no numbers, or wrong ones, is asked about a single task after that.

  Args:
    needed: compiles for so many tasks.
    limit: in bytes.
    most: tasks that there are; they are dealt out evenly over as many batches as it takes.
    guess: at the number.

  Returns:
    The number, 0 where not even one fits, and what that many need, or one.
  """
  tried: dict[int, Need] = {}
  each = _even(guess, most)
  while each and each not in tried:
    tried[each] = needed(each)
    each = _next(tried, limit, most)
  best = max(filter(functools.partial(_fits, tried, limit), tried), default=0)
  return best, tried[best or min(tried)]


def _fits(tried: dict[int, Need], limit: int, each: int) -> bool:
  return tried[each].peak is not None and tried[each].peak <= limit


def _next(tried: dict[int, Need], limit: int, most: int) -> int:
  """The number to try next; 0 for none."""
  best = max((each for each in tried if _fits(tried, limit, each)), default=0)
  least = min((each for each in tried if not _fits(tried, limit, each)), default=most + 1)
  if len(tried) >= ATTEMPTS or least == 1:
    return 0 if best else 1
  known = {each: need.peak for each, need in tried.items() if need.peak is not None}
  if not known:
    return 1
  known[0] = tried[min(tried)].shared
  (few, low), (many, high) = sorted(known.items())[-2:]
  target = int(few + (CAUTION * limit - low) * (many - few) / max(high - low, 1))
  target = _even(min(target, least - 1), most)
  return target if not best or target >= 2 * best else 0


def _even(each: int, most: int) -> int:
  """As few as make as many batches of `most` tasks; the last batch is filled up otherwise."""
  each = max(1, min(each, most))
  return -(-most // -(-most // each))


def _guess(method, params, task, variants, shards, limit) -> int:
  """How many tasks are likely to fit; 1 where the method does not know."""
  likely = method.work(params, task, variants).likely
  return int((limit - size_in_bytes(params) / shards) / likely) if likely else 1


def _smaller(method: Method, task: Task, need: Need, limit: int) -> Method | None:
  """The largest of a method's smaller forms, half of the form before, that is likely to fit."""
  own = (need.peak or need.shared) - need.shared
  while (method := method.smaller(task)) is not None:
    own /= 2
    if own <= limit - need.shared:
      break
  return method


def _does_not_fit(one: int | None, limit: int, device: jax.Device) -> str:
  needs = f"{one / 2**30:.2f} GiB" if one else "more than its compiler allows"
  return (
    f"one task needs {needs} and {device} may use {limit / 2**30:.2f} GiB: set "
    "--config.adapt.chunk, or use fewer views or shots, smaller tasks, a smaller model, bfloat16, "
    "or --config.weight_shards."
  )
