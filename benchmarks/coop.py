"""Seconds of a step of CoOp on CLIP's text encoder, for some numbers of episodes at once.

`python -m benchmarks.coop [--episodes 1 8] [--ways 5] [--steps 5]` prints one JSON object. A
context that the classes share is computed once; one of each class is computed as all were before
that, and timed in turn with it, step by step. The image encoder, which runs once an episode and
not in steps, is left tiny; its embeddings are as wide as ViT-B/16's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import time
from collections.abc import Callable

import jax

from benchmarks import throughput
from mdtrap_jax import models
from mdtrap_jax.experiments import finetune
from mdtrap_jax.run import devices
from mdtrap_jax.run import programs as run_programs

MODEL = "clip-vit-b16"


def main() -> None:
  """Runs the benchmark and prints its JSON."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--episodes", type=int, nargs="+", default=[1, 8], help="at once")
  parser.add_argument("--ways", type=int, default=5, help="classes of an episode")
  parser.add_argument("--steps", type=int, default=5, help="that are timed")
  arguments = parser.parse_args()
  devices.use_cpu_cores()
  found = {n: measure(n, arguments.ways, arguments.steps) for n in arguments.episodes}
  first = found[arguments.episodes[0]]
  ratios = {n: jax.tree.map(lambda a, b: a / b, own, first) for n, own in found.items()}
  report = {
    "benchmark": f"a step of CoOp, {arguments.ways}-way 1-shot, the text encoder of {MODEL}",
    "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
    "platform": platform.platform(),
    "load": os.getloadavg()[0],
    "seconds": found,
    "times_the_first": ratios,
  }
  print(json.dumps(report, indent=2))


def measure(count: int, ways: int, steps: int) -> dict[str, dict[str, float]]:
  """Median seconds, of a clock and of the processors, of a step of `count` episodes at once."""
  contexts = {"shared": False, "of each class": True}
  step_of = {name: make_step(count, ways, per_class) for name, per_class in contexts.items()}
  seconds = {name: [] for name in contexts}
  for number in range(1 + steps):  # the first compiles
    for name, step in step_of.items():
      before = time.perf_counter(), time.process_time()
      step(number)
      seconds[name].append((time.perf_counter() - before[0], time.process_time() - before[1]))
  median = lambda pairs, which: statistics.median(pair[which] for pair in pairs[1:])
  return {
    name: {"clock": median(pairs, 0), "processors": median(pairs, 1)}
    for name, pairs in seconds.items()
  }


def make_step(count: int, ways: int, per_class: bool) -> Callable[[int], None]:
  """A step of `count` episodes, on as many devices as divide them, after the one before."""
  options = ["--tune=coop", "--method=vlm", f"--model={MODEL}"]
  config = throughput.make_config(throughput.parse_arguments(options))
  config.update_from_flattened_dict({"data.ways": ways, "coop.per_class": per_class})
  model = models.build(MODEL)
  image = dataclasses.replace(model.image, image_size=32, width=64, depth=1, heads=1, mlp_width=64)
  model = dataclasses.replace(model, image=image)
  params = jax.jit(model.init)(jax.random.key(0))
  method = finetune.make_method(config, config.objective.to_dict(), model, logit_scale=100.0)
  size = max(n for n in range(1, jax.device_count() + 1) if count % n == 0)
  mesh = run_programs.task_mesh(jax.devices()[:size])
  programs = run_programs.make_programs(method, mesh, False)
  params = run_programs.replicate(method.needed(params), mesh)
  episodes = run_programs.spread(throughput.random_episodes(config, model, count), mesh)
  prepared, state = programs.prepare(params, episodes, {})

  def step(number):
    nonlocal state
    state = jax.block_until_ready(programs.run[False](params, prepared, state, number, number + 1))

  return step


if __name__ == "__main__":
  main()
