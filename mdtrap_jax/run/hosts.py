"""Several processes that share one run: who adapts what, and their results brought together.

Each process adapts its own episodes on its own devices and writes its own files, because
episodes never communicate; only small texts travel (`star`): at the start whether all compute
the same, at the end the finished lines, and at any time that all should stop.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mdtrap_jax.run import claim, meeting
from mdtrap_jax.run.directory import WorkDirectory, check_same
from mdtrap_jax.run.lines import read_episodes, read_object
from mdtrap_jax.run.meeting import Place, place
from mdtrap_jax.run.star import PeerError, Star
from mdtrap_jax.run.stop import Interrupt, PreemptedError

Item = TypeVar("Item")
_HURRY = 3.0  # seconds that a stopped process waits for the others to stop too


_joined: Star | None = None  # like JAX's own: a process is part of one run at most


def initialize(
  coordinator: str | None = None,
  count: int | None = None,
  index: int | None = None,
  *,
  wait: float = 60,
) -> None:
  """Joins the other processes; must come before JAX computes anything, and is best `joined`.

  Args:
    coordinator: as in `place`, and the two that follow; asks the machines if none is given.
    count: of processes.
    index: of this process.
    wait: seconds for the others to come.

  Raises:
    ValueError: as `place` does; or the processes were started with different counts.
    PeerError: not all processes came in time, or the port is in use.
  """
  _enter(place(coordinator, count, index, detect=True), wait)


@contextlib.contextmanager
def joined(here: Place | None, *, wait: float = 60) -> Iterator[None]:
  """Joins the other processes, and lets them know at once how this one ends.

  JAX is told of the others too, so that `jax.process_index` and `jax.local_devices` are right,
  and is then cut off from them: a JAX that waits for a process that died would end this one.
  With `None`, nothing happens.

  Args:
    here: from `place`.
    wait: seconds for the others to come.

  Raises:
    ValueError: the processes were started with different counts.
    PeerError: not all processes came in time, one was lost or failed, or the port is in use.
  """
  global _joined
  try:
    _enter(here, wait)
    yield
    if _joined:
      _joined.leave()
  except (PreemptedError, Interrupt) as stopped:
    if _joined and _joined.lost and not _joined.stopped:
      _joined.fail(_joined.lost)
      raise PeerError(_joined.lost) from None
    if _joined:
      _joined.stop(stopped.reason)
      _joined.leave(_HURRY)
    raise
  except BaseException as error:
    if _joined:
      _joined.fail(_first_line(error))
    raise
  finally:
    _joined = None


def _enter(here: Place | None, wait: float) -> None:
  global _joined
  if here is None:
    return
  # JAX's service gets a port of its own, which process 0 chooses.
  bind, note = "", ""
  if here.index == 0:
    bind, note = _free_port(here.host)
  _joined, note = meeting.meet(here.host, here.port, here.index, here.count, wait=wait, note=note)
  if here.index:  # JAX itself would end the process if it could not connect
    meeting.connect(here.host, int(note), wait).close()
  with _joined.abrupt():
    _tell_jax(here, int(note), bind, wait)
    _joined.gather("")


def _tell_jax(here: Place, port: int, bind: str, wait: float) -> None:
  """Gives JAX's backends the processes and their devices, then ends its service."""
  import jax
  from jax._src import distributed

  # It would take SIGTERM away from `stop`.
  jax.config.update("jax_enable_preemption_service", False)
  jax.distributed.initialize(
    f"{_bracketed(here.host)}:{port}",
    here.count,
    here.index,
    local_device_ids=here.local_device_ids,
    coordinator_bind_address=f"{bind}:{port}" if bind else None,
    initialization_timeout=int(wait) + 30,
    cluster_detection_method="deactivate",
  )
  jax.devices()  # the backends exchange what devices there are
  jax.distributed.shutdown()
  # Orbax wants a key-value store even to save what is this process's alone: one of its own.
  bind, port = _free_port("127.0.0.1")
  distributed.global_state.initialize(
    f"{bind}:{port}",
    1,
    0,
    coordinator_bind_address=f"{bind}:{port}",
    cluster_detection_method="deactivate",
  )


def _bracketed(host: str) -> str:
  return f"[{host}]" if ":" in host else host


def _free_port(host: str) -> tuple[str, str]:
  """An address of this machine, `host` or else all of them, and a port that is free there."""
  for address in (host, ""):
    with contextlib.suppress(OSError), meeting.listener(address, 0) as door:
      name, port = door.getsockname()[:2]
      return _bracketed(name), str(port)
  raise OSError("this machine has no free port.")


def _first_line(error: BaseException) -> str:
  text = str(error).strip()
  return text.splitlines()[0] if text else type(error).__name__


