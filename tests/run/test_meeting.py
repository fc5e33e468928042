"""Processes that find each other, or do not."""

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mdtrap_jax.run import meeting, star
from tests.run.stars import everywhere, free_port


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
    meeting.place(*given)


def test_places(monkeypatch):
  assert meeting.place() is None
  assert meeting.place("host:1", 1, 0) is None
  assert meeting.place("[::1]:123", 3, 2) == ("::1", 123, 3, 2, None)
  for name in list(os.environ):
    if name.startswith(("SLURM", "OMPI", "JAX_COORDINATOR")):
      monkeypatch.delenv(name)
  with pytest.raises(ValueError, match="nothing tells which processes share this run"):
    meeting.place(detect=True)
  for name, value in {
    "SLURM_JOB_ID": "70000",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
  }.items():
    monkeypatch.setenv(name, value)
  host, port, count, index, devices = meeting.place(detect=True)
  assert (host, count, index, devices) == ("node1", 4, 3, [1])
  assert 1 << 10 < port < 1 << 16


def test_who_does_not_come_is_named_to_those_who_did():
  port = free_port()
  with ThreadPoolExecutor(1) as pool:
    other = pool.submit(meeting.meet, "127.0.0.1", port, 2, 4, wait=20)
    line = r"2 of 4 processes did not come within 2 s \(missing: 1, 3\): start the same command 4"
    with pytest.raises(star.PeerError, match=line):
      meeting.meet("127.0.0.1", port, 0, 4, wait=2)
    with pytest.raises(star.PeerError, match=line):
      other.result()
  with pytest.raises(star.PeerError, match=rf"did not answer at 127.0.0.1:{port} within 0.3 s"):
    meeting.meet("127.0.0.1", port, 1, 2, wait=0.3)


def test_other_counts_and_a_double_index_are_refused():
  outcomes = everywhere(2, lambda own: own, counts=[2, 3])
  for outcome in outcomes:
    assert isinstance(outcome, ValueError)
    assert str(outcome).startswith("process 1 of 3 came to a run of 2: give all the same")
  port = free_port()
  with ThreadPoolExecutor(2) as pool:
    twice = [pool.submit(meeting.meet, "127.0.0.1", port, 1, 3, wait=20) for _ in range(2)]
    with pytest.raises(ValueError, match="process 1 of 3 came to a run of 3"):
      meeting.meet("127.0.0.1", port, 0, 3, wait=20)
    for one in twice:
      with pytest.raises(ValueError, match="its own --process_id"):
        one.result()


def test_a_port_in_use_is_one_line():
  with meeting.listener("127.0.0.1", 0) as door:
    port = door.getsockname()[1]
    with pytest.raises(star.PeerError, match=rf"port {port} of 127.0.0.1 cannot be had \(Address"):
      meeting.meet("127.0.0.1", port, 0, 2)


def test_strangers_at_the_door_are_ignored():
  port = free_port()
  with ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as strangers:
    run = pool.submit(meeting.meet, "127.0.0.1", port, 0, 2, wait=20)
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 7 + b"\2[]", b"\0" * 8, b"\0" * 7 + b"\4null"):
      stranger = strangers.enter_context(meeting.connect("127.0.0.1", port, 20))
      stranger.sendall(data)
      if len(data) < 9:
        stranger.close()
    own, _ = meeting.meet("127.0.0.1", port, 1, 2, wait=20)
    own.leave(0)
    run.result()[0].leave(0)


def test_what_answers_may_be_no_run_at_all():
  def serve(door):
    link, _ = door.accept()
    link.recv(100)
    link.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    link.close()

  with meeting.listener("127.0.0.1", 0) as door:
    port = door.getsockname()[1]
    server = threading.Thread(target=serve, args=(door,))
    server.start()
    with pytest.raises(star.PeerError, match=f"127.0.0.1:{port} is no process 0 of this run"):
      meeting.meet("127.0.0.1", port, 1, 2, wait=5)
    server.join()
