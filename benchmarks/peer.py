"""The library against a PyTorch + peft loop on the same work, turn by turn in one run.

`python -m benchmarks.peer [--turns 2] [--compiled]` needs the extra `benchmarks` (`pip install -e
".[benchmarks]"`) and prints one JSON object. Each turn is a process of its own, so that memory is
each side's own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any


def turn(module: str, *arguments: str) -> dict[str, Any]:
  """What a benchmark, run as a process of its own, prints."""
  command = [sys.executable, "-m", module, *arguments]
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
  return json.loads(done.stdout)


def main() -> None:
  """Lets the sides take turns and prints each side's best."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--model", default="clip-vit-b16")
  parser.add_argument("--shots", type=int, default=1)
  parser.add_argument("--turns", type=int, default=2)
  parser.add_argument("--steps", type=int, default=3, help="timed, of each kind")
  parser.add_argument("--compiled", action="store_true", help="torch.compile, too")
  parser.add_argument("--episodes", type=int, default=0, help="of ours, at once; 0: automatic")
  arguments = parser.parse_args()
  common = [
    f"--model={arguments.model}",
    f"--shots={arguments.shots}",
    f"--steps={arguments.steps}",
  ]
  sides = {
    "ours": ["benchmarks.throughput", *common, f"--episodes={arguments.episodes}"],
    "eager": ["benchmarks.peer_torch", *common, "--side=eager"],
  }
  if arguments.compiled:
    sides["compiled"] = ["benchmarks.peer_torch", *common, "--side=compiled"]
  results: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
  for _ in range(arguments.turns):
    for name, command in sides.items():
      results[name].append(turn(*command))
      print(name, results[name][-1]["seconds"], file=sys.stderr)

  def seconds(run: dict[str, Any]) -> float:  # of one episode's whole schedule
    return run["schedule_seconds"] / run.get("work", {}).get("episodes_at_once", 1)

  best = {name: min(runs, key=seconds) for name, runs in results.items()}
  ours = best["ours"]
  print(
    json.dumps(
      {
        "best": best,
        "episode_seconds": {name: [seconds(run) for run in runs] for name, runs in results.items()},
        "speed_ratio": {name: seconds(run) / seconds(ours) for name, run in best.items()},
        "memory_ratio": {
          name: ours["peak_memory_bytes"] / run["peak_memory_bytes"] for name, run in best.items()
        },
        "command": "python -m benchmarks.peer " + " ".join(sys.argv[1:]),
      },
      indent=2,
    )
  )


if __name__ == "__main__":
  main()
