"""What a run says: at a terminal as it is, elsewhere and in `run.log` with the time."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import ml_collections
from absl import logging as absl_logging

from mdtrap_jax import __version__
from mdtrap_jax import config as configs
from mdtrap_jax.objectives.terms import TERMS
from mdtrap_jax.run import claim

PATIENCE = 2.0  # seconds after which what takes long is named
_SHOWN = (
  "method", "data.name", "domains", "data.protocol", "data.ways", "data.shots",
  "data.queries", "adapt.steps", "steps", "batch_size", "episodes", "seed", "seeds", "model.name",
  "model.dtype",
)  # fmt: skip


class Log(logging.Handler):
  """Lines for whoever watches a run, and for whoever asks later how it went.

  While it is open, warnings of the library are in the file too.
  """

  def __init__(self, path: Path | None = None, aloud: bool = True):
    """Opens the file; of a resumed run, its end.

    Args:
      path: of the file; without one, lines go to standard error alone.
      aloud: whether lines go to standard error: of several processes, the first one's do.

    Raises:
      OSError: the file is a link or cannot be opened.
    """
    super().__init__(logging.WARNING)
    self.terminal = sys.stderr.isatty()
    self.bar = False  # whether a bar is drawn at the terminal, which lines would tear
    self._aloud, self._file = aloud, -1
    if path is not None:
      self._file = claim.open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

  def __enter__(self) -> Log:
    absl_logging.get_absl_logger().addHandler(self)
    return self

  def __exit__(self, kind, error, trace) -> None:
    absl_logging.get_absl_logger().removeHandler(self)
    if error is not None:
      self._write(f"ended: {' '.join(str(error).split()) or kind.__name__}")
    if self._file >= 0:
      os.close(self._file)
      self._file = -1

  def say(self, text: str) -> None:
    """Says a text, each of its lines with the time; at a terminal without."""
    self._write(text)
    if self._aloud and not (self.terminal and self.bar):
      print(text if self.terminal else _timed(text), file=sys.stderr, flush=True)

  @contextlib.contextmanager
  def busy(self, what: str) -> Iterator[None]:
    """Around what may take long: names it once it does, and says how long it took."""
    started = time.monotonic()
    timer = threading.Timer(PATIENCE, self.say, [f"{what} …"])
    timer.daemon = True
    timer.start()
    try:
      yield
    finally:
      timer.cancel()
    if (seconds := time.monotonic() - started) > PATIENCE:
      self.say(f"{what} … {seconds:.0f} s")

  def emit(self, record: logging.LogRecord) -> None:
    """Writes a warning to the file; absl brings it to standard error."""
    self._write(f"{record.levelname.lower()}: {record.getMessage()}")

  def _write(self, text: str) -> None:
    if self._file >= 0:
      with contextlib.suppress(OSError):  # a full disk: what matters more will say so
        os.write(self._file, f"{_timed(text)}\n".encode(errors="replace"))


def _timed(text: str) -> str:
  now = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
  return "\n".join(f"{now} {line}" for line in text.splitlines())


def outline(config: ml_collections.ConfigDict) -> str:
  """The fields of a resolved config that say in one line what is run."""
  given = dict(configs.flatten(config))
  fields = [f"{name}={given[name]}" for name in _SHOWN if given.get(name) not in (None, "")]
  objective = config.get("objective", {})
  terms = [
    f"{objective[name].weight:g} {name}"
    for name in TERMS
    if name in objective and objective[name].weight
  ]
  about = f"{config.experiment}: {' '.join(fields)}"
  return f"{about}; loss {' + '.join(terms)}" if terms else about


def versions() -> str:
  """Of this library and of JAX."""
  # A clone that was never installed has no metadata to ask.
  return f"mdtrap_jax {__version__}, jax {version('jax')}"
