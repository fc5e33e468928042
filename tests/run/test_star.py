"""The star of sockets, its processes played by threads."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mdtrap_jax.run import star
from mdtrap_jax.run.stop import PreemptedError
from tests.paths import ROOT


def free_port():
  with star.listener("127.0.0.1", 0) as door:
    return door.getsockname()[1]


def everywhere(count, work, *, wait=20, counts=None):
  """What `work(star)` returns or raises in each of `count` processes."""
  port = free_port()

  def process(index):
    try:
      own, note = star.meet(
        "127.0.0.1", port, index, (counts or [count] * count)[index], wait=wait, note=f"of {index}"
      )
      assert note == "of 0"
      return work(own)
    except Exception as error:
      return error

  with ThreadPoolExecutor(count) as pool:
    return list(pool.map(process, range(count)))


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


def test_who_does_not_come_is_named_to_those_who_did():
  port = free_port()
  with ThreadPoolExecutor(1) as pool:
    other = pool.submit(star.meet, "127.0.0.1", port, 2, 4, wait=20)
    line = r"2 of 4 processes did not come within 2 s \(missing: 1, 3\): start the same command 4"
    with pytest.raises(star.PeerError, match=line):
      star.meet("127.0.0.1", port, 0, 4, wait=2)
    with pytest.raises(star.PeerError, match=line):
      other.result()
  with pytest.raises(star.PeerError, match=rf"did not answer at 127.0.0.1:{port} within 0.3 s"):
    star.meet("127.0.0.1", port, 1, 2, wait=0.3)


def test_other_counts_and_a_double_index_are_refused():
  outcomes = everywhere(2, lambda own: own, counts=[2, 3])
  for outcome in outcomes:
    assert isinstance(outcome, ValueError)
    assert str(outcome).startswith("process 1 of 3 came to a run of 2: give all the same")
  port = free_port()
  with ThreadPoolExecutor(2) as pool:
    twice = [pool.submit(star.meet, "127.0.0.1", port, 1, 3, wait=20) for _ in range(2)]
    with pytest.raises(ValueError, match="process 1 of 3 came to a run of 3"):
      star.meet("127.0.0.1", port, 0, 3, wait=20)
    for one in twice:
      with pytest.raises(ValueError, match="its own --process_id"):
        one.result()


def test_a_port_in_use_is_one_line():
  with star.listener("127.0.0.1", 0) as door:
    port = door.getsockname()[1]
    with pytest.raises(star.PeerError, match=rf"port {port} of 127.0.0.1 cannot be had \(Address"):
      star.meet("127.0.0.1", port, 0, 2)


def test_strangers_at_the_door_are_ignored():
  port = free_port()
  with ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as strangers:
    run = pool.submit(star.meet, "127.0.0.1", port, 0, 2, wait=20)
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 7 + b"\2[]", b"\0" * 8, b"\0" * 7 + b"\4null"):
      stranger = strangers.enter_context(star.connect("127.0.0.1", port, 20))
      stranger.sendall(data)
      if len(data) < 9:
        stranger.close()
    own, _ = star.meet("127.0.0.1", port, 1, 2, wait=20)
    own.leave(0)
    run.result()[0].leave(0)


def test_what_answers_may_be_no_run_at_all():
  def serve(door):
    link, _ = door.accept()
    link.recv(100)
    link.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    link.close()

  with star.listener("127.0.0.1", 0) as door:
    port = door.getsockname()[1]
    server = threading.Thread(target=serve, args=(door,))
    server.start()
    with pytest.raises(star.PeerError, match=f"127.0.0.1:{port} is no process 0 of this run"):
      star.meet("127.0.0.1", port, 1, 2, wait=5)
    server.join()


def test_machines_that_vanish_are_noticed_by_the_kernel():
  def work(own):
    (link,) = own._links.values()
    option = lambda name: link.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
    own.gather("")
    idle = option("TCP_KEEPIDLE") + option("TCP_KEEPINTVL") * option("TCP_KEEPCNT")
    return link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), idle

  assert all(on and idle <= 60 for on, idle in everywhere(2, work))


@pytest.mark.parametrize(("how", "code"), [("fail", 1), ("stop", 0)])
def test_compiled_code_that_would_hang_is_ended(how, code):
  port = free_port()
  program = (
    "import sys, time; from mdtrap_jax.run import star\n"
    f"own, _ = star.meet('127.0.0.1', {port}, 1, 2)\n"
    "with own.abrupt(): own.gather(''); time.sleep(20)"
  )
  process = subprocess.Popen(
    [sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, text=True
  )
  try:
    own, _ = star.meet("127.0.0.1", port, 0, 2)
    own.gather("")
    getattr(own, how)("a reason")
    line = process.communicate(timeout=10)[1]
  finally:
    process.kill()
  assert process.returncode == code
  assert line.startswith(
    "error: process 0 failed: a reason; " if code else "stopped by a reason at process 0; "
  )


def test_frames_are_plain_data():
  ours, theirs = socket.socketpair()
  with ours, theirs:
    ours.sendall(star._frame(["text", 1, "ü"]))
    assert star._receive(theirs) == ["text", 1, "ü"]
    ours.sendall((1 << 40).to_bytes(8, "big"))
    with pytest.raises(ValueError, match="a message of"):
      star._receive(theirs)
    ours.sendall((2).to_bytes(8, "big") + b"{]")
    with pytest.raises(json.JSONDecodeError):
      star._receive(theirs)
    ours.close()
    with pytest.raises(ConnectionError):
      star._receive(theirs)
