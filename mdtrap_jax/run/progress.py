"""What the person at the terminal sees, and the same as TensorBoard events."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import scalar
from tqdm import tqdm

from mdtrap_jax.run import hosts
from mdtrap_jax.run.devices import peak_memory
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
  """A bar over tasks that moves with every segment, and scalars in `events/`."""

  def __init__(self, directories: Mapping[str, WorkDirectory], total: int, done: int):
    """Starts the bar.

    Args:
      directories: of all runs.
      total: tasks there are.
      done: those of them that were finished before.
    """
    self._directories, self._total, self._done = directories, total, done
    self._names: Sequence[str] = ()  # of the runs under way
    self._moved = 0.0  # tasks' worth of steps done here
    self._seconds = 0.0  # that the groups before took
    self._started: float | None = None  # when the group under way began
    self._events: dict[str, EventFile] = {}

  @functools.cached_property
  def _bar(self) -> tqdm:
    """Drawn once something runs: what cannot be is said before."""
    return tqdm(
      total=self._total,
      initial=self._done,
      unit="task",
      dynamic_ncols=True,
      smoothing=0.05,
      disable=hosts.index() != 0,
      bar_format="{percentage:3.0f}%|{bar:20}| {desc} [{elapsed}<{remaining}]",
    )

  def __enter__(self) -> Progress:
    return self

  def __exit__(self, *exception) -> None:
    if "_bar" in self.__dict__:
      self._bar.close()
    for events in self._events.values():
      events.close()

  @property
  def rate(self) -> float | None:
    """Tasks per second of adapting; `None` if nothing was adapted here."""
    seconds = self._seconds + (time.monotonic() - self._started if self._started else 0.0)
    return self._moved / max(seconds, 1e-9) if self._moved else None

  @contextlib.contextmanager
  def group(self, names: Sequence[str]) -> Iterator[None]:
    """While the runs `names` are adapted; what is loaded before does not count in the rate."""
    self._names, self._started = names, time.monotonic()
    for name in names:
      self._events[name] = EventFile(self._directories[name].folder("events"))
    self._describe()
    try:
      yield
    finally:
      self._seconds += time.monotonic() - self._started
      self._started = None
      for name in names:
        self._events.pop(name).close()

  def skipped(self, tasks: int, share: float) -> None:
    """Moves the bar over what a snapshot holds: that share of so many tasks was done before."""
    # The shares add up to the total but for rounding, which tqdm would warn of.
    self._bar.update(min(tasks * share, self._bar.total - self._bar.n))

  def stepped(self, tasks: int, share: float, note: str = "") -> None:
    """Moves the bar: so many tasks have done a further share of their steps; `note` is shown."""
    self._moved += tasks * share
    self.skipped(tasks, share)
    self._describe(note)

  def finished(self, outcome: Any, tasks: int) -> None:
    """Logs a batch whose lines are written; its first `tasks` rows are real.

    Args:
      outcome: of the batch; the terms' values, cotangent norms and cosines are logged.
      tasks: in the batch.
    """
    self._done += tasks
    self._moved += tasks if len(outcome.evaluations) == 1 else 0  # a method without steps
    self._bar.update(max(0, min(self._done, self._bar.total) - self._bar.n))
    for p, name in enumerate(self._names):
      finished = self._directories[name].finished
      accuracy = accuracy_of(finished.values())
      scalars = {
        "accuracy/mean": accuracy.mean,
        "accuracy/ci95": accuracy.ci95,
        "episodes_per_second": self.rate or 0.0,
        "peak_memory_bytes": peak_memory(),
      }
      for term, state in outcome.terms.items():
        for kind in ("value", "norm", "cosine"):
          scalars[f"{term}/{kind}"] = float(np.mean(getattr(state, kind)[:tasks, p]))
      self._events[name].write(scalars, len(finished))
    self._describe()

  def _describe(self, note: str = "") -> None:
    parts = [f"{self._done}/{self._total} episodes", *filter(None, [note])]
    failed = 0
    for name in self._names:
      finished = self._directories[name].finished
      accuracy = accuracy_of(finished.values())
      if accuracy.episodes:
        parts.append(f"{name or 'accuracy'} {accuracy}")
      failed = max(failed, sum(line["status"] != "ok" for line in finished.values()))
    if self._moved:
      parts.append(f"{self.rate:.3g} episodes/s, {peak_memory() / 2**30:.1f} GiB")
    if failed:
      parts.append(f"{failed} failed")
    self._bar.set_description_str(", ".join(parts))
