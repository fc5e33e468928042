"""The script for a GPU: its shell parses, parts fail alone, and what it says of the goals."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gather, parity

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "on_gpu.sh"
FAKE = """#!/bin/sh
case "$*" in
  *benchmarks.gather*) exec {python} "$@" ;;
  *benchmarks.parity*) sleep 60 ;;
  *--episodes=2*) echo "RESOURCE_EXHAUSTED: no room" >&2; exit 1 ;;
  *benchmarks.throughput*) cat {folder}/throughput.json ;;
  *"import torch"*) exit 1 ;;
esac
"""


def run_of(episodes, rate, share=0.5):
  return {
    "work": {"episodes_at_once": episodes},
    "episodes_per_second": rate,
    "share_of_ceiling": share,
    "peak_memory_bytes": 7,
  }


@pytest.fixture
def python(tmp_path):
  """In place of Python: answers at once what the benchmarks would measure."""
  (tmp_path / "throughput.json").write_text(json.dumps(run_of(8, 2.0)))
  fake = tmp_path / "python"
  fake.write_text(FAKE.format(python=sys.executable, folder=tmp_path))
  fake.chmod(0o755)
  return fake


def test_the_shell_parses():
  subprocess.run(["bash", "-n", SCRIPT], check=True)
  assert os.access(SCRIPT, os.X_OK)


def test_parts_fail_alone_and_one_object_comes_out(python, tmp_path):
  command = [SCRIPT, f"--python={python}", "--episodes=2 4", "--limit=6"]
  command += [f"--parts={tmp_path / 'parts'}"]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  parts = json.loads(done.stdout)["parts"]
  names = ["step", "eager", "heads", "parity", "episodes_2", "episodes_4", "compiled"]
  assert list(parts) == names
  assert parts["step"] == run_of(8, 2.0)
  assert parts["parity"]["error"] == "out of time"  # it took all that was left of 6 seconds
  assert {parts[name]["error"] for name in ("episodes_2", "episodes_4")} == {"out of time"}
  assert "torch or peft is missing" in parts["eager"]["error"]
  assert done.stderr.count("eager is left out: torch or peft is missing") == 1


@pytest.mark.parametrize("option", ["--speed=1", "--parts=."])
def test_wrong_options(option, tmp_path):
  (tmp_path / "kept").touch()
  option = option.replace("=.", f"={tmp_path}")
  done = subprocess.run([SCRIPT, option], capture_output=True, text=True)
  assert done.returncode == 2
  assert done.stderr.startswith("error: ")
  assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def write_part(folder, name, code, output="", log=""):
  with open(folder / "order", "a", encoding="utf-8") as order:
    order.write(f"{name}\n")
  for suffix, text in (("code", code), ("json", output), ("log", log)):
    (folder / f"{name}.{suffix}").write_text(str(text), encoding="utf-8")


def test_goals_are_judged_by_the_best_of_our_runs(tmp_path):
  write_part(tmp_path, "step", 0, json.dumps(run_of(8, 2.0, 0.46)))
  write_part(tmp_path, "episodes_1", 0, json.dumps(run_of(1, 0.5)))
  write_part(tmp_path, "episodes_16", 1, log="a\nRESOURCE_EXHAUSTED: no room")
  write_part(tmp_path, "eager", 0, json.dumps({"schedule_seconds": 1.5}))
  write_part(tmp_path, "compiled", 0, "no JSON")
  heads = {"shapes": {"20-way": {"ratio_to_torch_as_published": 61.0}}}
  write_part(tmp_path, "heads", 0, json.dumps(heads))
  parts = gather.read(tmp_path)
  assert parts["episodes_16"] == {"error": "a | RESOURCE_EXHAUSTED: no room", "exit_code": "1"}
  found = gather.summarize(parts)
  assert found["episodes_per_second"] == {"8": 2.0, "1": 0.5}
  assert (found["best_episodes_at_once"], found["eager_ratio"]) == (8, 3.0)
  met = {name: goal["met"] for name, goal in found["goals"].items()}
  assert met == {
    "eager_ratio": False,  # 3 of 4
    "compiled_ratio": None,  # not measured
    "share_of_ceiling": True,
    "copa_20_way_ratio": True,
  }


def line(loss, **changes):
  same = {"episode": 0, "support": [1], "query": [2], "accuracy": 0.5, "losses": {"vlm": loss}}
  return same | changes


def test_parity_is_the_largest_difference():
  found = parity.compare([line(1.0), line(2.0)], [line(1.0), line(2.001, accuracy=0.75)])
  assert found["largest_relative_difference_of_losses"] == pytest.approx(0.001 / 2.001)
  assert found["largest_difference_of_accuracy"] == 0.25
  assert found["same"]
  assert not parity.compare([line(1.0)], [line(1.01)])["same"]
  with pytest.raises(ValueError, match="episode 0 has other images"):
    parity.compare([line(1.0)], [line(1.0, query=[3])])
