"""The one loop: adapts what an experiment's work directory does not hold yet, and resumes.

It knows methods, data and experiments by their protocols alone. What one run has, every run has:
several processes, stopping when asked, going on in the middle of a batch, the next batch loaded
while this one is adapted, progress and rates.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mdtrap_jax import config as configs
from mdtrap_jax.data.content import digest_of
from mdtrap_jax.data.loader import ahead
from mdtrap_jax.data.task import Task, TaskBatch, TaskId
from mdtrap_jax.methods.method import AdaptState, Evaluation, Method
from mdtrap_jax.run import claim, hosts, predictions
from mdtrap_jax.run import store as stores
from mdtrap_jax.run.directory import WorkDirectory
from mdtrap_jax.run.events import Track
from mdtrap_jax.run.experiment import Experiment, Group, Ready
from mdtrap_jax.run.log import Log, outline, versions
from mdtrap_jax.run.outcome import Outcome, arrays_of, evaluation_of, make_line
from mdtrap_jax.run.place import Placement, halved, place
from mdtrap_jax.run.programs import Programs, announced, make_programs, replicate, spread
from mdtrap_jax.run.progress import Progress
from mdtrap_jax.run.snapshots import Snapshot, SnapshotDirectory
from mdtrap_jax.run.stop import Preemption, preemption


class Pace(NamedTuple):
  """How long segments are: after each, the host reports, saves, and stops if it is asked to."""

  segment: float = 5.0  # seconds that one should take
  snapshot: float = 10.0  # seconds, at least, from one snapshot to the next
  share: float = 0.05  # of the time that writing snapshots may take


PACE = Pace()
_LISTED = 8  # runs that are named in the log


class Finished(NamedTuple):
  """What a run leaves."""

  directories: Mapping[str, WorkDirectory]  # by run, with the lines of all processes
  rate: float | None  # tasks per second of all processes; None if there was nothing to do


def run(
  experiment: Experiment,
  workdir: str | Path | stores.Store,
  pace: Pace = PACE,
  track: Track | None = None,
) -> Finished:
  """Adapts every task of `experiment` that `workdir` does not hold yet.

  Args:
    experiment: what to do.
    workdir: where the runs' files are; made, or resumed. A bucket's is a store that is `opened`.
    pace: of segments and snapshots.
    track: told of the numbers that TensorBoard gets, in the first process.

  Raises:
    ValueError, OSError, MemoryError: input that cannot be right; raised before anything is
      computed where it can be known then.
    PreemptedError: it was asked to stop; all is saved.
  """
  hosts.agree("config", _facts(experiment))
  store = stores.of(workdir)
  workdir = claim.claim_root(store.root)
  with contextlib.ExitStack() as stack:
    directories = {
      name: stack.enter_context(
        WorkDirectory(
          workdir,
          config,
          experiment.sources[name],
          variant=name,
          process=hosts.index(),
          push=store.push,
        )
      )
      for name, config in experiment.runs.items()
    }
    log = stack.enter_context(
      Log(hosts.own_directory(workdir) / "run.log", aloud=hosts.index() == 0)
    )
    log.say("\n".join(_about(experiment, store.name)))
    hosts.merge(workdir, directories)
    store.push()
    kept = [
      SnapshotDirectory(
        path,
        {name: directory.config for name, directory in directories.items()},
        seconds=pace.snapshot,
        share=pace.share,
        push=store.push,
      )
      for path in hosts.snapshot_directories(workdir)
    ]
    todo = {group.name: _todo(group, directories) for group in experiment.groups}
    mine = {name: _mine(name, tasks, kept) for name, tasks in todo.items()}
    done = sum(len(group.tasks) - len(todo[group.name]) for group in experiment.groups)
    total = done + sum(map(len, mine.values()))
    progress = stack.enter_context(Progress(directories, total, done, log, track))
    for group in experiment.groups:
      if mine[group.name]:
        with progress.busy("loading model and data"):
          ready = group.prepare()
        adapting = _Adapting(group, ready, directories, kept, progress, pace)
        with (
          progress.group(group.runs),
          preemption(hosts.request_stop, hosts.stop_requested) as asked,
        ):
          adapting.run(mine[group.name], experiment.placing, asked)
    rate = hosts.total(progress.rate)
    hosts.merge(workdir, directories)
    for directory in directories.values():
      if directory.predictions and hosts.index() == 0:
        predictions.finish(directory.path, directory.finished, workdir)
    for snapshots in kept:
      snapshots.remove()
    return Finished(directories, rate)


def _facts(experiment: Experiment) -> dict[str, str]:
  """What all processes of a run must have in common: config, data and weights."""
  facts = {}
  for name, config in experiment.runs.items():
    prefix = f"{name}." if name else ""
    for field, value in configs.flatten(config):
      if field in ("episodes", "predictions") or field not in configs.RUNTIME_FIELDS:
        facts[prefix + field] = repr(value)
    facts[f"{prefix}source"] = digest_of([experiment.sources[name]])
  return facts


def _about(experiment: Experiment, workdir: str) -> Iterator[str]:
  """What runs, where and on what, in lines."""
  names = [name for name in experiment.runs if name]
  yield outline(next(iter(experiment.runs.values())))
  if names:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    yield f"runs: {', '.join(names[:_LISTED])}{more}; the first is shown"
  if experiment.about:
    yield experiment.about
  device = jax.local_devices()[0].device_kind
  where = f"{workdir} on {jax.local_device_count()} × {device}"
  if hosts.count() > 1:
    where += f", process {hosts.index()} of {hosts.count()}"
  yield f"in {where}; {versions()}"


def _todo(group: Group, directories: Mapping[str, WorkDirectory]) -> list[TaskId]:
  """The tasks that at least one of the group's runs has not finished."""
  return [
    task
    for task in group.tasks
    if any(task.episode not in directories[name].finished for name in group.runs)
  ]


