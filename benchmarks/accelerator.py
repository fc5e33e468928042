"""What an accelerator's compiler makes of a run's programs, without an accelerator.

`python -m benchmarks.accelerator --topology=v5e:2x2 --model=clip-vit-b16 --shots=1 --dump=DIR`
compiles the programs that a run on such chips would use, writes their optimized HLO to
`DIR/prepare.txt`, `DIR/step.txt` (the clean phase), `DIR/step_plain.txt` and `DIR/evaluate.txt`,
and prints one JSON object: of each the bytes needed on a chip, the model FLOP, the cycles that
the compiler estimates, and the share of the chip's peak that they come to. TPU programs need
`pip install 'jax[tpu]'`, whose compiler runs on any machine. Estimates of a model, they are no
measurement: good for finding what is slow, and for ratios within one compiler version. A step
compiles for minutes: `--only=step` leaves out the others, `--blocks=2` all image blocks but two.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import throughput
from configs import default
from mdtrap_jax import config as configs
from mdtrap_jax import models
from mdtrap_jax.experiments import finetune
from mdtrap_jax.models import sharding
from mdtrap_jax.models.vlm import VisionLanguageModel
from mdtrap_jax.run.needs import peak_bytes
from mdtrap_jax.run.programs import make_programs, task_mesh

PROGRAMS = ("prepare", "step", "step_plain", "evaluate")
LOGIT_SCALE = 100.0
KERNEL = 2  # times the least that its operations and bytes take: no estimate, a convention
# Set before jax looks for a chip, by `offline`; a machine with chips needs none of it.
ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # without chips, several may compile at once
}


class Chip(NamedTuple):
  """What a chip, or a core where jax calls that a device, can do at most."""

  flop_per_second: float  # of bfloat16 products
  bytes_per_second: float  # of its memory
  hertz: float  # of the clock that the compiler counts in


# Google Cloud's system architecture pages; clocks from the peak and the count of multipliers.
CHIPS = {
  "v5e": Chip(197e12, 819e9, 1.5e9),
  "v5p": Chip(459e12, 2765e9, 1.75e9),
  "v6e": Chip(918e12, 1640e9, 1.75e9),
}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--topology", default="v5e:2x2", help="as libtpu names it")
  parser.add_argument("--model", default="clip-vit-b16", help="a named size")
  parser.add_argument("--shots", type=int, default=1)
  parser.add_argument("--method", default="svl_ra", choices=sorted(default.METHODS))
  parser.add_argument("--episodes", type=int, default=1, help="at once on each chip")
  parser.add_argument("--shards", type=int, default=1, help="chips that hold one copy of weights")
  parser.add_argument("--chips", type=int, default=0, help="of the topology; 0: one copy's")
  parser.add_argument("--chunk", type=int, default=0, help="support rows encoded at once; 0: all")
  parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
  parser.add_argument("--blocks", type=int, default=0, help="of the image encoder; 0: all")
  parser.add_argument("--only", nargs="+", default=PROGRAMS, choices=PROGRAMS, help="programs")
  parser.add_argument("--dump", type=Path, help="directory of the optimized HLO")
  return parser.parse_args(argv)


def offline() -> None:
  """Lets libtpu compile on a machine without chips; must come before jax computes anything."""
  for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])


def build(arguments: argparse.Namespace) -> VisionLanguageModel:
  """The model, with as many image blocks as are asked for."""
  model = models.build(arguments.model)
  depth = arguments.blocks or model.image.depth
  return dataclasses.replace(model, image=dataclasses.replace(model.image, depth=depth))


def lower(arguments: argparse.Namespace) -> dict[str, jax.stages.Lowered]:
  """The programs of a run on as many chips of a topology as are asked for, by name."""
  config = configs.replace(throughput.make_config(arguments), {"adapt.chunk": arguments.chunk})
  model = build(arguments)
  params = jax.eval_shape(
    lambda key: jax.tree.map(lambda leaf: leaf.astype(config.model.dtype), model.init(key)),
    jax.random.key(0),
  )
  method = finetune.make_method(config, config.objective.to_dict(), model, LOGIT_SCALE)
  chips = topologies.get_topology_desc(platform="tpu", topology_name=arguments.topology).devices
  mesh = task_mesh(chips[: arguments.chips or arguments.shards], arguments.shards)

  def laid_out(tree: Any, spec: PartitionSpec) -> Any:
    layout = NamedSharding(mesh, spec)
    return jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout), tree
    )

  params = method.needed(params, arguments.shards)
  params = jax.tree.map(lambda spec, leaf: laid_out(leaf, spec), sharding.specs(params), params)
  batches = PartitionSpec(mesh.axis_names)
  episodes = jax.eval_shape(
    lambda: jax.tree.map(
      jnp.asarray, throughput.random_episodes(config, model, arguments.episodes * mesh.size)
    )
  )
  episodes, weights = laid_out(episodes, batches), finetune.make_weights({"": config})
  programs = make_programs(method, mesh, True)
  prepared, state = laid_out(jax.eval_shape(programs.prepare, params, episodes, weights), batches)
  step = jax.ShapeDtypeStruct((), jnp.int32)
  lowering = {
    "prepare": lambda: programs.prepare.lower(params, episodes, weights),
    "step": lambda: programs.run[True].lower(params, prepared, state, step, step),
    "step_plain": lambda: programs.run[False].lower(params, prepared, state, step, step),
    "evaluate": lambda: programs.evaluate.lower(params, prepared, state),
  }
  return {name: lowering[name]() for name in arguments.only}


def model_flops(arguments: argparse.Namespace) -> dict[str, float]:
  """Operations of each program's image blocks on one chip: forward, and in steps backward."""
  config, model = throughput.make_config(arguments), build(arguments)
  image = model.image
  data, views = config.data, config.adapt.views
  clean = data.ways * data.shots
  each_step = min(config.adapt.batch_size or views * clean, views * clean)
  queries = data.ways * data.queries
  flops = lambda images: throughput.encoder_flops(model, images) * arguments.episodes
  patches = 2 * image.grid**2 * 3 * image.patch_size**2 * image.width
  return {
    "prepare": (views * clean + queries) * patches * arguments.episodes,
    "step": 2 * flops(each_step + clean),
    "step_plain": 2 * flops(each_step),
    "evaluate": flops(queries),
  }


