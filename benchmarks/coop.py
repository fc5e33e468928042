"""Seconds of a step of CoOp on CLIP's text encoder, for some numbers of episodes at once.

`python -m benchmarks.coop [--episodes 1 8] [--steps 5]` prints one JSON object. The image encoder,
which runs once an episode and not in steps, is left tiny; its embeddings are as wide as ViT-B/16's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import time

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
  parser.add_argument("--steps", type=int, default=5, help="that are timed")
  arguments = parser.parse_args()
  devices.use_cpu_cores()
  found = {count: measure(count, arguments.steps) for count in arguments.episodes}
  first = found[arguments.episodes[0]]
  report = {
    "benchmark": f"a step of CoOp, 5-way 1-shot, the text encoder of {MODEL}",
    "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
    "platform": platform.platform(),
    "load": os.getloadavg()[0],
    "seconds": found,
    "times_the_first": {count: seconds / first for count, seconds in found.items()},
  }
  print(json.dumps(report, indent=2))


def measure(count: int, steps: int) -> float:
  """Median seconds of a step of `count` episodes, on as many devices as divide them."""
  options = ["--tune=coop", "--method=vlm", f"--model={MODEL}"]
  config = throughput.make_config(throughput.parse_arguments(options))
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
  seconds = []
  for step in range(1 + steps):  # the first compiles
    before = time.perf_counter()
    state = jax.block_until_ready(programs.run[False](params, prepared, state, step, step + 1))
    seconds.append(time.perf_counter() - before)
  return statistics.median(seconds[1:])


if __name__ == "__main__":
  main()
