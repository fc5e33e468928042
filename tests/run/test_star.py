"""The star of sockets, its processes played by threads."""

import json
import socket
import subprocess
import sys
import time

import pytest

from mdtrap_jax.run import meeting, star
from mdtrap_jax.run.stop import PreemptedError
from tests.paths import ROOT
from tests.run.stars import everywhere, free_port


def test_texts_come_by_index_round_after_round():
  def work(own):
    texts = own.gather(f"{own.index}"), own.gather(big * own.index), own.gather("")
    own.leave()
    return texts

  big = "é\0" * 400_000  # 5 MB of JSON
  assert everywhere(3, work) == [(["0", "1", "2"], ["", big, big + big], [""] * 3)] * 3


def test_a_slow_process_is_waited_for():
  def work(own):
    if own.index == 1:
      time.sleep(0.7)
    return own.gather("x")

  assert everywhere(2, work) == [["x", "x"]] * 2


@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_process_is_named_to_all_others_at_once(victim):
  def work(own):
    own.gather("")
    if own.index == victim:
      links = list(own._links.values())
      own._links.clear()  # a killed process says nothing more
      for link in links:
        link.shutdown(socket.SHUT_RDWR)  # the kernel does
      return None
    before = time.monotonic()
    with pytest.raises(star.PeerError) as caught:
      own.gather("mine")
    assert time.monotonic() - before < 10  # not minutes
    return str(caught.value)

  outcomes = everywhere(3, work)
  folder = "its work directory" if victim == 0 else "process-1 of its work directory"
  for i, outcome in enumerate(outcomes):
    if i != victim:
      assert outcome == (
        f"process {victim} was lost (it or its machine was killed); what it finished is in "
        f"{folder}: run the same command again to go on."
      )


def test_a_failure_travels_in_words():
  def work(own):
    if own.index == 2:
      own.fail("the disk is full.")
      return None
    with pytest.raises(star.PeerError, match=r"^process 2 failed: the disk is full; what it fin"):
      own.gather("")
    with pytest.raises(star.PeerError, match="process 2 failed"):
      own.leave()
    return own.lost

  outcomes = everywhere(3, work)
  assert outcomes[0] == outcomes[1] != ""


def test_texts_given_before_a_failure_still_count():
  def work(own):
    texts = own.gather(f"{own.index}")
    if own.index == 1:
      own.fail("later")
    return texts

  assert everywhere(3, work) == [["0", "1", "2"]] * 3


def test_a_stop_reaches_all_and_ends_who_waits():
  def work(own):
    if own.index == 1:
      own.stop("SIGTERM")
      own.stop("SIGINT")  # the first reason stays
    else:
      with pytest.raises(PreemptedError, match="stopped by SIGTERM at process 1; the same"):
        own.gather("")
    before = time.monotonic()
    own.leave(20)
    assert time.monotonic() - before < 10
    return own.stopped

  assert everywhere(3, work) == ["SIGTERM at process 1"] * 3


def test_who_dies_after_a_stop_is_not_missed():
  def work(own):
    if own.index == 1:
      own.stop("SIGTERM")
      own._close()  # as at a second signal
    else:
      with pytest.raises(PreemptedError):
        own.gather("")
      own.leave(20)
    return own.stopped

  assert everywhere(2, work) == ["SIGTERM at process 1"] * 2


def test_who_leaves_first_waits_for_the_others():
  left = []

  def work(own):
    if own.index == 2:
      time.sleep(0.5)
      left.append("working")
    own.leave()
    left.append(own.index)
    return own.lost

  assert everywhere(3, work) == ["", "", ""]
  assert left[0] == "working"


def test_machines_that_vanish_are_noticed_by_the_kernel():
  def work(own):
    (link,) = own._links.values()
    option = lambda name: link.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
    idle = option("TCP_KEEPIDLE") + option("TCP_KEEPINTVL") * option("TCP_KEEPCNT")
    on = link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    own.gather("")
    return on, idle

  assert all(on and idle <= 60 for on, idle in everywhere(2, work))


@pytest.mark.parametrize(("how", "code"), [("fail", 1), ("stop", 0)])
def test_compiled_code_that_would_hang_is_ended(how, code):
  port = free_port()
  program = (
    "import sys, time; from mdtrap_jax.run import meeting\n"
    f"own, _ = meeting.meet('127.0.0.1', {port}, 1, 2)\n"
    "with own.abrupt(): own.gather(''); time.sleep(20)"
  )
  command = [sys.executable, "-c", program]
  with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
    own, _ = meeting.meet("127.0.0.1", port, 0, 2)
    own.gather("")
    getattr(own, how)("a reason")
    line = process.communicate(timeout=60)[1]
    own._close()
  assert process.returncode == code
  assert line.startswith(
    "error: process 0 failed: a reason; " if code else "stopped by a reason at process 0; "
  )


def test_frames_are_plain_data():
  ours, theirs = socket.socketpair()
  with ours, theirs:
    ours.sendall(star.frame(["text", 1, "ü"]))
    assert star.receive(theirs) == ["text", 1, "ü"]
    ours.sendall((1 << 40).to_bytes(8, "big"))
    with pytest.raises(ValueError, match="a message of"):
      star.receive(theirs)
    ours.sendall((2).to_bytes(8, "big") + b"{]")
    with pytest.raises(json.JSONDecodeError):
      star.receive(theirs)
    ours.close()
    with pytest.raises(ConnectionError):
      star.receive(theirs)
