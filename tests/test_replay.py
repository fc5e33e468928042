"""Recordings of the published reference implementation, through the command line."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.flags import flags_of_commands
from tests.paths import ROOT

MIND = sorted((ROOT / "tests" / "golden").glob("mind_*.npz"))


def replay(*paths):
  return subprocess.run(
    [sys.executable, "-m", "tests.replay", *map(str, paths)],
    cwd=ROOT,
    env=os.environ | {"XLA_FLAGS": flags_of_commands()},
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.parametrize("path", MIND, ids=lambda path: path.stem)
def test_the_method_follows_the_reference_in_float64(path):
  done = replay(path)
  assert done.returncode == 0, done.stdout + done.stderr
  assert done.stdout.count("  ok\n") == 11
  for name in ("loss_vlm", "loss_ad", "loss_ra", "ra_target", "lora_final", "query_accuracy"):
    assert name in done.stdout


def test_a_changed_number_fails(tmp_path):
  arrays = dict(np.load(MIND[-1]))
  arrays["cfg/gamma"] = arrays["cfg/gamma"] * (1 + 1e-4)
  np.savez(tmp_path / "mind_changed.npz", **arrays)
  done = replay(tmp_path / "mind_changed.npz")
  assert done.returncode == 1
  assert "lora_final" in done.stdout
  assert "FAIL" in done.stdout


def test_other_files_are_refused(tmp_path):
  np.savez(tmp_path / "other.npz", x=np.zeros(3))
  done = replay(tmp_path / "other.npz")
  assert done.returncode == 2
  assert "none of the formats" in done.stdout
