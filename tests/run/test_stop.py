"""Signals to a command: outside its loop, in it, a second one, and while compiled code runs."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from mdtrap_jax.run import stop
from tests.paths import ROOT


def send(what, *signals, launcher=()):
  """Exit code, lines of stdout after "ready", stderr of a command that gets these signals."""
  process = subprocess.Popen(
    [*launcher, sys.executable, "-m", "tests.run.stopping", what],
    cwd=ROOT,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )
  try:
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signals[0])
    lines = []
    for number in signals[1:]:
      lines.append(process.stdout.readline())
      time.sleep(0.15)  # two at once are taken for one
      process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, "".join(lines) + out, err
  finally:
    process.kill()


@pytest.mark.parametrize(
  ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGHUP, 0)]
)
def test_outside_the_loop_it_ends_with_one_line(number, code):
  line = f"stopped by {number.name}; what was finished is kept.\n"
  assert send("outside", number) == (code, "", line)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
@pytest.mark.parametrize("where", ["compiled", "compiling"])
def test_compiled_code_is_not_waited_for(where, number, code):
  assert send(where, number) == (code, "", f"ended at once by {number.name}.\n")


def test_in_the_loop_it_saves_first():
  line = "stopped by SIGTERM; the same command goes on from here.\n"
  assert send("loop", signal.SIGTERM) == (0, "saving for SIGTERM\n", line)


@pytest.mark.parametrize(
  ("first", "second", "code"),
  [(signal.SIGTERM, signal.SIGTERM, 143), (signal.SIGTERM, signal.SIGINT, 130)],
)
def test_a_second_signal_cuts_the_saving_short(first, second, code):
  err = f"ended at once by {second.name}.\n"
  assert send("saving", first, second) == (code, "saving for SIGTERM\n", err)


def test_a_stop_that_comes_between_two_loops_is_not_lost():
  line = "stopped by SIGINT; the same command goes on from here.\n"
  assert send("study", signal.SIGINT) == (0, "", line)


def test_under_nohup_sighup_stays_ignored():
  ignoring = ("sh", "-c", 'trap "" HUP; exec "$@"', "sh")
  line = "stopped by SIGTERM; what was finished is kept.\n"
  assert send("hangup", signal.SIGTERM, launcher=ignoring) == (0, "", line)


def test_without_a_command_a_second_signal_acts_as_ever():
  handler = signal.getsignal(signal.SIGINT)
  with stop.preemption() as asked:
    assert asked.name == ""
    asked.check()
    os.kill(os.getpid(), signal.SIGINT)
    assert asked.name == "SIGINT"
    with pytest.raises(stop.PreemptedError, match="stopped by SIGINT; the same command goes on"):
      asked.check()
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
  assert signal.getsignal(signal.SIGINT) is handler


def test_other_processes_are_told_and_listened_to():
  told, wish = [], [""]
  with stop.preemption(told.append, lambda: wish[0]) as asked:
    assert asked.name == ""
    wish[0] = "SIGTERM at process 1"
    assert asked.name == "SIGTERM at process 1"
    assert told == []  # they know
    os.kill(os.getpid(), signal.SIGTERM)
    assert asked.name == "SIGTERM"
    assert told == ["SIGTERM"]


def test_threads_get_no_signals_but_can_stop():
  names = []

  def work():
    with stop.handled(), stop.preemption(listen=lambda: "SIGTERM at process 1") as asked:
      names.append(asked.name)

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert names == ["SIGTERM at process 1"]


def test_handlers_are_put_back():
  before = [signal.getsignal(number) for number in stop.SIGNALS]
  with stop.handled():
    assert signal.getsignal(signal.SIGTERM) is not before[0]
  with pytest.raises(SystemExit) as ended, stop.handled():
    os.kill(os.getpid(), signal.SIGTERM)
  assert ended.value.code == 0
  with pytest.raises(ValueError, match="as it is"), stop.handled():
    raise ValueError("as it is")
  assert [signal.getsignal(number) for number in stop.SIGNALS] == before
