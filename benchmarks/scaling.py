"""What twice as many episodes, shots or steps cost, and what mapping over episodes gains.

`python -m benchmarks.scaling [--model miniature]` prints one JSON object. All is measured in one
process, in turns, and the best of each is taken. Doubling should at most double the time (with
10 % of slack) on the same devices; one episode at a time is the same work on one device, which on
a CPU may use all cores.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import jax

from benchmarks.throughput import measure, parse_arguments
from mdtrap_jax.run.devices import use_cpu_cores

SLACK = 1.1


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--model", default="miniature")
  parser.add_argument("--episodes", type=int, default=4)
  parser.add_argument("--turns", type=int, default=2)
  arguments = parser.parse_args()
  use_cpu_cores()

  devices = jax.devices()[: arguments.episodes]

  def seconds(episodes: int, shots: int = 1, segment: int = 4) -> float:
    """Of one segment of a batch."""
    run = measure(
      parse_arguments(
        [
          f"--model={arguments.model}",
          f"--episodes={episodes}",
          f"--shots={shots}",
          f"--segment={segment}",
        ]
      ),
      None if episodes == 1 else devices,
    )
    return segment * run["seconds"]["clean step"]

  count = arguments.episodes
  settings: dict[str, dict[str, Any]] = {
    "base": {"episodes": count},
    "one episode": {"episodes": 1},
    "twice the episodes": {"episodes": 2 * count},
    "twice the shots": {"episodes": count, "shots": 2},
    "twice the steps": {"episodes": count, "segment": 8},
  }
  times: dict[str, list[float]] = {name: [] for name in settings}
  for _ in range(arguments.turns):
    for name, values in settings.items():
      times[name].append(seconds(**values))
  best = {name: min(values) for name, values in times.items()}
  ratios = {name: best[name] / best["base"] for name in best if name.startswith("twice")}
  print(
    json.dumps(
      {
        "model": arguments.model,
        "episodes": count,
        "seconds": times,
        "ratios": ratios,
        "at_most_doubled": {name: ratio <= 2 * SLACK for name, ratio in ratios.items()},
        "vmapped_to_one_at_a_time": count * best["one episode"] / best["base"],
        "command": "python -m benchmarks.scaling " + " ".join(sys.argv[1:]),
      },
      indent=2,
    )
  )


if __name__ == "__main__":
  main()