def _mine(name: str, todo: Sequence[TaskId], kept: Sequence[SnapshotDirectory]) -> list[TaskId]:
  """The part of a group's tasks that this process adapts: its snapshots', and its turns."""
  held = {episode for snapshots in kept for episode in snapshots.held(name)}
  return hosts.share(todo, {task for task in todo if task.episode in held})


class _Adapting(NamedTuple):
  """One group under way."""

  group: Group
  ready: Ready
  directories: Mapping[str, WorkDirectory]
  kept: Sequence[SnapshotDirectory]  # its own first, then those of processes that are no more
  progress: Progress
  pace: Pace

  def run(self, todo: Sequence[TaskId], placing: Mapping[str, Any], asked: Preemption) -> None:
    """Adapts the tasks `todo`, batch after batch; batches that turn out too large are halved."""
    ready = self.ready
    most = -(-len(self.group.tasks) // hosts.count())
    with self.progress.busy("compiling to see how many fit"):
      placement = place(ready.method, ready.params, ready.task, ready.weights, most=most, **placing)
    shards = placing.get("shards", 1)
    params = replicate(placement.method.needed(ready.params, shards), placement.mesh)
    while todo:
      try:
        return self._adapt(todo, placement, params, asked)
      except jax.errors.JaxRuntimeError as error:
        placement = halved(placement, error)
      asked.check()
      asked.saves = False  # all is saved: nobody need wait for smaller programs to be compiled
      self.progress.again()
      unfinished = set(_todo(self.group, self.directories))
      todo = [task for task in todo if task in unfinished]

  def _adapt(
    self, todo: Sequence[TaskId], placement: Placement, params: Any, asked: Preemption
  ) -> None:
    """Adapts the tasks `todo` in batches of one size."""
    ready, method, mesh = self.ready, placement.method, placement.mesh
    size = mesh.size * placement.each
    why = f" ({placement.why})" if placement.why else ""
    self.progress.say(
      f"{self.group.name}: {len(todo)} to do, {size} at once on {mesh.size} devices{why}"
    )
    programs = announced(make_programs(method, mesh, bool(ready.weights)), self.progress.busy)
    on_devices = lambda batch: spread(_filled(batch.tasks, size), mesh)
    lengths = Lengths(self.pace.segment)
    restored = [snapshots.restore(self.group.name, self.group.runs) for snapshots in self.kept]
    for tasks, left in _parts(todo, filter(None, restored)):
      with contextlib.closing(ahead(on_devices, ready.batches(tasks, size))) as loaded:
        for batch, arrays in loaded:
          prepared, state = programs.prepare(params, arrays, ready.weights)
          start, evaluations = 0, {}
          if left is not None:
            numbers = [task.episode for task in batch.ids]
            kept, evaluations = left.rows(numbers, size, state)
            # Laid out as it was: another layout would be another program.
            state = jax.device_put(kept, jax.tree.map(lambda leaf: leaf.sharding, state))
            start = left.step
            evaluations = {step: evaluation_of(held) for step, held in evaluations.items()}
            self.progress.skipped(len(batch.ids), start / max(method.steps, 1))
          self.kept[0].begin()
          after = functools.partial(self._after_segment, batch, method, asked)
          outcome, state = adapt_batch(
            programs,
            method,
            params,
            prepared,
            state,
            lengths,
            start=start,
            evaluations=evaluations,
            after=after,
          )
          measured = [{}] * len(batch.ids)
          if ready.measure:
            self._save(batch, method.steps, state, outcome.evaluations)  # it may take long
            tick = functools.partial(self._tick, asked)
            measured = ready.measure(mesh, params, state, batch.ids, tick)
          self._append(batch, outcome, measured)
          self.progress.finished(outcome, len(batch.ids))
          asked.check()

  def _after_segment(self, batch, method, asked, step, done, state, evaluations) -> None:
    """Reports, saves where the batch is, and stops the run if that was asked for."""
    asked.saves = True
    rows = len(batch.ids)
    note = self.ready.watch(step, state, evaluations) if self.ready.watch else ""
    self.progress.stepped(rows, done / method.steps, note)
    if asked.name or self.kept[0].due():
      self._save(batch, step, state, evaluations)
    asked.check()

  def _save(self, batch, step, state, evaluations) -> None:
    """Keeps where the batch is."""
    leaves, kept = jax.tree.map(
      lambda leaf: np.asarray(leaf)[: len(batch.ids)],
      (jax.tree.leaves(state), {mark: arrays_of(e) for mark, e in evaluations.items()}),
    )
    numbers = tuple(task.episode for task in batch.ids)
    self.kept[0].save(Snapshot(self.group.name, numbers, step, leaves, kept, self.group.runs))

  def _tick(self, asked: Preemption, note: str) -> None:
    """While a batch is measured, whose state is saved."""
    self.progress.stepped(0, 0.0, note)
    asked.check()

  def _append(
    self, batch: TaskBatch, outcome: Outcome, measured: Sequence[Mapping[str, Any]]
  ) -> None:
    """Writes the lines of a finished batch."""
    for p, name in enumerate(self.group.runs):
      directory = self.directories[name]
      if directory.predictions:  # before the lines: an episode that has one is not adapted again
        directory.predictions.append(
          self._record(task, about, outcome.row(i, p))
          for i, (task, about) in enumerate(zip(batch.ids, batch.about, strict=True))
          if task.episode not in directory.finished
        )
      directory.append(
        make_line(task, about, outcome.row(i, p), more)
        for i, (task, about, more) in enumerate(zip(batch.ids, batch.about, measured, strict=True))
      )

  def _record(self, task: TaskId, about: Mapping[str, Any], row: Outcome) -> predictions.Record:
    """What is kept of a task's queries."""
    before, after = (row.evaluations[end(row.evaluations)].cosines for end in (min, max))
    return predictions.make_record(
      task, about, before, after, self.ready.scale, self.ready.describe
    )


def _parts(
  todo: Sequence[TaskId], snapshots: Iterable[Snapshot]
) -> Iterator[tuple[list[TaskId], Snapshot | None]]:
  """The tasks to adapt: first those that snapshots hold, then those that start anew."""
  for snapshot in snapshots:
    held = set(snapshot.episodes)
    if under_way := [task for task in todo if task.episode in held]:
      yield under_way, snapshot
    todo = [task for task in todo if task.episode not in held]
  if todo:
    yield todo, None


def _filled(tasks: Task, size: int) -> Task:
  """A batch with `size` rows: the last one is repeated where rows lack."""
  rows = np.minimum(np.arange(size), len(tasks.support_labels) - 1)
  return jax.tree.map(lambda leaf: leaf[rows], tasks)


class Lengths:
  """How many steps make a segment, by what steps took before; kept over batches."""

  def __init__(self, seconds: float):
    self._seconds, self._steps = seconds, {}

  def of(self, clean: bool) -> int:
    """Steps of the next segment of a phase; one where nothing is known yet."""
    return self._steps.get(clean, 1)

  def took(self, clean: bool, steps: int, seconds: float) -> None:
    """Notes how long a segment was."""
    self._steps[clean] = max(1, int(self._seconds * steps / max(seconds, 1e-6)))


def adapt_batch(
  programs: Programs,
  method: Method,
  params: Any,
  prepared: Any,
  state: AdaptState,
  lengths: Lengths,
  *,
  start: int = 0,
  evaluations: Mapping[int, Evaluation] | None = None,
  after: Any = lambda *_: None,
) -> tuple[Outcome, AdaptState]:
  """Takes a batch through its remaining steps, in segments of a few seconds.

  Args:
    programs: compiled.
    method: whose phases and marks these are.
    params: of the model.
    prepared: `[E, ...]`, the tasks' fixed parts.
    state: `[E, …]`, after `start` steps; its memory is taken over.
    lengths: of segments.
    start: steps already done.
    evaluations: those already made, by step.
    after: called after each segment with the steps done in all, the segment's steps, the state
      and the evaluations so far; may raise to stop.

  Returns:
    What it came to, and the state after the last step.
  """
  evaluations = dict(evaluations or {})
  if 0 not in evaluations:
    evaluations[0] = jax.device_get(programs.baseline(params, prepared, state))
  for phase in method.phases:
    step = max(phase.start, start)
    while step < phase.stop:
      marks = [mark for mark in method.marks if mark > step]
      stop = min(step + lengths.of(phase.clean), phase.stop, *marks)
      before = time.monotonic()
      state = jax.block_until_ready(programs.run[phase.clean](params, prepared, state, step, stop))
      lengths.took(phase.clean, stop - step, time.monotonic() - before)
      done, step = stop - step, stop
      if step in method.marks:
        evaluations[step] = jax.device_get(programs.evaluate(params, prepared, state))
      after(step, done, state, evaluations)
  status = jax.device_get(state.status)
  # Without variants states have no axis of them: [E] becomes [E, 1].
  return Outcome(evaluations, status.reshape(len(status), -1)), state
