"""SIGTERM and Ctrl-C ask a run to stop at the next safe place instead of killing it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class PreemptedError(Exception):
  """The run was asked to stop, has saved where it is, and can be resumed."""


class Preemption:
  """Whether a stop was asked for."""

  def __init__(self):
    self.name = ""  # of the signal that asked

  def check(self) -> None:
    """Called where nothing would be lost.

    Raises:
      PreemptedError: a stop was asked for.
    """
    if self.name:
      raise PreemptedError(f"stopped by {self.name}; the same command goes on from here.")


@contextmanager
def preemption() -> Iterator[Preemption]:
  """Notes the first signal; a second one acts as if this were not here."""
  asked = Preemption()
  if threading.current_thread() is not threading.main_thread():
    yield asked  # Python delivers signals to the main thread alone
    return
  before = {number: signal.getsignal(number) for number in SIGNALS}

  def restore() -> None:
    for number, handler in before.items():
      signal.signal(number, handler)

  def note(number: int, frame: object) -> None:
    asked.name = signal.Signals(number).name
    restore()

  for number in SIGNALS:
    signal.signal(number, note)
  try:
    yield asked
  finally:
    restore()
