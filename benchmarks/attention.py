"""Bundles of instructions that libtpu makes of the attention kernel, without a TPU.

`python -m benchmarks.attention --topology=v5e:2x2 --tokens=197 --width=768 --heads=12` compiles
the kernel forward and backward and prints one JSON object: how many bundles an image takes of
each, and how much of them each unit is busy. A bundle is issued in a cycle; waits for memory are
not in it, and of more tokens than the kernel takes at once a loop's bundles count once. With
`--time` it says how many processor seconds compiling takes, and writes no bundles down, which
takes longer. Needs `pip install 'jax[tpu]'`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from benchmarks import accelerator
from mdtrap_jax import models
from mdtrap_jax.models.attention_kernel import WHOLE
from mdtrap_jax.models.fused_attention import fused_attention

IMAGES = 30  # of a 1-shot step; the kernel's code is the same for any number
ROWS = 8  # of a tile, to which tokens are filled up


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--topology", default="v5e:2x2", help="as libtpu names it")
  parser.add_argument("--tokens", type=int, default=197)
  parser.add_argument("--width", type=int, default=768)
  parser.add_argument("--heads", type=int, default=12)
  parser.add_argument("--causal", action="store_true")
  parser.add_argument("--rope", metavar="MODEL", help="a named size whose rotary positions to take")
  parser.add_argument("--time", action="store_true", help="of compiling, in place of bundles")
  return parser.parse_args(argv)


def busy(text: str) -> dict[str, float]:
  """Of each unit, the share of its slots in use, from libtpu's list of what each bundle uses."""
  lines = text.splitlines()
  head = next(i for i, line in enumerate(lines) if line.startswith("MXU"))
  units = [unit.strip() for unit in lines[head].split(",")]
  slots = [int(number) for number in lines[head + 1].split()]
  rows = [list(map(int, line.split())) for line in lines[head + 2 :] if line[:1].isdigit()]
  used = map(sum, zip(*rows, strict=True))
  return {
    unit: round(count / (slot * len(rows)), 2)
    for unit, slot, count in zip(units, slots, used, strict=True)
  }


def measure(arguments: argparse.Namespace, dump: Path) -> dict[str, object]:
  """Compiles both directions; what libtpu wrote of them to `dump`, where it was told to."""
  device = topologies.get_topology_desc(
    platform="tpu", topology_name=arguments.topology
  ).devices[0]  # fmt: skip
  rope = models.build(arguments.rope).image.block.rope if arguments.rope else None
  rows = -(-arguments.tokens // ROWS) * ROWS
  array = lambda width: jax.ShapeDtypeStruct(
    (IMAGES, rows, width), jnp.bfloat16, sharding=SingleDeviceSharding(device)
  )

  def both(qkv, cotangent):
    static = (arguments.tokens, arguments.heads, arguments.causal, rope, False)
    out, pull_back = jax.vjp(lambda qkv: fused_attention(qkv, *static), qkv)
    return out, pull_back(cotangent)[0]

  lowered = jax.jit(both).lower(array(3 * arguments.width), array(arguments.width))
  start = time.process_time()
  lowered.compile()
  seconds, kernels = time.process_time() - start, {}
  for path in sorted(dump.glob("*-schedule-analysis_final_bundles.txt")):
    if "tpu_custom_call" not in (text := path.read_text(encoding="utf-8")):
      continue
    name = path.name.split("-")[1]
    (units,) = dump.glob(f"*-{name}-*[0-9]-final_hlo-static-per-bundle-utilization.txt")
    kernels["backward" if "transpose" in name else "forward"] = {
      "bundles": int(re.search(r"total scheduled bundles:\s+(\d+)", text).group(1)),
      "busy": busy(units.read_text(encoding="utf-8")),
    }
  return {
    "work": vars(arguments) | {"in_one_piece": arguments.tokens <= WHOLE},
    "kernels": kernels,
    "processor_seconds": round(seconds, 1),
    "versions": {name: version(name) for name in ("jax", "jaxlib", "libtpu")},
  }


if __name__ == "__main__":
  options = parse_arguments()
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    if not options.time:
      os.environ["LIBTPU_INIT_ARGS"] = (  # which libtpu reads when it is loaded
        f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
      )
    accelerator.offline()
    print(json.dumps(measure(options, Path(folder)), indent=2))
