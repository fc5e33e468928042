"""Whether episodes end on this machine's device as they do on its CPU, in float32.

`python -m benchmarks.parity [--config=demo] [--episodes=1]` runs the same episodes by `mdtrap run`
on both, each in a process of its own, with products in full float32 (a GPU's default is TF32), and
prints one JSON object: how far losses and accuracies are apart. The demo needs no network.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from mdtrap_jax.run.lines import read_episodes, read_object

LOSSES = 1e-3  # by how much losses may differ, relative to the larger
DEFAULT = {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}


def main() -> None:
  """Runs both sides and prints the comparison."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--config", default="demo")
  parser.add_argument("--episodes", type=int, default=1)
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    sides = {"device": DEFAULT, "cpu": DEFAULT | {"JAX_PLATFORMS": "cpu"}}
    found = {
      name: run(arguments, Path(folder) / name, environment) for name, environment in sides.items()
    }
  report = compare(found["device"]["episodes"], found["cpu"]["episodes"])
  for name, side in found.items():
    report[name] = side["device"]
  print(json.dumps(report | {"config": arguments.config, "tolerance": LOSSES}, indent=2))


def run(arguments: argparse.Namespace, workdir: Path, environment: dict[str, str]) -> dict:
  """The episodes of one run, of every variant, and the device that it ran on."""
  command = [sys.executable, "-m", "mdtrap_jax", "run", f"--config={arguments.config}"]
  command += [f"--workdir={workdir}", f"--config.episodes={arguments.episodes}"]
  command += ["--config.model.dtype=float32"]
  subprocess.run(command, env=os.environ | environment, stdout=sys.stderr, check=True)
  folders = sorted(path.parent for path in workdir.rglob("episodes.jsonl"))
  return {
    "episodes": [line for folder in folders for line in read_episodes(folder)],
    "device": read_object(folders[0] / "summary.json")["device"],
  }


def compare(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, Any]:
  """How far the lines of two runs are apart.

  Args:
    ours: lines of `episodes.jsonl`.
    theirs: of the same episodes, in the same order.

  Raises:
    ValueError: the episodes or their images are not the same.
  """
  for a, b in zip(ours, theirs, strict=True):
    if any(a[field] != b[field] for field in ("episode", "support", "query")):
      raise ValueError(f"episode {a['episode']} has other images on the CPU.")
  losses = [
    abs(a["losses"][name] - b["losses"][name])
    / max(abs(a["losses"][name]), abs(b["losses"][name]), 1e-6)
    for a, b in zip(ours, theirs, strict=True)
    for name in a["losses"]
  ]
  accuracies = [abs(a["accuracy"] - b["accuracy"]) for a, b in zip(ours, theirs, strict=True)]
  return {
    "episodes": len(ours),
    "largest_relative_difference_of_losses": max(losses),
    "largest_difference_of_accuracy": max(accuracies),
    "same": max(losses) <= LOSSES,
  }


if __name__ == "__main__":
  main()
