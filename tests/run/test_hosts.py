"""Processes that share a run: two or three real ones, and what needs none."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mdtrap_jax.run import hosts, star
from tests.paths import ROOT


@pytest.fixture
def start():
  """Starts `count` processes of hosting.py; they are gone after the test, whatever it does."""
  started = []

  def start(count, what, *arguments):
    with star.listener("localhost", 0) as door:
      port = door.getsockname()[1]
    for index in range(count):
      started.append(
        subprocess.Popen(
          [sys.executable, "-m", "tests.run.hosting", str(port), str(index), str(count), what]
          + [str(argument) for argument in arguments],
          cwd=ROOT,
          env=os.environ | {"XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": str(index + 1)},
          text=True,
          stdout=subprocess.PIPE,
          stderr=subprocess.PIPE,
        )
      )
    return started

  yield start
  for process in started:
    process.kill()
    process.communicate()


def ends(processes):
  """`(exit code, stdout, stderr)` of each."""
  return [
    (process.returncode, out, err)
    for process in processes
    for out, err in [process.communicate(timeout=120)]
  ]


def test_two_processes_from_start_to_end(start, tmp_path):
  for index in range(2):
    (tmp_path / str(index)).mkdir()
  outcomes = ends(start(2, "fine", tmp_path))
  for index, (code, out, err) in enumerate(outcomes):
    assert code == 0, err
    assert "error" not in err.lower()
    assert out.splitlines() == [
      f"{index} 2 {index + 1} 3",  # hosts that are not alike
      "process 1 has config.optimizer.learning_rate=0.1 where process 0 has 0.0: start all with "
      "the same command, data and weights.",
      f"{[[0, 2, 4], [1, 3]][index]} 3.0",
      "[('0', 5000000), ('1', 5000000)]",
      "[(0, 'a'), (1, 'b'), (2, 'b')]",
      "0",
    ]


@pytest.mark.parametrize(("count", "victim"), [(3, 0), (2, 1)])
def test_a_killed_process_ends_the_others_with_a_line(start, count, victim):
  outcomes = ends(start(count, f"killed:{victim}"))
  for index, outcome in enumerate(outcomes):
    if index == victim:
      assert outcome == (-signal.SIGKILL, "", "")
    else:
      folder = "process-1 of its work directory" if victim else "its work directory"
      assert outcome == (
        1,
        "",
        f"error: process {victim} was lost (it or its machine was killed); what it finished is in "
        f"{folder}: run the same command again to go on.\n",
      )


def test_sigterm_to_one_stops_all(start):
  processes = start(2, "loop")
  for process in processes:
    assert process.stdout.readline() == "ready\n"
  processes[1].send_signal(signal.SIGTERM)
  before = time.monotonic()
  outcomes = ends(processes)
  assert time.monotonic() - before < 30  # not minutes
  lines = ("stopped by SIGTERM at process 1; the", "stopped by SIGTERM; the")
  for (code, out, err), line in zip(outcomes, lines, strict=True):
    assert (code, out, err) == (0, "saved\n", f"{line} same command goes on from here.\n")


def test_one_that_fails_is_told_in_its_words(start):
  ours, theirs = ends(start(2, "lost_in_the_loop"))
  assert theirs == (1, "", "error: no space left\non the device\n")
  assert ours == (
    1,
    "saved\n",
    "error: process 1 failed: no space left; what it finished is in process-1 of its work "
    "directory: run the same command again to go on.\n",
  )


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ((None, 2, None), "--coordinator and --process_id must be given too"),
    (("h:1", None, 0), "--num_processes must be given too"),
    (("host", 2, 0), "--coordinator=host must be HOST:PORT of process 0"),
    (("host:", 2, 0), "must be HOST:PORT"),
    ((":1", 2, 0), "must be HOST:PORT"),
    (("host:x", 2, 0), "must be HOST:PORT"),
    (("host:70000", 2, 0), "must be HOST:PORT"),
    (("host:1", 2, 2), "--process_id=2 with --num_processes=2"),
    (("host:1", 2, -1), "counted from 0"),
    (("host:1", 0, 0), "counted from 0"),
  ],
)
def test_arguments_are_checked_before_anything_starts(given, message):
  with pytest.raises(ValueError, match=message):
    hosts.place(*given)


def test_places(monkeypatch):
  assert hosts.place() is None
  assert hosts.place("host:1", 1, 0) is None
  assert hosts.place("[::1]:123", 3, 2) == ("::1", 123, 3, 2, None)
  for name in list(os.environ):
    if name.startswith(("SLURM", "OMPI", "JAX_COORDINATOR")):
      monkeypatch.delenv(name)
  with pytest.raises(ValueError, match="nothing tells which processes share this run"):
    hosts.place(detect=True)
  for name, value in {
    "SLURM_JOB_ID": "70000",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
  }.items():
    monkeypatch.setenv(name, value)
  host, port, count, index, devices = hosts.place(detect=True)
  assert (host, count, index, devices) == ("node1", 4, 3, [1])
  assert 1 << 10 < port < 1 << 16


def test_a_port_in_use_is_found_before_jax_starts():
  with star.listener("localhost", 0) as door:
    port = door.getsockname()[1]
    with (
      pytest.raises(hosts.PeerError, match=f"port {port} of localhost cannot be had"),
      hosts.joined(hosts.place(f"localhost:{port}", 2, 0)),
    ):
      raise AssertionError("joined")


def test_one_process_needs_nobody(tmp_path):
  with hosts.joined(None):
    hosts.agree("config", {"steps": "3"})
    hosts.request_stop("SIGTERM")
    assert hosts.stop_requested() == ""
    assert hosts.gather("text") == ["text"]
    assert hosts.exchange({3: "line"}) == {3: "line"}
    assert (hosts.index(), hosts.count()) == (0, 1)
    assert hosts.share("abc") == ["a", "b", "c"]
    assert hosts.own_directory(tmp_path) == tmp_path
