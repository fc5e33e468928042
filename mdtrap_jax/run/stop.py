"""SIGTERM, SIGHUP and Ctrl-C: a run stops at its next safe place, anything else at once.

Exit codes: 0 where a run has saved where it is, and after SIGTERM or SIGHUP elsewhere (nothing is
lost, and the same command goes on); 130 after Ctrl-C elsewhere; 128 + the signal's number where
a second signal cut the saving short.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ECHO = 0.1  # seconds within which a terminal and a launcher may both send the same Ctrl-C


class PreemptedError(Exception):
  """The run was asked to stop, has saved where it is, and can be resumed."""

  def __init__(self, reason: str):
    super().__init__(f"stopped by {reason}; the same command goes on from here.")
    self.reason = reason


class Interrupt(KeyboardInterrupt):
  """A signal came where there is nothing to save; like Ctrl-C it passes `except Exception`."""

  def __init__(self, number: int):
    self.reason = signal.Signals(number).name
    super().__init__(f"stopped by {self.reason}; what was finished is kept.")
    self.code = 130 if number == signal.SIGINT else 0


class Preemption:
  """Whether a stop was asked for, by a signal or by another process of the run."""

  def __init__(self, tell: Callable[[str], None], listen: Callable[[], str]):
    self._own, self._tell, self._listen = "", tell, listen
    self.saves = False  # set once there is something to save: until then nobody need wait for it

  @property
  def name(self) -> str:
    """What asked for the stop: a signal, perhaps at another process; empty if nothing did."""
    if self._own:
      self._tell(self._own)
    return self._own or self._listen()

  def check(self) -> None:
    """Called where nothing would be lost.

    Raises:
      PreemptedError: a stop was asked for.
    """
    if name := self.name:
      raise PreemptedError(name)


class _Command:
  """The signals of one command: a thread sees them even while compiled code runs."""

  def __init__(self, grace: float):
    self.asked: Preemption | None = None  # of the loop, while there is one
    self.name = ""  # of the signal that a loop was asked to stop by
    self._ours, self._theirs = socket.socketpair()
    self._theirs.setblocking(False)
    self._thread = threading.Thread(target=self._watch, args=(grace,), daemon=True)

  def start(self) -> int:
    self._thread.start()
    return signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)

  def close(self) -> None:
    self._theirs.close()
    self._thread.join()
    self._ours.close()

  def _will_save(self) -> bool:
    """Whether a loop looks at the signal soon; one that still compiles would let it wait."""
    return self.asked.saves if self.asked else bool(self.name)

  def _watch(self, grace: float) -> None:
    first, when = None, 0.0
    while True:
      self._ours.settimeout(None if first is None or self._will_save() else grace)
      try:
        numbers = self._ours.recv(64)
      except TimeoutError:
        if self._will_save():  # it has got so far meanwhile
          continue
        _end(first, Interrupt(first).code)
      if not numbers:
        return  # closed: the command has ended by itself
      for number in numbers:
        if number not in SIGNALS:
          continue
        if first is None:
          first, when = number, time.monotonic()
        elif time.monotonic() - when > _ECHO:
          _end(number, 128 + number)


def _end(number: int, code: int) -> None:
  """Ends the process from a thread, whatever the main thread is doing."""
  with contextlib.suppress(OSError, ValueError):  # closed, or a pipe that nobody reads
    sys.stdout.flush()
    line = "\n" if sys.stderr.isatty() else ""  # a bar stands there, unfinished
    print(f"{line}ended at once by {signal.Signals(number).name}.", file=sys.stderr, flush=True)
  os._exit(code)


_COMMAND: contextvars.ContextVar[_Command | None] = contextvars.ContextVar("command", default=None)


@contextlib.contextmanager
def handled(grace: float = 5.0) -> Iterator[None]:
  """Around a whole command: a signal ends it with one line, and no stack of calls.

  A signal raises `Interrupt`, which this turns into the line and the exit code.

  Args:
    grace: seconds for compiled code to return; after them, or at a second signal, the process
      ends where it is.

  Raises:
    SystemExit: a signal came, or a loop was stopped by one (`PreemptedError`).
  """
  if threading.current_thread() is not threading.main_thread():
    yield  # Python delivers signals to the main thread alone
    return
  raised = []

  def interrupt(number: int, frame: FrameType | None) -> None:
    if not raised:  # the second is the thread's
      raised.append(number)
      raise Interrupt(number)

  command = _Command(grace)
  token, wakeup = _COMMAND.set(command), command.start()
  try:
    with _signals(interrupt):
      yield
  except (Interrupt, PreemptedError) as stopped:
    print(stopped, file=sys.stderr, flush=True)
    raise SystemExit(getattr(stopped, "code", 0)) from None
  finally:
    signal.set_wakeup_fd(wakeup)
    _COMMAND.reset(token)
    command.close()


@contextlib.contextmanager
def preemption(
  tell: Callable[[str], None] = lambda reason: None, listen: Callable[[], str] = lambda: ""
) -> Iterator[Preemption]:
  """Around a loop that can save where it is: notes the first signal for it to look at.

  A second signal ends the process at once inside `handled`; without that it acts as if this
  were not here.

  Args:
    tell: passes the name of a signal on to the other processes of the run; may be called often.
    listen: says why those want to stop; empty if they do not.
  """
  asked, command = Preemption(tell, listen), _COMMAND.get()
  if threading.current_thread() is not threading.main_thread():
    yield asked
    return
  with contextlib.ExitStack() as stack:

    def note(number: int, frame: FrameType | None) -> None:
      asked._own = signal.Signals(number).name
      if command is not None:
        command.name = asked._own
      else:
        stack.close()

    if command is not None:
      asked._own = command.name  # came as the loop before this one had just ended
      command.asked = asked
      stack.callback(setattr, command, "asked", None)
    stack.enter_context(_signals(note))
    yield asked


@contextlib.contextmanager
def _signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
  """Sets the handler, but not of signals that are ignored, as under `nohup`."""
  before = {
    number: signal.signal(number, handler)
    for number in SIGNALS
    if signal.getsignal(number) is not signal.SIG_IGN
  }
  try:
    yield
  finally:
    for number, old in before.items():
      signal.signal(number, old)
