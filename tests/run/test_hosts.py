"""Processes that share a run: two or three real ones, and what needs none."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mdtrap_jax import config as settings
from mdtrap_jax.run import hosts, meeting
from mdtrap_jax.run.directory import WorkDirectory
from mdtrap_jax.run.lines import read_episodes
from tests.episodes import small_config
from tests.paths import ROOT


@pytest.fixture
def start():
  """Starts `count` processes of hosting.py; they are gone after the test, whatever it does."""
  started = []

  def start(count, what, *arguments):
    with meeting.listener("localhost", 0) as door:
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


def test_a_run_of_two_until_sigterm_to_one(start, tmp_path):
  for index in range(2):
    (tmp_path / str(index)).mkdir()
  processes = start(2, "run", tmp_path)
  for index, process in enumerate(processes):
    lines = [process.stdout.readline().rstrip() for _ in range(7)]
    assert lines == [
      f"{index} 2 {index + 1} 3",  # hosts that are not alike
      "process 1 has config.optimizer.learning_rate=0.1 where process 0 has 0.0: start all with "
      "the same command, data and weights.",
      f"{[[0, 2, 4], [1, 3]][index]} 3.0",
      "[('0', 5000000), ('1', 5000000)]",
      "[(0, 'a'), (1, 'b'), (2, 'b')]",
      "0",
      "ready",
    ]
  processes[1].send_signal(signal.SIGTERM)
  before = time.monotonic()
  outcomes = ends(processes)
  assert time.monotonic() - before < 30  # not minutes
  whys = ("stopped by SIGTERM at process 1; the", "stopped by SIGTERM; the")
  for (code, out, err), why in zip(outcomes, whys, strict=True):
    assert (code, out) == (0, "saved\n")
    assert err.splitlines()[-1] == f"{why} same command goes on from here."
    assert "Traceback" not in err


def test_process_0_killed_ends_the_others_with_a_line(start):
  killed, *others = ends(start(3, "first_dies"))
  assert killed == (-signal.SIGKILL, "", "")
  line = (
    "error: process 0 was lost (it or its machine was killed); what it finished is in its work "
    "directory: run the same command again to go on.\n"
  )
  assert others == [(1, "", line)] * 2


def test_one_that_fails_is_told_in_its_words(start):
  ours, theirs = ends(start(2, "second_fails"))
  assert theirs == (1, "", "error: no space left\non the device\n")
  assert ours == (
    1,
    "ready\nsaved\n",
    "error: process 1 failed: no space left; what it finished is in process-1 of its work "
    "directory: run the same command again to go on.\n",
  )


def test_a_port_in_use_is_found_before_jax_starts():
  with meeting.listener("localhost", 0) as door:
    port = door.getsockname()[1]
    with (
      pytest.raises(hosts.PeerError, match=f"port {port} of localhost cannot be had"),
      hosts.joined(hosts.place(f"localhost:{port}", 2, 0)),
    ):
      raise AssertionError("joined")


CONFIG = settings.resolve(small_config())


def write_lines(root, numbers, config=CONFIG, **place):
  """What a process of a run leaves."""
  with WorkDirectory(root, config, **place) as directory:
    directory.append({"episode": i, "status": "ok", "accuracy": 0.1 * i} for i in numbers)


@pytest.mark.parametrize("variant", ["", "vlm"])
def test_what_other_processes_left_counts(tmp_path, variant):
  write_lines(tmp_path, [0, 2], variant=variant)
  write_lines(tmp_path, [1, 2], variant=variant, process=1)
  write_lines(tmp_path, [5], variant=variant, process=2)
  with WorkDirectory(tmp_path, CONFIG, variant=variant) as directory:
    hosts.merge(tmp_path, {variant: directory})
    assert sorted(directory.finished) == [0, 1, 2, 5]
    hosts.merge(tmp_path, {variant: directory})  # once
  assert (tmp_path / variant / "episodes.jsonl").read_bytes().count(b"\n") == 4
  assert [line["accuracy"] for line in read_episodes(tmp_path / variant)] == [0.0, 0.1, 0.2, 0.5]


def test_lines_of_another_config_of_another_process_are_not_mixed_in(tmp_path):
  write_lines(tmp_path, [0])
  write_lines(tmp_path, [1], settings.resolve(small_config(lora__rank=3)), process=1)
  before = (tmp_path / "episodes.jsonl").read_bytes()
  with (
    WorkDirectory(tmp_path, CONFIG) as directory,
    pytest.raises(settings.ConfigMismatchError, match=r"process-1 .*lora\.rank: 3 there, 2 here"),
  ):
    hosts.merge(tmp_path, {"": directory})
  assert (tmp_path / "episodes.jsonl").read_bytes() == before


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
