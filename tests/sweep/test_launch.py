"""Who runs a cell, what a failure costs, what a stop leaves."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from mdtrap_jax.run.stop import PreemptedError
from mdtrap_jax.sweep import cells as cell_lists
from mdtrap_jax.sweep import launch, state
from mdtrap_jax.sweep import place as places
from tests.sweep.fabricated import fabricate, heads_sweep

SEEDS = "(0,1)"  # four cells


@pytest.fixture
def sweep(tmp_path):
  """A sweep's directory and cells, of two episodes each."""
  fields = [("sweep.seeds", SEEDS), ("episodes", "2")]
  cells = cell_lists.load(str(heads_sweep(tmp_path)), fields)
  return places.claimed(tmp_path / "sweep"), cells


def runner(place, failing=(), note=None):
  """Stands in for a process: fabricates a cell's run, or says why it cannot."""

  def run(cell, folder, held, asked, say):
    assert folder == f"{place.name}/{cell.name}"
    if note is not None:
      note.append(cell.name)
    if cell.name in failing:
      return "no such features"
    fabricate(Path(place.name), cell, [40, 60])
    return ""

  return run


def states(place, cells):
  return [state.state_of(place, cell).name for cell in cells]


def test_a_failed_cell_does_not_end_the_others_and_is_tried_again(sweep, capsys):
  place, cells = sweep
  bad, ran = cells[1].name, []
  assert states(place, cells) == ["open"] * 4
  assert launch.run(cells, place, runner(place, [bad], ran)) == [bad]
  assert ran == [cell.name for cell in cells]
  assert states(place, cells) == ["done", "failed", "done", "done"]
  assert f"{bad}: failed: no such features" in capsys.readouterr().err
  table = state.table(place, cells).splitlines()
  assert table[2].split() == [bad, "failed", "0/2", "no", "such", "features"]
  assert table[-1] == "3 done, 1 failed of 4"
  ran.clear()
  assert launch.run(cells, place, runner(place, note=ran)) == []
  assert ran == [bad]
  assert states(place, cells) == ["done"] * 4


def test_a_cell_that_another_runs_is_left_to_it(sweep, capsys):
  place, cells = sweep
  ran = []
  with place.taken(cells[0]) as held:
    assert held is not None
    about = state.state_of(place, cells[0])
    assert (about.name, f"process {os.getpid()}, since" in about.note) == ("running", True)
    with place.taken(cells[0]) as again:
      assert again is None
    assert launch.run(cells, place, runner(place, note=ran)) == []
  assert ran == [cell.name for cell in cells[1:]]
  assert f"{cells[0].name}: runs elsewhere" in capsys.readouterr().err
  assert states(place, cells) == ["open", "done", "done", "done"]


def test_what_another_found_to_fail_meanwhile_is_not_tried_at_once(sweep):
  place, cells = sweep
  ran = []

  def run(cell, *arguments):
    place.note(cells[2], "out of memory")  # as another process would
    return runner(place, note=ran)(cell, *arguments)

  assert launch.run(cells, place, run) == [cells[2].name]
  assert ran == [cells[0].name, cells[1].name, cells[3].name]


def test_a_stop_is_no_failure_and_ends_the_sweep(sweep):
  place, cells = sweep
  ran = []

  def run(cell, folder, held, asked, say):
    ran.append(cell.name)
    fabricate(Path(place.name), cell, [40], complete=False)
    signal.raise_signal(signal.SIGTERM)
    return "cut short"

  with pytest.raises(PreemptedError, match="SIGTERM"):
    launch.run(cells, place, run)
  assert ran == [cells[0].name]
  assert states(place, cells) == ["begun", "open", "open", "open"]


def test_a_config_that_cannot_be_right_fails_before_anything_runs(sweep, tmp_path):
  place, _ = sweep
  fields = [("episodes", "2"), ("sweep.methods", "('ncc','capo')")]
  cells = cell_lists.load(str(heads_sweep(tmp_path)), fields)
  assert launch.run(cells, place, runner(place)) == [cells[1].name]
  assert "choose one of ncc, url, copa" in state.state_of(place, cells[1]).note


def child(monkeypatch, folder, script):
  """Stands in for Python: what runs a cell is this script, whose last argument is its workdir."""
  path = folder / "python"
  path.write_text(f'#!/bin/bash\nworkdir="${{!#}}"; workdir="${{workdir#--workdir=}}"\n{script}\n')
  path.chmod(0o755)
  monkeypatch.setattr(sys, "executable", str(path))


@pytest.mark.parametrize(
  ("script", "note"),
  [
    ('echo "loading" >&2; echo "error: no such model" >&2; exit 1', "no such model"),
    (
      'echo "begun" >&2; echo "2026-11-26 18:53:18   a class: 20" >&2; kill -9 $$',
      "killed by SIGKILL; last said: begun",
    ),
    ("exit 3", "exit code 3; last said: nothing"),
    # It holds the cell too, so that nobody takes it should the sweep itself be killed.
    ('echo "error: $(readlink /proc/$$/fd/* | grep -c "lock$")" >&2; exit 1', "1"),
    (
      'echo "error: $1 $2 $3 $4 ${workdir##*/}" >&2; exit 1',
      "-m mdtrap_jax run --config=copa:ncc ncc",
    ),
  ],
)  # fmt: skip
def test_a_process_that_fails(sweep, tmp_path, monkeypatch, script, note):
  place, cells = sweep
  child(monkeypatch, tmp_path, script)
  assert launch.run(cells[:1], place) == [cells[0].name]
  assert state.state_of(place, cells[0]).note == note


def test_a_stop_is_passed_on_and_waited_for(sweep, tmp_path, monkeypatch):
  place, cells = sweep
  child(
    monkeypatch, tmp_path,
    'mkdir -p "$workdir"; trap \'echo saved > "$workdir.saved"; exit 0\' TERM\n'
    'touch "$workdir.ready"\n'
    "while :; do sleep 0.02; done",
  )  # fmt: skip
  folder = Path(place.name) / cells[0].name

  def stop():
    while not folder.with_name("ncc.ready").exists():
      time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=stop).start()
  with pytest.raises(PreemptedError, match="SIGTERM"):
    launch.run(cells, place)
  assert folder.with_name("ncc.saved").read_text() == "saved\n"
  assert states(place, cells) == ["open"] * 4