def count() -> int:
  """Of the processes that share this run."""
  return _joined.count if _joined else 1


def index() -> int:
  """Of this process, from 0; process 0 reports."""
  return _joined.index if _joined else 0


def agree(what: str, facts: Mapping[str, str]) -> None:
  """Makes sure that all processes compute the same.

  Args:
    what: the facts are about, such as "config" or "data".
    facts: values by name; long ones as digests.

  Raises:
    ValueError: they differ; in all processes, with the first name that does.
    PeerError, PreemptedError: as `gather` does.
  """
  everyone = [json.loads(text) for text in gather(json.dumps(dict(facts)))]
  for other, theirs in enumerate(everyone):
    for name in sorted(everyone[0] | theirs):
      here, there = (
        f"{what}.{name}={of[name]}" if name in of else f"no {what}.{name}"
        for of in (everyone[0], theirs)
      )
      if here != there:
        raise ValueError(
          f"process {other} has {there} where process 0 has {here.removeprefix(f'{what}.{name}=')}"
          ": start all with the same command, data and weights."
        )


def gather(text: str) -> list[str]:
  """The texts of all processes, by index; waits for those that still compute.

  Raises:
    PeerError: a process was lost or failed.
    PreemptedError: all were asked to stop.
  """
  return _joined.gather(text) if _joined else [text]


def request_stop(reason: str) -> None:
  """Asks all processes to stop at their next safe place."""
  if _joined:
    _joined.stop(reason)


def stop_requested() -> str:
  """Why to stop: asked for, or a process was lost; empty if nothing did. Costs nothing."""
  return (_joined.stopped or _joined.lost) if _joined else ""


def share(items: Sequence[Item], begun: Collection[Item] = ()) -> list[Item]:
  """The part of the items, such as episodes, that is this process's.

  What a process has begun stays its own; the others take turns with the rest.

  Args:
    items: the same in all processes.
    begun: those of them that this process has begun.

  Raises:
    PeerError, PreemptedError: as `gather` does.
  """
  texts = gather(json.dumps([i for i, item in enumerate(items) if item in begun]))
  owners: dict[int, int] = {}
  for process, text in enumerate(texts):
    for i in json.loads(text):
      owners.setdefault(i, process)  # an older snapshot may hold what another has begun since
  rest = [i for i in range(len(items)) if i not in owners]
  owners |= {i: turn % count() for turn, i in enumerate(rest)}
  return [item for i, item in enumerate(items) if owners[i] == index()]


def own_directory(workdir: Path) -> Path:
  """Where this process writes: the work directory itself, or one inside it."""
  return workdir / f"process-{index()}" if index() else workdir


def snapshot_directories(workdir: Path) -> list[Path]:
  """Where this process's snapshots are: its own, and those it takes over.

  When there were more processes before, the others share what those that are no more had begun.
  """
  others = []
  for folder in sorted(workdir.glob("process-*/snapshots")):
    number = folder.parent.name.removeprefix("process-")
    if number.isdecimal() and int(number) >= count() and int(number) % count() == index():
      others += [folder] if claim.is_ours(folder) else []
  return [own_directory(workdir) / "snapshots", *others]


def merge(workdir: Path, directories: Mapping[str, WorkDirectory]) -> None:
  """Adds to every process's files the finished episodes of all others.

  Lines that other processes left below `workdir`, when there were more of them, count too.
  """
  for name, directory in directories.items():
    lines = dict(directory.finished)
    for other in sorted(workdir.glob("process-*")):
      path = other / name
      if path != directory.path and (path / "episodes.jsonl").exists():
        check_same(directory.config, read_object(path / "config.json"), path)
        lines |= {line["episode"]: line for line in read_episodes(path)}
    lines = exchange(lines)
    new = [line for number, line in sorted(lines.items()) if number not in directory.finished]
    if new:
      directory.append(new)


def exchange(lines: Mapping[int, Any]) -> dict[int, Any]:
  """The lines of all processes, by number; of those that several have, the first one's.

  Only what somebody lacks travels: after a restart everybody may have nearly everything.
  """
  if count() == 1:
    return dict(lines)
  held = [set(json.loads(text)) for text in gather(json.dumps(sorted(lines)))]
  known = set.intersection(*held)
  before = set().union(*held[: index()])
  mine = {number: lines[number] for number in held[index()] - known - before}
  told = [json.loads(text) for text in gather(json.dumps(list(mine.items())))]
  return dict(lines) | {number: line for lines in told for number, line in lines}


def total(rate: float | None) -> float | None:
  """The sum of the rates of all processes; `None` if none of them did anything."""
  rates = [json.loads(text) for text in gather(json.dumps(rate))]
  return sum(filter(None, rates)) or None
