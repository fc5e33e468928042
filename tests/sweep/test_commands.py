"""`mdtrap sweep` as typed; the processes of its cells are stood in for."""

import pytest

from mdtrap_jax.__main__ import main
from mdtrap_jax.sweep import launch
from tests.sweep.fabricated import fabricate, heads_sweep


@pytest.fixture
def sweep(tmp_path, monkeypatch):
  """The command's first words; cells named in `failing` fail."""
  failing = ["copa"]

  def run(cell, folder, held, asked, say):
    say("compiling the step … 18 s")
    if cell.method in failing:
      return "out of memory"
    fabricate(tmp_path / "sweep", cell, [40, 60])
    return ""

  monkeypatch.setattr(launch, "_launch", run)
  words = ["sweep", str(heads_sweep(tmp_path)), f"--workdir={tmp_path / 'sweep'}"]
  return [*words, "--config.episodes=2"], failing


def test_a_sweep_ends_in_a_table_and_says_what_failed(sweep, capsys):
  words, failing = sweep
  assert main([*words, "--status"]) == 1
  assert "holds no sweep" in capsys.readouterr().err
  assert main(words) == 1
  out, err = capsys.readouterr()
  assert "50.00 ± 13.86" in out
  assert err.splitlines() == [
    "toy/leaves/2-shot/seed-0/ncc: 0/2 episodes so far",
    "toy/leaves/2-shot/seed-0/ncc: compiling the step … 18 s",
    "toy/leaves/2-shot/seed-0/copa: 0/2 episodes so far",
    "toy/leaves/2-shot/seed-0/copa: compiling the step … 18 s",
    "toy/leaves/2-shot/seed-0/copa: failed: out of memory",
    "error: 1 of 2 cells failed: toy/leaves/2-shot/seed-0/copa; mdtrap sweep … --status says why.",
  ]
  assert main([*words, "--status"]) == 0
  assert "failed       0/2  out of memory" in capsys.readouterr().out
  failing.clear()
  assert main(words) == 0
  capsys.readouterr()
  assert main([*words, "--table=csv"]) == 0
  assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_part_of_a_sweep(sweep, capsys):
  words, failing = sweep
  failing.clear()
  assert main([*words, "--part=2/2"]) == 0
  assert main([*words, "--status"]) == 0
  assert capsys.readouterr().out.endswith("1 done, 1 open of 2\n")
  assert main([*words, "--part=3/2"]) == 1
  capsys.readouterr()
  assert main([*words, "--config.sweep.methods=('ncc','capo')"]) == 1
  out, err = capsys.readouterr()
  assert "50.00 ± 13.86" in out
  assert "capo: failed: --config.method=capo: choose one of" in err
