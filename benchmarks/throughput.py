"""How fast episodes are adapted, and how near that is to what the device can do.

`python -m benchmarks.throughput [--model clip-vit-b16] [--shots 1] [--method svl_ra] …` prints one
JSON object: seconds of each kind of step and of an evaluation, what a whole schedule of the paper
comes to, model FLOP/s beside the device's own rate of matrix products (same precision, same
process), compile time and peak memory. Weights and images are random; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from configs import default
from mdtrap_jax import config as settings
from mdtrap_jax.data.prompts import DEFAULT_TEMPLATE
from mdtrap_jax.data.task import Task
from mdtrap_jax.experiments import finetune
from mdtrap_jax.methods.tuning.choices import make_parameterization
from mdtrap_jax.models.image_stem import ImageConfig
from mdtrap_jax.models.text_stem import TextConfig
from mdtrap_jax.models.vlm import VisionLanguageModel
from mdtrap_jax.run import devices as run_devices
from mdtrap_jax.run import programs as run_programs
from mdtrap_jax.run.place import place

PRODUCTS = 10  # pairs of them in one program


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--model", default="clip-vit-b16", help="a named size")
  parser.add_argument("--shots", type=int, default=1)
  parser.add_argument("--method", default="svl_ra", choices=sorted(default.METHODS))
  parser.add_argument("--tune", default="lora", choices=sorted(default.TUNES))
  parser.add_argument(
    "--episodes", type=int, default=0, help="at once, on all devices together; 0: automatic"
  )
  parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
  parser.add_argument("--steps", type=int, default=3, help="segments timed, of each kind")
  parser.add_argument("--segment", type=int, default=1, help="steps in one")
  return parser.parse_args(argv)


def make_config(arguments: argparse.Namespace) -> Any:
  """The paper's schedule for these arguments."""
  config = default.get_config(f"{arguments.method},{getattr(arguments, 'tune', 'lora')}")
  config.model.name, config.model.random_weights = arguments.model, True
  config.data.shots = arguments.shots
  config.model.dtype = arguments.dtype
  if arguments.dtype == "auto":
    config.model.dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
  return settings.resolve(config)


def random_episodes(config: Any, model: VisionLanguageModel, count: int) -> Task:
  """`count` episodes of noise, `[count, ...]`."""
  rng, size, data = np.random.default_rng(0), model.image.image_size, config.data
  images = lambda n: rng.integers(0, 256, (count, n, size, size, 3), np.uint8)
  labels = lambda n: np.tile(np.repeat(np.arange(data.ways, dtype=np.int32), n), (count, 1))
  text = rng.standard_normal((count, data.ways, model.text.embed_dim))
  names = [f"class {number}" for number in range(data.ways)]
  ids = make_parameterization(config).token_ids(model, names, DEFAULT_TEMPLATE)
  return Task(
    seed=np.zeros(count, np.int32),
    number=np.arange(count, dtype=np.int32),
    support=images(data.ways * data.shots),
    support_labels=labels(data.shots),
    query=images(data.ways * data.queries),
    query_labels=labels(data.queries),
    token_ids=np.broadcast_to(ids[None], (count, *ids.shape)),
    text=text.astype(np.float32),
  )


def encoder_flops(model: VisionLanguageModel, images: int) -> float:
  """Operations of the image blocks' forward pass: products with weights and attention."""
  return _blocks_flops(model.image, images, model.image.tokens)


def _blocks_flops(encoder: ImageConfig | TextConfig, rows: int, tokens: int) -> float:
  products = 2 * (4 * encoder.width**2 + 2 * encoder.width * encoder.mlp_width)
  return rows * encoder.depth * tokens * (products + 4 * tokens * encoder.width)


def product_ceiling(
  model: VisionLanguageModel, rows: int, dtype: str, mesh: jax.sharding.Mesh
) -> float:
  """FLOP/s of all devices' products `[rows, W] × [W, mlp] × [mlp, W]`, the encoder's largest.

  Of random numbers, on which a chip may be slower than on zeros, and many in one program, so
  that neither its start nor the reading of its result counts.
  """
  image = model.image
  kernels = [(image.width, image.mlp_width), (image.mlp_width, image.width)]
  draw = lambda seed, shape: jax.random.normal(jax.random.key(seed), shape, dtype)
  a = run_programs.spread(draw(0, (mesh.size, rows, image.width)), mesh)
  b = [
    run_programs.replicate(draw(1 + n, shape) * shape[0] ** -0.5, mesh)
    for n, shape in enumerate(kernels)
  ]

  def chain(a, b):
    return jax.lax.fori_loop(0, PRODUCTS, lambda _, a: a @ b[0] @ b[1], a)

  product = run_programs.over_tasks(chain, mesh, (True, False))
  seconds = min(timed(lambda: product(a, b)) for _ in range(4))
  return PRODUCTS * 4 * mesh.size * rows * image.width * image.mlp_width / seconds


