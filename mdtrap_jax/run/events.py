"""A run as numbers over time, for TensorBoard and for trackers of the user's own."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Where they are installed, tensorboardX would import torch, for annotations, and what reads and
# writes buckets, which `run.store` does: seconds of every start.
_UNUSED = ("torch", "boto3", "google.cloud.storage")
_hidden = [name for name in _UNUSED if name not in sys.modules]
sys.modules.update(dict.fromkeys(_hidden))
try:
  from tensorboardX.event_file_writer import EventsWriter
  from tensorboardX.proto.event_pb2 import Event, SessionLog
  from tensorboardX.proto.summary_pb2 import Summary
  from tensorboardX.summary import scalar
finally:
  for _name in _hidden:
    del sys.modules[_name]


class Scalars(NamedTuple):
  """Numbers of a run at one point, as a tracker gets them; all finite."""

  run: str  # the subdirectory of the variant; "" where there is one run
  axis: str  # what `step` counts: "episodes" that are finished, or "steps" of adapting one
  step: int
  values: Mapping[str, float]  # by tag, such as "accuracy/mean" or "svl/norm"


Track = Callable[[Scalars], None]


class EventFile:
  """Scalars for TensorBoard, on the disk when `write` returns.

  tensorboardX's own writer has a thread of its own, which dies of a full disk and leaves the
  run waiting for it.
  """

  def __init__(self, path: Path):
    self._writer = EventsWriter(str(path / "events"))

  def write(self, scalars: Mapping[str, float], step: int) -> None:
    """Writes the finite ones of `scalars` at a step; a full disk raises `OSError`."""
    values = [scalar(tag, value).value[0] for tag, value in finite(scalars).items()]
    self._write(step=step, summary=Summary(value=values))

  def restart(self) -> None:
    """Makes readers forget what was written before: the same steps follow with newer values."""
    self._write(step=0, session_log=SessionLog(status=SessionLog.START))

  def _write(self, **content: Any) -> None:
    self._writer.write_event(Event(wall_time=time.time(), **content))
    self._writer.flush()

  def close(self) -> None:
    """Closes the file; everything is on the disk already."""
    self._writer.close()


def finite(scalars: Mapping[str, float]) -> dict[str, float]:
  """Those that are numbers."""
  return {tag: float(value) for tag, value in scalars.items() if np.isfinite(value)}


def term_means(lines: Iterable[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
  """What the terms came to along the steps, averaged over episodes.

  Args:
    lines: of `episodes.jsonl`; those that failed, or say nothing of terms, are passed over.

  Returns:
    `{step: {"svl/value": …, "svl/norm": …, "svl/cosine": …}}`, NaN where no episode has a value.
  """
  collected: dict[tuple[int, str], list[float]] = {}
  for line in lines:
    if line["status"] != "ok":
      continue
    for term, kinds in line.get("terms", {}).items():
      for kind, values in kinds.items():
        for step, value in zip(line["accuracy_at"], values, strict=False):
          found = collected.setdefault((int(step), f"{term}/{kind}"), [])
          if value is not None:
            found.append(value)
  means: dict[int, dict[str, float]] = {}
  for (step, tag), values in collected.items():
    means.setdefault(step, {})[tag] = float(np.mean(values)) if values else float("nan")
  return means
