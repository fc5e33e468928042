"""What the person at the terminal sees, and the same as TensorBoard events."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import logging
from tqdm import tqdm

from mdtrap_jax.run import hosts
from mdtrap_jax.run.devices import peak_memory
from mdtrap_jax.run.directory import WorkDirectory
from mdtrap_jax.run.events import EventFile, Scalars, Track, finite, term_means
from mdtrap_jax.run.log import Log
from mdtrap_jax.statistics import accuracy_of

QUIET = 30.0  # seconds from one line of the log to the next, at least


class Progress:
  """A bar over tasks that moves with every segment, lines in the log, scalars in `events/`."""

  def __init__(
    self,
    directories: Mapping[str, WorkDirectory],
    total: int,
    done: int,
    log: Log | None = None,
    track: Track | None = None,
  ):
    """Starts the bar.

    Args:
      directories: of all runs.
      total: tasks there are.
      done: those of them that were finished before.
      log: where lines go; standard error alone if not given.
      track: told of what TensorBoard gets; what it raises is a warning.
    """
    self._directories, self._total, self._done = directories, total, done
    self._log, self._track = log or Log(), track if hosts.index() == 0 else None
    self._names: Sequence[str] = ()  # of the runs under way
    self._position = float(done)  # tasks' worth of steps done, snapshots' too
    self._moved = 0.0  # of those, what was done here
    self._seconds = 0.0  # that the groups before took
    self._started: float | None = None  # when the group under way began
    self._said = time.monotonic()  # when the log got its last line
    self._text = ""  # that it has not got yet
    self._events: dict[str, tuple[EventFile, EventFile]] = {}  # over episodes, over steps

  @functools.cached_property
  def _bar(self) -> tqdm:
    """Drawn once something runs: what cannot be is said before."""
    self._log.bar = True
    return tqdm(
      total=self._total,
      initial=self._done,
      unit="task",
      dynamic_ncols=True,
      smoothing=0.05,
      disable=hosts.index() != 0 or not self._log.terminal,
      bar_format="{percentage:3.0f}%|{bar:20}| {desc} [{elapsed}<{remaining}]",
    )

  def __enter__(self) -> Progress:
    return self

  def __exit__(self, *exception) -> None:
    if "_bar" in self.__dict__:
      self._bar.close()
      self._log.bar = False
    for files in self._events.values():
      for events in files:
        events.close()

  @property
  def rate(self) -> float | None:
    """Tasks per second of adapting; `None` if nothing was adapted here."""
    seconds = self._seconds + (time.monotonic() - self._started if self._started else 0.0)
    return self._moved / max(seconds, 1e-9) if self._moved else None

  def say(self, text: str) -> None:
    """Says in the log what is about to run."""
    self._log.say(text)

  @contextlib.contextmanager
  def busy(self, what: str) -> Iterator[None]:
    """Around what may take long without moving the bar; `what` stands there meanwhile."""
    if "_bar" in self.__dict__:
      self._bar.set_description_str(f"{what} …")
    with self._log.busy(what):
      yield

  @contextlib.contextmanager
  def group(self, names: Sequence[str]) -> Iterator[None]:
    """While the runs `names` are adapted; what is loaded before does not count in the rate."""
    self._names, self._started = names, time.monotonic()
    for name in names:
      # Two runs to TensorBoard, for what they count differs.
      folders = [self._directories[name].folder(path) for path in ("events", "events/steps")]
      self._events[name] = EventFile(folders[0]), EventFile(folders[1])
    self._describe()
    try:
      yield
      for name in names:
        for step, means in term_means(self._directories[name].finished.values()).items():
          self._tell(Scalars(name, "steps", step, finite(means)))
    finally:
      self._seconds += time.monotonic() - self._started
      self._started = None
      self._line(last=True)
      for name in names:
        for events in self._events.pop(name):
          events.close()

  def skipped(self, tasks: int, share: float) -> None:
    """Moves the bar over what a snapshot holds: that share of so many tasks was done before."""
    # The shares add up to the total but for rounding, which tqdm would warn of.
    self._move(min(tasks * share, self._total - self._position))

  def stepped(self, tasks: int, share: float, note: str = "") -> None:
    """Moves the bar: so many tasks have done a further share of their steps; `note` is shown."""
    self._moved += tasks * share
    self.skipped(tasks, share)
    self._describe(note)

  def again(self) -> None:
    """Moves the bar back to what is finished: the batch under way starts again, or from a snapshot.

    What it has done counts in the rate as the work it was.
    """
    self._move(self._done - self._position)

  def finished(self, outcome: Any, tasks: int) -> None:
    """Logs a batch whose lines are written; its first `tasks` rows are real.

    Args:
      outcome: of the batch.
      tasks: in the batch.
    """
    self._done += tasks
    self._moved += tasks if len(outcome.evaluations) == 1 else 0  # a method without steps
    self._move(max(0.0, min(self._done, self._total) - self._position))
    for name in self._names:
      finished = self._directories[name].finished
      accuracy = accuracy_of(finished.values())
      scalars = {
        "accuracy/mean": accuracy.mean,
        "accuracy/ci95": accuracy.ci95,
        "episodes_per_second": self.rate or 0.0,
        "peak_memory_bytes": peak_memory(),
      }
      over_episodes, over_steps = self._events[name]
      over_episodes.write(scalars, len(finished))
      if along := term_means(finished.values()):
        over_steps.restart()  # with means over more episodes
      for step, means in along.items():
        over_steps.write(means, step)
      self._tell(Scalars(name, "episodes", len(finished), finite(scalars)))
    self._describe()

  def _move(self, tasks: float) -> None:
    self._position += tasks
    self._bar.update(tasks)

  def _tell(self, scalars: Scalars) -> None:
    if self._track is None:
      return
    try:
      self._track(scalars)
    except Exception as error:  # a tracker that is offline must not end the run
      logging.warning("track: %s: %s; the run goes on.", type(error).__name__, error)

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
    self._text = ", ".join(parts)
    self._bar.set_description_str(self._text)
    self._line()

  def _line(self, last: bool = False) -> None:
    """Says in the log what stands beside the bar, now and then, and when it is the last word."""
    now = time.monotonic()
    if not (self._moved and self._text and (last or now - self._said >= QUIET)):
      return
    percent = 100 * self._position / max(self._total, 1)
    remaining = (self._total - self._position) / self.rate
    left = f", {tqdm.format_interval(remaining)} left" if remaining > 0 else ""
    self._log.say(f"{percent:.0f} %, {self._text}{left}")
    self._said, self._text = now, ""
