"""Recordings of the published reference implementation, through the command line."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from tests.flags import flags_of_commands
from tests.paths import ROOT
from tests.replay import __main__ as replay
from tests.replay.check import Check

MIND = sorted((ROOT / "tests" / "golden").glob("mind_*.npz"))


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
  """A recording one of whose numbers is off by a ten-thousandth."""
  path = tmp_path_factory.mktemp("changed") / "mind_changed.npz"
  arrays = dict(np.load(MIND[-1]))
  arrays["cfg/gamma"] = arrays["cfg/gamma"] * (1 + 1e-4)
  np.savez(path, **arrays)
  return path


@pytest.fixture(scope="module")
def done(changed):
  """The exit status and the lines of each recording, from one process for all of them."""
  process = subprocess.run(
    [sys.executable, "-m", "tests.replay", *map(str, [*MIND, changed])],
    cwd=ROOT,
    env=os.environ | {"XLA_FLAGS": flags_of_commands()},
    capture_output=True,
    text=True,
    check=False,
  )
  _, *parts, last = re.split(r"^(?=\S)", process.stdout, flags=re.MULTILINE)
  lines = {path: rest for path, _, rest in (part.partition("\n") for part in parts)}
  assert len(lines) == len(MIND) + 1, process.stdout + process.stderr
  return process.returncode, lines, last


@pytest.mark.parametrize("path", MIND, ids=lambda path: path.stem)
def test_the_method_follows_the_reference_in_float64(done, path):
  lines = done[1][str(path)]
  assert lines.count("  ok\n") == lines.count("\n") == 11, lines
  for name in ("loss_vlm", "loss_ad", "loss_ra", "ra_target", "lora_final", "query_accuracy"):
    assert name in lines


def test_a_changed_number_fails(done, changed):
  code, lines, last = done
  assert code == 1
  failed = [line.split()[0] for line in lines[str(changed)].splitlines() if "FAIL" in line]
  assert any("lora_final" in name for name in failed)
  assert last == f"{len(failed)} FAIL\n"


def test_all_that_agree_exit_with_0(monkeypatch, capsys):
  monkeypatch.setattr(replay, "replay", lambda path: [Check("a", 1e-9, 1e-8)])
  assert replay.main(list(map(str, MIND))) == 0
  assert capsys.readouterr().out.endswith("  ok\nall ok\n")


def test_other_files_are_refused(tmp_path, capsys):
  np.savez(tmp_path / "other.npz", x=np.zeros(3))
  assert replay.main([str(tmp_path / "other.npz")]) == 2
  assert "none of the formats" in capsys.readouterr().out
