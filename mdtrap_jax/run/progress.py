"""What the person at the terminal sees, and the same as TensorBoard events."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import scalar
from tqdm import tqdm

from mdtrap_jax.run import parallel
from mdtrap_jax.run.directory import WorkDirectory
from mdtrap_jax.statistics import accuracy_of


class EventFile:
  """Scalars for TensorBoard, on the disk when `write` returns.

  tensorboardX's own writer has a thread of its own, which dies of a full disk and leaves the
  run waiting for it.
  """

  def __init__(self, path: Path):
    self._writer = EventsWriter(str(path / "events"))

  def write(self, scalars: Mapping[str, float], step: int) -> None:
    """Writes the finite ones of `scalars` at a step; a full disk raises `OSError`."""
    values = [scalar(tag, value).value[0] for tag, value in scalars.items() if np.isfinite(value)]
    self._writer.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
    self._writer.flush()

  def close(self) -> None:
    """Closes the file; everything is on the disk already."""
    self._writer.close()


class Progress:
  """A bar over episodes that moves with every segment, and scalars in `events/`."""

  def __init__(self, directories: Mapping[str, WorkDirectory], todo: int, steps: int):
    """Starts the bar.

    Args:
      directories: of the run's variants; what they have finished counts in the accuracy.
      todo: episodes still to do.
      steps: `T`, per episode.
    """
    self._directories, self._steps = directories, steps
    self._moved = 0.0  # episodes' worth of steps done here
    self._events = {name: EventFile(d.folder("events")) for name, d in directories.items()}
    total = max(len(d.finished) for d in directories.values())
    total = max(total, self._done() + todo)
    self._bar = tqdm(
      total=total,
      initial=total - todo,
      unit="episode",
      dynamic_ncols=True,
      smoothing=0.05,
      disable=jax.process_index() != 0,
      bar_format="{percentage:3.0f}%|{bar:20}| {desc} [{elapsed}<{remaining}]",
    )
    self._started = time.monotonic()
    self._describe()

  def __enter__(self) -> Progress:
    return self

  def __exit__(self, *exception) -> None:
    self._bar.close()
    for events in self._events.values():
      events.close()

  def stepped(self, episodes: int, steps: int) -> None:
    """Moves the bar: so many episodes have done so many further steps."""
    share = episodes * steps / self._steps
    self._moved += share
    # The shares add up to the total but for rounding, which tqdm would warn of.
    self._bar.update(min(share, self._bar.total - self._bar.n))
    self._describe()

  def finished(self, outcome: Any, rows: int) -> None:
    """Logs a batch whose lines are written; its first `rows` rows are real.

    Args:
      outcome: of the runner; the terms' values, cotangent norms and cosines are logged.
      rows: episodes in the batch.
    """
    self._bar.n = round(self._bar.n)
    for p, (name, directory) in enumerate(self._directories.items()):
      accuracy = accuracy_of(directory.finished.values())
      scalars = {
        "accuracy/mean": accuracy.mean,
        "accuracy/ci95": accuracy.ci95,
        "episodes_per_second": self._rate(),
        "peak_memory_bytes": parallel.peak_memory(),
      }
      for term, state in outcome.terms.items():
        for kind in ("value", "norm", "cosine"):
          scalars[f"{term}/{kind}"] = float(np.mean(getattr(state, kind)[:rows, p]))
      self._events[name].write(scalars, len(directory.finished))
    self._describe()

  def _done(self) -> int:
    return min(len(directory.finished) for directory in self._directories.values())

  def _rate(self) -> float:
    return self._moved / max(time.monotonic() - self._started, 1e-9)

  def _describe(self) -> None:
    parts = [f"{self._done()}/{self._bar.total} episodes"]
    for name, directory in self._directories.items():
      accuracy = accuracy_of(directory.finished.values())
      if accuracy.episodes:
        parts.append(f"{name or 'accuracy'} {accuracy}")
    if self._moved:
      parts.append(f"{self._rate():.3g} episodes/s, {parallel.peak_memory() / 2**30:.1f} GiB")
    failed = max(
      sum(line["status"] != "ok" for line in directory.finished.values())
      for directory in self._directories.values()
    )
    if failed:
      parts.append(f"{failed} failed")
    self._bar.set_description_str(", ".join(parts))