def estimated_cycles(hlo: str, chip: Chip) -> int:
  """Sum of the compiler's `estimated_cycles` over what a program runs.

  A loop counts as often as the constant in its condition says, and once where the number of
  turns is not known, as that of the steps is not. Of a Pallas kernel the compiler knows
  nothing: it counts as `KERNEL` times what its operations or its bytes take at the least.
  """
  computations: dict[str, list[str]] = {}
  entry, name = "", ""
  for line in hlo.splitlines():
    if head := re.match(r"(ENTRY )?%([\w.\-]+) \(", line):
      name = head.group(2)
      computations[name] = []
      entry = name if head.group(1) else entry
    elif name:
      computations[name].append(line)

  def turns(condition: str) -> int:
    constants = re.findall(r"s32\[\]\S* constant\((\d+)\)", "\n".join(computations[condition]))
    return max(map(int, constants), default=1)

  def cost(computation: str) -> int:
    cycles = 0
    for line in computations[computation]:
      if loop := re.search(r"\bwhile\(.*condition=%([\w.\-]+), body=%([\w.\-]+)", line):
        cycles += turns(loop.group(1)) * cost(loop.group(2))
        continue
      if re.search(r"\b(call|conditional)\(", line):
        called = r"(?:to_apply|true_computation|false_computation)=%([\w.\-]+)"
        cycles += sum(map(cost, re.findall(called, line)))
      if own := re.search(r'"estimated_cycles":"(\d+)"', line):
        cycles += int(own.group(1))
      elif "tpu_custom_call" in line:
        flops, moved = (
          int(re.search(rf'"cost_estimate":\{{[^}}]*"{name}":"?(\d+)', line).group(1))
          for name in ("flops", "bytes_accessed")
        )
        seconds = max(flops / chip.flop_per_second, moved / chip.bytes_per_second)
        cycles += round(KERNEL * seconds * chip.hertz)
    return cycles

  return cost(entry)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
  """Compiles the programs; what each of them needs and is estimated to take.

  Args:
    arguments: of the command line; with `dump` the optimized HLO is written there.

  Raises:
    ValueError: the topology's chips are not known here, or do not hold whole copies of weights.
  """
  kind = arguments.topology.partition(":")[0]
  if kind not in CHIPS:
    raise ValueError(f"--topology={arguments.topology}: give one of {sorted(CHIPS)}, as v5e:2x2.")
  if arguments.chips % arguments.shards:
    raise ValueError(
      f"--chips={arguments.chips}: give a multiple of --shards={arguments.shards}, or leave it out."
    )
  flops, report = model_flops(arguments), {}
  chip = CHIPS[kind]
  for name, lowered in lower(arguments).items():
    compiled = lowered.compile()
    hlo = compiled.as_text()
    if arguments.dump:
      arguments.dump.mkdir(parents=True, exist_ok=True)
      (arguments.dump / f"{name}.txt").write_text(hlo, encoding="utf-8")
    cycles = estimated_cycles(hlo, chip)
    report[name] = {
      "bytes_needed": peak_bytes(compiled),
      "model_flop": flops[name],
      "estimated_cycles": cycles,
      "estimated_seconds": cycles / chip.hertz,
      "estimated_share_of_peak": flops[name] / (cycles / chip.hertz * chip.flop_per_second),
    }
  return {
    "work": {
      "topology": arguments.topology,
      "model": arguments.model,
      "image_blocks": build(arguments).image.depth,
      "method": arguments.method,
      "shots": arguments.shots,
      "dtype": arguments.dtype,
      "episodes_on_a_chip": arguments.episodes,
      "chips": arguments.chips or arguments.shards,
      "shards": arguments.shards,
    },
    "programs": report,
    "versions": {name: version(name) for name in ("jax", "jaxlib", "libtpu")},
    "command": "python -m benchmarks.accelerator " + " ".join(sys.argv[1:]),
  }


if __name__ == "__main__":
  offline()
  print(json.dumps(measure(parse_arguments()), indent=2))
