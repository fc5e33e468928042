"""A real sweep of two cells, killed and resumed: the same lines as two runs that nobody stops."""

import os
import signal
import subprocess
import sys
import time

import numpy as np

from mdtrap_jax import experiments
from mdtrap_jax.run.lines import read_episodes
from mdtrap_jax.sweep import cells as cell_lists
from mdtrap_jax.sweep import place as places
from mdtrap_jax.sweep import state
from tests.paths import ROOT
from tests.sweep.fabricated import heads_sweep

FIELDS = [("episodes", "600"), ("episodes_per_device", "10"), ("head.steps", "400")]  # 8 batches


def start(config, workdir, *arguments):
  fields = [f"--config.{name}={value}" for name, value in FIELDS]
  command = [sys.executable, "-m", "mdtrap_jax", "sweep", str(config), f"--workdir={workdir}"]
  return subprocess.Popen(
    [*command, *fields, *arguments],
    cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
  )  # fmt: skip


def test_a_killed_sweep_goes_on(tmp_path):
  rng, labels = np.random.default_rng(0), np.repeat(np.arange(4), 12)
  rows = rng.standard_normal((4, 8))[labels] + rng.standard_normal((48, 8))
  features = tmp_path / "features.npz"
  np.savez(features, **{"leaves/labels": labels, "leaves/features": rows.astype(np.float32)})
  config, workdir = heads_sweep(tmp_path, features), tmp_path / "sweep"
  cells = cell_lists.load(str(config), FIELDS)
  lines = workdir / cells[1].name / "episodes.jsonl"
  with start(config, workdir) as process:  # until the second cell, CoPA, has begun
    while process.poll() is None and not (lines.exists() and lines.stat().st_size):
      time.sleep(0.02)
    assert process.poll() is None, process.stderr.read()
    os.killpg(process.pid, signal.SIGKILL)
  assert process.returncode == -signal.SIGKILL
  states = lambda: [state.state_of(places.found(workdir), cell).name for cell in cells]
  deadline = time.monotonic() + 20  # until the kernel has let go of what the killed cell held
  while states()[1] == "running" and time.monotonic() < deadline:
    time.sleep(0.05)
  assert states() == ["done", "begun"]
  with start(config, workdir) as process:
    out, err = process.communicate()
  assert process.returncode == 0, err
  assert "\r" not in err
  assert f"{cells[0].name}: " not in err  # nothing was left to do there
  assert out.startswith("2-shot accuracy in %")
  assert (workdir / "tables" / "table.csv").read_text().count("\n") == 3
  for cell in cells:
    experiments.run(cell.resolve(), tmp_path / "alone" / cell.method)
    assert read_episodes(workdir / cell.name) == read_episodes(tmp_path / "alone" / cell.method)
