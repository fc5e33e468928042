"""Tasks per second of CoPA's adaptation, against a plain PyTorch loop on the same tasks.

`python -m benchmarks.heads [--seconds 20] [--threads 2]` prints one JSON object. Both sides adapt
the same random tasks (linear heads, 512-d features, 50 steps) and must agree on the accuracy.
The sides take turns of equal length, so that a machine shared with others slows all alike; beside
seconds the processor time of each is given. The library's time is that of its whole run of a task:
adaptation, accuracy before and after, and both gaps. It takes 6 times `--seconds`, and compiling.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import torch

from benchmarks import heads_torch
from mdtrap_jax.data.task import Task
from mdtrap_jax.data.tasks import Sizes
from mdtrap_jax.methods.heads import make_method
from mdtrap_jax.run import devices
from mdtrap_jax.run.place import place
from mdtrap_jax.run.programs import make_programs, spread

WIDTH, STEPS = 512, 50
SHAPES = {"5-way": Sizes(5, 37, 75), "20-way": Sizes(20, 136, 200)}
TARGETS = {"5-way": 8.0, "20-way": 40.0}  # as_published's seconds to ours
TURN = 1.0  # seconds, at least, that a side runs before the next one does


class Timing(NamedTuple):
  """Of one task."""

  seconds: float
  processor_seconds: float


def main() -> None:
  """Runs the benchmark and prints its JSON."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--seconds", type=float, default=20, help="for each side and shape")
  parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
  arguments = parser.parse_args()
  torch.set_num_threads(arguments.threads)
  torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
  devices.use_cpu_cores()
  report: dict[str, Any] = {
    "benchmark": "CoPA, linear heads",
    "width": WIDTH,
    "steps": STEPS,
    "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
    "platform": platform.platform(),
    "torch_threads": arguments.threads,
    "torch_device": torch.get_default_device().type,
    "versions": {"jax": jax.__version__, "torch": torch.__version__},
  }
  report["shapes"] = {
    name: compare(sizes, arguments.seconds) | {"target_ratio": TARGETS[name]}
    for name, sizes in SHAPES.items()
  }
  report["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  print(json.dumps(report, indent=2))


def compare(sizes: Sizes, seconds: float) -> dict[str, Any]:
  """Times one task shape on all sides."""
  method = make_method("copa", ways=sizes.ways, steps=STEPS)
  shapes = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), make_tasks(sizes, 1)
  )
  method, mesh, each, _ = place(method, None, shapes, {}, most=1000)
  count = mesh.size * each
  batch = make_tasks(sizes, count)
  programs, tasks = make_programs(method, mesh, False), spread(batch, mesh)

  def ours():
    prepared, state = programs.prepare(None, tasks, {})
    programs.baseline(None, prepared, state)
    state = programs.run[False](None, prepared, state, 0, STEPS)
    return np.asarray(programs.evaluate(None, prepared, state).accuracy)[:, 0]

  def alone(loop):
    task = [np.asarray(rows[0]) for rows in batch[:4]]
    return lambda: np.array([loop(task, STEPS)])

  sides = {
    "mdtrap_jax": (ours, count),
    "torch_as_published": (alone(heads_torch.as_published), 1),
    "torch_lean": (alone(heads_torch.lean), 1),
  }
  accuracies = {name: run() for name, (run, _) in sides.items()}  # compiles and warms up
  for name in ("torch_as_published", "torch_lean"):
    np.testing.assert_allclose(accuracies[name][0], accuracies["mdtrap_jax"][0], atol=0.02)
  timings = take_turns(sides, seconds)
  times = {name: statistics.median(t.seconds for t in rows) for name, rows in timings.items()}
  result: dict[str, Any] = {**sizes._asdict(), "tasks_at_once": count}
  for name, rows in timings.items():
    result[name] = {
      "seconds_per_task": times[name],
      "tasks_per_second": 1 / times[name],
      "processor_seconds_per_task": statistics.median(t.processor_seconds for t in rows),
      "fastest": min(t.seconds for t in rows),
      "slowest": max(t.seconds for t in rows),
    }
  for name in ("torch_as_published", "torch_lean"):
    result[f"ratio_to_{name}"] = times[name] / times["mdtrap_jax"]
  return result


def make_tasks(sizes: Sizes, count: int) -> Task:
  """Random tasks with class structure, `[count, ...]`."""
  rng = np.random.default_rng(0)
  centers = rng.standard_normal((count, sizes.ways, WIDTH))

  def rows(size):
    labels = np.tile(np.arange(size) % sizes.ways, (count, 1)).astype(np.int32)
    noise = 4 * rng.standard_normal((count, size, WIDTH))
    own = np.take_along_axis(centers, labels[..., None], axis=1)
    return (own + noise).astype(np.float32), labels

  numbers = np.arange(count, dtype=np.int32)
  return Task(*rows(sizes.support), *rows(sizes.query), np.zeros_like(numbers), numbers)


def take_turns(
  sides: dict[str, tuple[Callable[[], Any], int]], seconds: float
) -> dict[str, list[Timing]]:
  """Runs the sides in turns of a second or one run until each has had its time."""
  timings: dict[str, list[Timing]] = {name: [] for name in sides}
  spent = dict.fromkeys(sides, 0.0)
  while min(spent.values()) < seconds:
    for name, (run, tasks) in sides.items():
      turn = 0.0
      while turn < min(TURN, seconds):
        wall, processor = time.perf_counter(), time.process_time()
        run()
        elapsed = time.perf_counter() - wall
        timings[name].append(Timing(elapsed / tasks, (time.process_time() - processor) / tasks))
        turn += elapsed
      spent[name] += turn
  return timings


if __name__ == "__main__":
  main()
