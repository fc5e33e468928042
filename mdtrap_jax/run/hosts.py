"""Several processes that share one run: who adapts what, and their results brought together.

Each process adapts its own episodes on its own devices and writes its own files, because
episodes never communicate; only finished lines travel, at the start and at the end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mdtrap_jax.run.directory import WorkDirectory, check_same
from mdtrap_jax.run.lines import read_episodes, read_object


def initialize(
  coordinator: str | None = None, count: int | None = None, index: int | None = None
) -> None:
  """Joins the other processes; must come before JAX computes anything.

  Args:
    coordinator: `host:port` of process 0. TPU pods, Slurm and Open MPI tell this and the rest
      by themselves: leave all three out there.
    count: of processes.
    index: of this process, from 0.

  Raises:
    ValueError: some are given and others not.
  """
  given = [value is not None for value in (coordinator, count, index)]
  if any(given) and not all(given):
    raise ValueError(
      "--coordinator, --num_processes and --process_id belong together: give "
      "all three, or none on a TPU pod or under Slurm."
    )
  jax.distributed.initialize(coordinator, count, index)


def share(episodes: Sequence[int]) -> list[int]:
  """The part of the episodes that this process adapts."""
  return list(episodes)[jax.process_index() :: jax.process_count()]


def own_directory(workdir: Path) -> Path:
  """Where this process writes: the work directory itself, or one inside it."""
  index = jax.process_index()
  return workdir if index == 0 else workdir / f"process-{index}"


def merge(workdir: Path, directories: Mapping[str, WorkDirectory]) -> None:
  """Adds to every process's files the finished episodes of all others.

  Lines that other processes left below `workdir`, when there were more of them, count too.
  """
  for name, directory in directories.items():
    lines = dict(directory.finished)
    for other in sorted(workdir.glob("process-*")):
      path = other / name
      if path != directory.path and (path / "episodes.jsonl").exists():
        check_same(directory.config, read_object(path / "config.json"), path)
        lines |= {line["episode"]: line for line in read_episodes(path)}
    if jax.process_count() > 1:
      lines |= {line["episode"]: line for line in _gather(list(lines.values()))}
    new = [line for number, line in sorted(lines.items()) if number not in directory.finished]
    if new:
      directory.append(new)


def _gather(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """The lines of all processes."""
  text = np.frombuffer(json.dumps(lines).encode(), np.uint8)
  sizes = _all_gather(np.array([text.size], np.int32))
  texts = _all_gather(np.pad(text, (0, int(sizes.max()) - text.size)))
  return [
    line
    for row, size in zip(texts, sizes.ravel(), strict=True)
    for line in json.loads(row[: int(size)].tobytes())
  ]


def _all_gather(row: np.ndarray) -> np.ndarray:
  """`[processes, n]` from each process's `[n]`.

  `multihost_utils.process_allgather` wants the same number of devices in all processes; CPU
  hosts may have different numbers of cores.
  """
  first = {device.process_index: device for device in reversed(jax.devices())}
  mesh = Mesh(np.asarray([first[index] for index in sorted(first)]), ("process",))
  rows = jax.make_array_from_process_local_data(
    NamedSharding(mesh, PartitionSpec("process")), row[None]
  )
  gather = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))
  return np.asarray(gather(rows))


def total(rate: float | None) -> float | None:
  """The sum of all processes' rates."""
  return rate
