"""Small texts between the processes of one run: a star of sockets around process 0.

JAX has a coordination service, but its client ends the process it lives in (SIGABRT, a page of
C++ stack) as soon as process 0 dies or somebody comes too late, and no callback can prevent
that from Python. Here a lost process is an event like any other: the kernel closes the
connections of a killed process at once, and probes those of a machine that has vanished, so a
process that is merely slow is waited for however long it computes.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from mdtrap_jax.run.stop import PreemptedError

_LONGEST = 1 << 30  # bytes of a message
_SILENCE = 30  # seconds after which a machine that answers no probe is lost


class PeerError(OSError):
  """Another process of the run was lost, failed, or never came."""


class Star:
  """The other processes of a run, as one of them sees them. Made by `meeting.meet`.

  Every message reaches all others, those of one sender in their order: process 0 passes on what
  it receives before it acts on it.
  """

  def __init__(self, index: int, count: int, links: dict[int, socket.socket]):
    self.index, self.count = index, count
    self.stopped = ""  # why all are asked to stop
    self.lost = ""  # what happened to the first process that was lost or failed
    self._links = links
    self._turns = {other: threading.Lock() for other in links}  # one sender at a time
    # At the center one message after the other reaches all, from whomever it comes. The others must
    # go on reading while they send, or two long texts would wait for each other.
    self._order = contextlib.nullcontext() if index else threading.Lock()
    self._changed = threading.Condition()
    self._texts: dict[int, dict[int, str]] = {}  # [round][process]
    self._round = 0
    self._gone: set[int] = set()  # that have left as they should
    self._abrupt = self._closed = False
    for other, link in links.items():
      _watch(link)
      threading.Thread(target=self._listen, args=(other, link), daemon=True).start()

  def gather(self, text: str) -> list[str]:
    """The texts of all processes, by index; waits for those that still compute.

    Every process must call it equally often.

    Raises:
      PeerError: a process was lost or failed before it gave its text.
      PreemptedError: all were asked to stop before.
    """
    number, self._round = self._round, self._round + 1
    self._tell("text", self.index, number, text)
    with self._changed:
      texts = self._texts.setdefault(number, {})
      self._wait(lambda: len(texts) == self.count or self.lost or self.stopped)
      if len(texts) == self.count:
        del self._texts[number]
        return [texts[i] for i in range(self.count)]
      if self.stopped:
        raise PreemptedError(self.stopped)
      raise PeerError(self.lost)

  def stop(self, reason: str) -> None:
    """Asks all processes, this one too, to stop at their next safe place."""
    if not self.stopped:
      self._tell("stop", self.index, reason)

  def fail(self, reason: str) -> None:
    """Tells the others why this process ends; closes the connections."""
    self._tell("fail", self.index, reason)
    self._close()

  def leave(self, seconds: float | None = None) -> None:
    """Ends as it should: waits until all others leave too, for process 0 connects them.

    Args:
      seconds: to wait at most.

    Raises:
      PeerError: a process was lost or failed, and nobody had asked to stop.
    """
    self._tell("bye", self.index)
    with self._changed:
      self._wait(lambda: len(self._gone) == self.count or self.lost, seconds)
      lost = self.lost if len(self._gone) < self.count and not self.stopped else ""
    self._close()
    if lost:
      raise PeerError(lost)

  @contextlib.contextmanager
  def abrupt(self) -> Iterator[None]:
    """A lost process or a stop ends this one with a line: for calls that would hang without."""
    with self._changed:
      self._abrupt = True
      self._end_if_abrupt()
    try:
      yield
    finally:
      self._abrupt = False

  def _tell(self, *message: Any) -> None:
    data = frame(message)
    with self._order:
      for other, link in list(self._links.items()):
        self._send(other, link, data)
      self._note(*message)

  def _send(self, other: int, link: socket.socket, data: bytes) -> None:
    with self._turns[other]:
      try:
        link.sendall(data)
      except BaseException as error:  # half of it may have been sent: nothing else can follow
        with contextlib.suppress(OSError):
          link.shutdown(socket.SHUT_RDWR)  # which its listener sees
        if not isinstance(error, OSError):
          raise

  def _listen(self, other: int, link: socket.socket) -> None:
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError):
      while True:
        message = receive(link)
        with self._order:  # who has all texts may fail: that must not overtake the last one here
          self._pass_on(other, message)
          self._note(*message)
    if other not in self._gone:
      with self._order:  # nor may this overtake a text that the others are still being told
        self._pass_on(other, ("lost", other))
        self._note("lost", other)
    link.close()

  def _pass_on(self, sender: int, message: Any) -> None:
    if len(self._links) > 1:
      data = frame(message)
      for other, link in list(self._links.items()):
        if other != sender:
          self._send(other, link, data)

  def _note(self, kind: str, sender: int, *content: Any) -> None:
    with self._changed:
      if kind == "text":
        self._texts.setdefault(content[0], {})[sender] = content[1]
      elif kind == "stop":
        self.stopped = self.stopped or f"{content[0]} at process {sender}"
      elif kind == "bye":
        self._gone.add(sender)
      elif sender not in self._gone and not self._closed:
        what = (
          f"failed: {content[0]}" if kind == "fail" else "was lost (it or its machine was killed)"
        )
        self.lost = self.lost or _explain(sender, what)
      self._end_if_abrupt()
      self._changed.notify_all()

  def _end_if_abrupt(self) -> None:
    if self._abrupt and (self.lost or self.stopped):
      line = f"error: {self.lost}" if self.lost else str(PreemptedError(self.stopped))
      print(line, file=sys.stderr, flush=True)
      os._exit(1 if self.lost else 0)

  def _wait(self, done: Callable[[], Any], seconds: float | None = None) -> None:
    """Until `done()`; in short sleeps, so that Python can deliver signals."""
    end = None if seconds is None else time.monotonic() + seconds
    while not done() and (end is None or time.monotonic() < end):
      self._changed.wait(0.5)

  def _close(self) -> None:
    """What was sent still arrives; the listeners end when the others close too."""
    self._closed = True
    for link in self._links.values():
      with contextlib.suppress(OSError):
        link.shutdown(socket.SHUT_WR)


def _watch(link: socket.socket) -> None:
  """Lets the kernel notice a machine that has vanished without closing its connections."""
  link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 2 * _SILENCE, 0))
  for name, value in (
    ("TCP_KEEPIDLE", _SILENCE // 2),
    ("TCP_KEEPINTVL", _SILENCE // 6),
    ("TCP_KEEPCNT", 3),
    ("TCP_USER_TIMEOUT", 1000 * _SILENCE),
    ("TCP_NODELAY", 1),
  ):
    if hasattr(socket, name):  # not everywhere
      link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def frame(message: Any) -> bytes:
  """JSON after its length; data only, whoever sends it."""
  data = json.dumps(message).encode()
  return len(data).to_bytes(8, "big") + data


def receive(link: socket.socket, longest: int = _LONGEST) -> Any:
  """The next message.

  Raises:
    OSError: the connection has ended.
    ValueError: what came is no message, or more than `longest` bytes.
  """
  size = int.from_bytes(_read(link, 8), "big")
  if size > longest:
    raise ValueError(f"a message of {size} bytes")
  return json.loads(_read(link, size))


def _read(link: socket.socket, size: int) -> bytearray:
  data = bytearray()
  while len(data) < size:
    piece = link.recv(min(size - len(data), 1 << 20))
    if not piece:
      raise ConnectionError("the connection was closed")
    data += piece
  return data


def _explain(process: int, what: str) -> str:
  folder = f"process-{process} of its work directory" if process else "its work directory"
  return (
    f"process {process} {what.rstrip('.')}; what it finished is in {folder}: run the same "
    "command again to go on."
  )
