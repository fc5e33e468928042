"""One JSON object of what `benchmarks/on_gpu.sh` measured, and how that compares with the goals.

`python -m benchmarks.gather DIR` reads `DIR/order`, the parts' names, and of each part `NAME.json`,
`NAME.code` (its exit code) and `NAME.log`. A part that failed is `{"error": …}`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

# A ratio of our episodes a second to the peer's, a share, or a ratio of seconds a task.
GOALS = {
  "eager_ratio": 4.0,
  "compiled_ratio": 1.5,
  "share_of_ceiling": 0.45,
  "copa_20_way_ratio": 60.0,
}
LOG_LINES = 5  # of a failed part's log that its error holds


def read(folder: Path) -> dict[str, dict[str, Any]]:
  """What each part printed, or its error, in the order in which they ran."""
  return {name: _part(folder, name) for name in (folder / "order").read_text("utf-8").split()}


def _part(folder: Path, name: str) -> dict[str, Any]:
  code = (folder / f"{name}.code").read_text("utf-8").strip()
  try:
    if code == "0":
      return json.loads((folder / f"{name}.json").read_text("utf-8"))
  except ValueError:
    code = "0, but its output is no JSON"
  log = (folder / f"{name}.log").read_text("utf-8", errors="replace").splitlines()
  return {"error": " | ".join(log[-LOG_LINES:]), "exit_code": code}


def summarize(parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
  """The numbers that the goals are about; those of failed parts are left out."""
  ok = {name: part for name, part in parts.items() if "error" not in part}
  counts = {name: part for name, part in ok.items() if name.startswith("episodes_")}
  ours = counts | {name: part for name, part in ok.items() if name == "step"}
  found: dict[str, Any] = {
    "episodes_per_second": {
      str(part["work"]["episodes_at_once"]): part["episodes_per_second"] for part in ours.values()
    },
    "peak_memory_bytes": {
      str(part["work"]["episodes_at_once"]): part["peak_memory_bytes"] for part in ours.values()
    },
  }
  if ours:
    best = max(ours.values(), key=lambda part: part["episodes_per_second"])
    found["best_episodes_at_once"] = best["work"]["episodes_at_once"]
    found["share_of_ceiling"] = best["share_of_ceiling"]
    for side in ("eager", "compiled"):
      if side in ok:
        rate = best["episodes_per_second"]
        found[f"{side}_ratio"] = rate * ok[side]["schedule_seconds"]
  if "heads" in ok:
    found["copa_20_way_ratio"] = ok["heads"]["shapes"]["20-way"]["ratio_to_torch_as_published"]
  if "parity" in ok:
    found["parity"] = ok["parity"]["same"]
  found["goals"] = {
    name: {"goal": goal, "met": found[name] >= goal if name in found else None}
    for name, goal in GOALS.items()
  }
  return found


def graphics_cards() -> list[str]:
  """What the driver says of them."""
  if not shutil.which("nvidia-smi"):
    return []
  query = "--query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm"
  command = ["nvidia-smi", query, "--format=csv,noheader"]
  return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()


def main() -> None:
  """Prints the object."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("folder", type=Path)
  parts = read(parser.parse_args().folder)
  report = {"cards": graphics_cards(), "summary": summarize(parts), "parts": parts}
  print(json.dumps(report, indent=2))


if __name__ == "__main__":
  main()
