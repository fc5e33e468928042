"""A kill at any moment of `save` leaves the old classifier or the new one."""

import os
import subprocess
import sys

import pytest

from tests.paths import ROOT


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are killed after a fork")
def test_a_kill_leaves_one_of_the_two(tmp_path):
  done = subprocess.run(
    [sys.executable, "-m", "tests.classifier.killing", str(tmp_path)],
    cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  lines = [line.split() for line in done.stdout.splitlines()]
  assert [name for name, _, _ in lines] == ["exchanged", "renamed"]
  for _, kills, finished in lines:
    assert int(kills) > 10
    assert int(finished) > 1  # some were killed after the new one was in its place
