"""Runs the cells of a sweep one after the other, each in a process of its own.

So a cell that is killed for its memory, or that fails in any way, ends no other; the accelerator's
memory is free again; and any number of such sweeps share the cells of one directory.
"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

from tqdm import tqdm

from mdtrap_jax.run.stop import Preemption, preemption
from mdtrap_jax.sweep import state
from mdtrap_jax.sweep.cells import Cell
from mdtrap_jax.sweep.place import Place

_DETAIL = re.compile(r"[\d-]+ [\d:]+  ")  # indented, as the classes are: in the cell's own log
_LOOK = 0.05  # seconds: below those within which a child takes two signals for one
# (cell, its work directory, descriptors that hold it, asked to stop, says a line) -> why it failed
Launch = Callable[[Cell, str, tuple[int, ...], Preemption, Callable[[str], None]], str]


def run(cells: Sequence[Cell], place: Place, launch: Launch | None = None) -> list[str]:
  """Runs what is not done yet and nobody else runs.

  Args:
    cells: of this process.
    place: of the sweep, claimed.
    launch: runs one cell; a process of its own if not given.

  Returns:
    The names of the cells that failed, here or elsewhere meanwhile.

  Raises:
    PreemptedError: it was asked to stop; the cell under way has saved where it is.
    OSError: the sweep's directory cannot be written.
  """
  launch, started, failed = launch or _launch, time.time(), []
  with preemption() as asked, _Voice(len(cells)) as voice:
    asked.saves = True  # the cell does, and is waited for
    for cell in cells:
      asked.check()
      with place.taken(cell) as held:
        if held is None:
          voice.say(cell, "runs elsewhere")
        elif place.failure(cell).get("when", 0.0) > started:  # to another process
          failed.append(cell.name)
        elif error := _run_cell(cell, place, held, asked, voice, launch):
          asked.check()  # what a stop cut short has not failed
          failed.append(cell.name)
          voice.say(cell, f"failed: {error}")
          place.note(cell, error)
      voice.done()
    asked.check()
  return failed


def _run_cell(cell, place, held, asked, voice, launch) -> str:
  """Why a cell failed; empty if it is done, now or before."""
  try:
    before = state.state_of(place, cell, held=True)
  except (OSError, ValueError) as error:
    return str(error)
  if before.wanted is None:
    return before.note
  if before.name != "done":
    voice.say(cell, f"{before.episodes}/{before.wanted} episodes so far")
    say = lambda line: voice.say(cell, line)
    if error := launch(cell, f"{place.name}/{cell.name}", held, asked, say):
      return error
  place.note(cell, "")
  return ""


def _launch(
  cell: Cell, workdir: str, held: tuple[int, ...], asked: Preemption, say: Callable[[str], None]
) -> str:
  """Runs a cell as `mdtrap run` would, and passes a stop on to it."""
  command = [sys.executable, "-m", "mdtrap_jax", "run", *cell.arguments, f"--workdir={workdir}"]
  lines: list[str] = []

  def relay(stream) -> None:
    for line in stream:
      if line.strip() and not _DETAIL.match(line):
        lines[:] = [*lines[-20:], line.rstrip()]
        say(line.rstrip())

  with subprocess.Popen(
    command,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
    errors="replace",
    pass_fds=held,
  ) as child:
    listener = threading.Thread(target=relay, args=(child.stderr,), daemon=True)
    listener.start()
    told = False
    while (code := _ended(child)) is None:
      if asked.name and not told:
        child.send_signal(signal.SIGTERM)
        told = True
    listener.join()
  if asked.name or code == 0:
    return ""
  errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
  how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
  return errors[-1] if errors else f"{how}; last said: {lines[-1] if lines else 'nothing'}"


def _ended(child: subprocess.Popen) -> int | None:
  with contextlib.suppress(subprocess.TimeoutExpired):
    return child.wait(_LOOK)
  return None


class _Voice:
  """What the person sees: lines that name their cell, and at a terminal a bar over cells."""

  def __init__(self, total: int):
    self._bar = tqdm(
      total=total,
      unit="cell",
      dynamic_ncols=True,
      disable=None,
      bar_format="{n_fmt}/{total_fmt} cells|{bar:20}| {desc} [{elapsed}]",
    )

  def __enter__(self) -> _Voice:
    return self

  def __exit__(self, *exception) -> None:
    self._bar.close()

  def say(self, cell: Cell, line: str) -> None:
    """At a terminal beside the bar, where the next line replaces it, unless it is an error."""
    if self._bar.disable:
      print(f"{cell.name}: {line}", file=sys.stderr, flush=True)
    elif line.startswith(("error", "failed", "runs elsewhere")):
      self._bar.write(f"{cell.name}: {line}", file=sys.stderr)
    else:
      self._bar.set_description_str(f"{cell.name}: {line[:120]}")

  def done(self) -> None:
    """One more cell is done with, however it ended."""
    self._bar.update()
