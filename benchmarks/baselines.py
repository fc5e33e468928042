"""Tasks per second of every baseline on frozen features, against a loop that does one at a time.

`python -m benchmarks.baselines [--seconds 4] [--threads 1] [--methods NAME …]` prints a line a
method and one JSON object. Both sides get the same random tasks (5-way 5-shot, 75 queries, 512-d)
and must agree on the accuracy (but for CLIP-Adapter, which starts at random on either side). The
library's time is that of a run: preparing, all steps, and the accuracy before and after. The sides
take turns, so that a machine shared with others slows both.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from typing import Any

import jax
import numpy as np
import torch

from benchmarks.baselines_torch import LOOPS, SCALE, to_torch
from benchmarks.heads import WIDTH, make_tasks, take_turns
from mdtrap_jax.data.task import Task
from mdtrap_jax.data.tasks import Sizes
from mdtrap_jax.methods.heads import METHODS, make_method
from mdtrap_jax.run import devices
from mdtrap_jax.run.place import place
from mdtrap_jax.run.programs import make_programs, replicate, spread

SIZES = Sizes(5, 25, 75)
TARGET = 20.0  # the loop's seconds to ours
MOST = 128  # tasks at once


def main() -> None:
  """Runs the benchmark and prints its JSON."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--seconds", type=float, default=4, help="for each side and method")
  parser.add_argument(
    "--threads",
    type=int,
    default=1,
    help="of PyTorch; for operations as small as these one is fastest",
  )
  parser.add_argument("--methods", nargs="*", default=list(LOOPS), choices=list(LOOPS))
  arguments = parser.parse_args()
  torch.set_num_threads(arguments.threads)
  devices.use_cpu_cores()
  report: dict[str, Any] = {
    "benchmark": "baselines on frozen features",
    **SIZES._asdict(),
    "width": WIDTH,
    "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
    "platform": platform.platform(),
    "torch_threads": arguments.threads,
    "target_ratio": TARGET,
    "methods": {},
  }
  for name in arguments.methods:
    report["methods"][name] = found = compare(name, arguments.seconds)
    print(
      f"{name:<15} {found['tasks_per_second']:>10.1f} tasks/s, "
      f"loop {found['loop_per_second']:>8.1f} tasks/s, × {found['ratio']:.1f} "
      f"(by processor time × {found['processor_ratio']:.1f})",
      file=sys.stderr,
    )
  print(json.dumps(report, indent=2))


def compare(name: str, seconds: float) -> dict[str, Any]:
  """Times one method on both sides."""
  definition = METHODS[name]
  scale = SCALE if definition.text else None
  method = make_method(name, ways=SIZES.ways, logit_scale=scale)
  projection = np.eye(WIDTH, dtype=np.float32)
  params = {"image": {"stem": {"projection": {"kernel": projection}}}}
  shapes = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), _tasks(name, 1)
  )
  method, mesh, each, _ = place(method, params, shapes, {}, most=MOST)
  count = mesh.size * each
  batch = _tasks(name, count)
  programs, tasks = make_programs(method, mesh, False), spread(batch, mesh)
  needed = replicate(method.needed(params), mesh)

  def ours():
    prepared, state = programs.prepare(needed, tasks, {})
    programs.baseline(needed, prepared, state)
    state = programs.run[False](needed, prepared, state, 0, method.steps)
    return np.asarray(programs.evaluate(needed, prepared, state).accuracy)[:, 0]

  texts = _texts(batch)[0]
  one = {"support": batch.support[0], "support_labels": batch.support_labels[0],
         "query": batch.query[0], "text": texts, "projection": projection}  # fmt: skip
  labels = torch.as_tensor(batch.query_labels[0])

  def loop():
    logits = LOOPS[name](to_torch(one))
    return (logits.argmax(1) == labels).float().mean().item()

  alike = abs(loop() - ours()[0])  # both compiled and warm
  if name != "clip_adapter":
    np.testing.assert_array_less(alike, 0.03)
  timings = take_turns({"ours": (ours, count), "loop": (loop, 1)}, seconds)
  times = {side: statistics.median(t.seconds for t in rows) for side, rows in timings.items()}
  busy = {
    side: statistics.median(t.processor_seconds for t in rows) for side, rows in timings.items()
  }
  return {
    "tasks_at_once": count,
    "steps": method.trained,
    "tasks_per_second": 1 / times["ours"],
    "loop_per_second": 1 / times["loop"],
    "ratio": times["loop"] / times["ours"],
    "processor_seconds_per_task": busy["ours"],
    "loop_processor_seconds_per_task": busy["loop"],
    "processor_ratio": busy["loop"] / busy["ours"],
  }


def _texts(tasks: Task) -> np.ndarray:
  """One text a class, `[E, C, D]`: near its images, and off them."""
  member = np.eye(SIZES.ways, dtype=np.float32)[tasks.support_labels]
  means = np.einsum("enc,end->ecd", member, tasks.support) / member.sum(1)[..., None]
  return (means + np.random.default_rng(1).standard_normal(means.shape)).astype(np.float32)


def _tasks(name: str, count: int) -> Task:
  tasks = make_tasks(SIZES, count)
  return tasks._replace(text=_texts(tasks)) if METHODS[name].text else tasks


if __name__ == "__main__":
  main()