def timed(call: Callable[[], Any]) -> float:
  """Seconds until the result is there."""
  started = time.perf_counter()
  jax.block_until_ready(call())
  return time.perf_counter() - started


def measure(
  arguments: argparse.Namespace, devices: list[jax.Device] | None = None
) -> dict[str, Any]:
  """Runs the programs of `mdtrap_jax.run.programs` on random episodes and times them.

  Args:
    arguments: of the command line.
    devices: for a given number of episodes; as many as there are episodes when `None`.

  Raises:
    ValueError: the episodes are no multiple of the devices.
  """
  config = make_config(arguments)
  model, params = finetune.load_model(config)
  method = finetune.make_method(config, config.objective.to_dict(), model, logit_scale=100.0)
  if arguments.episodes:
    mesh = run_programs.task_mesh(devices or jax.devices()[: arguments.episodes])
    count = arguments.episodes
    if count % mesh.size:
      raise ValueError(f"--episodes={count}: give a multiple of the {mesh.size} devices.")
  else:
    one = random_episodes(config, model, 1)
    row_shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), one)
    method, mesh, each, _ = place(method, params, row_shapes, {}, most=1024, devices=devices)
    count = each * mesh.size
  phases = method.phases
  params = run_programs.replicate(method.needed(params), mesh)
  programs = run_programs.make_programs(method, mesh, False)
  episodes = run_programs.spread(random_episodes(config, model, count), mesh)

  started = time.perf_counter()
  prepared, state = jax.block_until_ready(programs.prepare(params, episodes, {}))
  jax.block_until_ready(programs.evaluate(params, prepared, state))
  for clean in sorted({phase.clean for phase in phases}):
    state = programs.run[clean](params, prepared, state, 0, 1)
  jax.block_until_ready(state)
  first = time.perf_counter() - started

  seconds = {
    "prepare": timed(lambda: programs.prepare(params, episodes, {})),
    "evaluate": timed(lambda: programs.evaluate(params, prepared, state)),
  }
  for clean in sorted({phase.clean for phase in phases}):
    times = []
    for start in range(1, 1 + arguments.steps * arguments.segment, arguments.segment):
      before = time.perf_counter()
      state = jax.block_until_ready(
        programs.run[clean](params, prepared, state, start, start + arguments.segment)
      )
      times.append((time.perf_counter() - before) / arguments.segment)
    seconds["clean step" if clean else "step"] = statistics.median(times)
  views = prepared.batch.labels.shape[1]
  rows = {
    "step": config.adapt.batch_size or views,
    "clean step": views + prepared.batch.clean_labels.shape[1],
  }
  steps = {"step": 0, "clean step": 0}
  for phase in phases:
    steps["clean step" if phase.clean else "step"] += phase.stop - phase.start
  # Forward, and backward to the activations; frozen weights have no gradient.
  running = method.parameterization.encoders
  classes, length = prepared.token_ids.shape[1:]
  texts = _blocks_flops(model.text, classes, length) if "text" in running else 0
  images = {kind: "image" in running and encoder_flops(model, rows[kind]) for kind in rows}
  flops = count * sum(2 * n * (images[kind] + texts) for kind, n in steps.items())
  in_steps = sum(n * seconds[kind] for kind, n in steps.items() if n)
  schedule = seconds["prepare"] + 6 * seconds["evaluate"] + in_steps
  tokens = count * (rows["step"] * model.image.tokens if "image" in running else classes * length)
  ceiling = product_ceiling(model, tokens // mesh.size, config.model.dtype, mesh)
  return {
    "work": {
      "model": arguments.model,
      "method": arguments.method,
      "tune": arguments.tune,
      "shots": arguments.shots,
      "dtype": config.model.dtype,
      "episodes_at_once": count,
      "steps": config.adapt.steps,
    },
    "seconds": seconds,
    "compile_seconds": first - sum(seconds.values()),
    "schedule_seconds": schedule,
    "steps_per_second": count * config.adapt.steps / in_steps,
    "episodes_per_second": count / schedule,
    "model_flops_per_second": flops / in_steps,
    "product_flops_per_second": ceiling,
    "share_of_ceiling": flops / in_steps / ceiling,
    "peak_memory_bytes": run_devices.peak_memory(),
    "device": f"{mesh.size} × {jax.devices()[0].device_kind}",
    "platform": platform.platform(),
    "versions": {name: version(name) for name in ("jax", "jaxlib", "flax", "optax")},
    "command": "python -m benchmarks.throughput " + " ".join(sys.argv[1:]),
  }


if __name__ == "__main__":
  run_devices.use_cpu_cores()
  print(json.dumps(measure(parse_arguments()), indent=2))
