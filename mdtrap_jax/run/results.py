"""A run's files: `config.json`, `episodes.jsonl` and `summary.json` in its work directory.

Every finished episode is one line, flushed to disk before the next batch starts; a line cut
short by a kill is found and dropped, and its episode runs again with the same outcome.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from absl import logging

from mdtrap_jax import config as settings


class Accuracy(NamedTuple):
  """A mean over episodes with its confidence interval."""

  mean: float  # in [0, 1]
  ci95: float  # half width: 1.96 · std / √E, as the papers report it
  episodes: int  # E

  def __str__(self) -> str:
    return f"{100 * self.mean:.2f} ± {100 * self.ci95:.2f} %"


def mean_and_ci(values: Sequence[float]) -> Accuracy:
  """Mean and 95 % interval of per-episode values (or of paired differences).

  Without values both are NaN.
  """
  values = np.asarray(values, np.float64)
  if not len(values):
    return Accuracy(math.nan, math.nan, 0)
  return Accuracy(
    float(values.mean()), float(1.96 * values.std() / math.sqrt(len(values))), len(values)
  )


def accuracy_of(lines: Iterable[dict[str, Any]]) -> Accuracy:
  """Mean accuracy of the episodes that did not fail."""
  return mean_and_ci([line["accuracy"] for line in lines if line["status"] == "ok"])


class WorkDirectory:
  """The files of one run; holds a lock so that two runs cannot write to them at once."""

  def __init__(
    self, path: str | Path, config: ml_collections.ConfigDict, source: dict[str, Any] | None = None
  ):
    """Claims `path` for a resolved config, new or to be resumed.

    Args:
      path: the directory; made if need be.
      config: resolved.
      source: what identifies the images that indices in the results refer to.

    Raises:
      ValueError: the directory belongs to a run of another config, or is no run's at all.
      OSError: it cannot be written, or another process is using it.
    """
    self.path = Path(path)
    self.path.mkdir(parents=True, exist_ok=True)
    self._lock = open(self.path / ".lock", "w")  # noqa: SIM115 (held until `close`)
    try:
      fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      self._lock.close()
      raise OSError(
        f"{self.path} is in use by another run: wait for it or give another --workdir."
      ) from error
    try:
      self.finished = {line["episode"]: line for line in self._repair()}
      self._claim(json.loads(settings.to_json(config)) | {"source": source})
    except BaseException:
      self.close()
      raise

  def close(self) -> None:
    """Releases the directory."""
    self._lock.close()

  def __enter__(self) -> WorkDirectory:
    return self

  def __exit__(self, *exception) -> None:
    self.close()

  def append(self, lines: Iterable[dict[str, Any]]) -> None:
    """Adds finished episodes to `episodes.jsonl` and returns once they are on the disk.

    Raises:
      OSError: the disk is full; what was there before is untouched.
    """
    lines = list(lines)
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    path = self.path / "episodes.jsonl"
    size = path.stat().st_size if path.exists() else 0
    try:
      with open(path, "a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
      if path.exists():
        os.truncate(path, size)
      raise _explain(error, path) from error
    self.finished.update({line["episode"]: line for line in lines})

  def write_json(self, name: str, value: dict[str, Any] | str) -> None:
    """Replaces a file in one step: a reader sees the old one or the new one."""
    text = value if isinstance(value, str) else json.dumps(value, indent=2) + "\n"
    path, partial = self.path / name, self.path / f".{name}.partial"
    try:
      with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
      os.replace(partial, path)
    except OSError as error:
      raise _explain(error, path) from error

  def _claim(self, config: dict[str, Any]) -> None:
    """Writes `config.json`; refuses where finished episodes are of something else."""
    path = self.path / "config.json"
    if self.finished and not path.exists():
      raise ValueError(
        f"{self.path} has episodes.jsonl but no config.json, so it cannot be "
        "told what made them: give another --workdir."
      )
    if self.finished:
      there = json.loads(path.read_text(encoding="utf-8"))
      if changed := settings.differences(config, there):
        raise settings.ConfigMismatchError(
          f"{self.path} holds a run of another config or other data ({'; '.join(changed)}): "
          "give another --workdir, or the same config and data to resume it."
        )
    self.write_json("config.json", config)
    self.config = config

  def _repair(self) -> list[dict[str, Any]]:
    """Reads `episodes.jsonl`, cutting off what a kill left half-written."""
    path = self.path / "episodes.jsonl"
    lines, good = _read_lines(path)
    if path.exists() and good < path.stat().st_size:
      logging.warning(
        "%s ended in a half-written line (a killed run): dropped, its episode runs again.", path
      )
      os.truncate(path, good)
    return lines


def read_episodes(path: str | Path) -> list[dict[str, Any]]:
  """The complete lines of a run's `episodes.jsonl`, by episode number.

  Args:
    path: the work directory.

  Raises:
    FileNotFoundError: there is no such file.
  """
  file = Path(path) / "episodes.jsonl"
  if not file.exists():
    raise FileNotFoundError(f"{file} does not exist: is {path} the --workdir of a run?")
  return sorted(_read_lines(file)[0], key=lambda line: line["episode"])


def check_same_run(ours: Path, theirs: Path) -> None:
  """Refuses to mix two directories whose configs would compute something else.

  Raises:
    settings.ConfigMismatchError: says what differs.
  """
  configs = [
    json.loads((path / "config.json").read_text(encoding="utf-8")) for path in (ours, theirs)
  ]
  if changed := settings.differences(*configs):
    raise settings.ConfigMismatchError(
      f"{theirs} holds a run of another config or other data ({'; '.join(changed)}): give "
      "another --workdir."
    )


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
  """Complete lines and the number of bytes they take."""
  if not path.exists():
    return [], 0
  lines, good = [], 0
  with open(path, "rb") as file:
    for number, raw in enumerate(file, 1):
      try:
        if not raw.endswith(b"\n"):
          break
        lines.append(json.loads(raw))
      except ValueError as error:
        if file.read(1):  # damage in the middle is not what a kill leaves
          raise ValueError(
            f"{path}, line {number}, is damaged ({error}): remove the line to "
            "run its episode again."
          ) from error
        break
      good += len(raw)
  return lines, good


def _explain(error: OSError, path: Path) -> OSError:
  if error.errno == errno.ENOSPC:
    return OSError(
      errno.ENOSPC,
      f"the disk is full; {path} keeps what was finished. Free some "
      "space and run the same command again to go on",
    )
  return error


def summarize(lines: Iterable[dict[str, Any]]) -> dict[str, Any]:
  """The results part of `summary.json` from lines of `episodes.jsonl`.

  Episodes that failed are counted and take no part in the means.
  """
  lines = list(lines)
  fine = [line for line in lines if line["status"] == "ok"]
  accuracy = accuracy_of(fine)
  zero_shot = mean_and_ci([line["zero_shot_accuracy"] for line in fine])
  gain = mean_and_ci([line["accuracy"] - line["zero_shot_accuracy"] for line in fine])
  marks = fine[0]["accuracy_at"] if fine else {}
  none = lambda value: None if math.isnan(value) else value
  return {
    "episodes": len(lines),
    "failed": len(lines) - len(fine),
    "accuracy_mean": none(accuracy.mean),
    "accuracy_ci95": none(accuracy.ci95),
    "zero_shot_mean": none(zero_shot.mean),
    "zero_shot_ci95": none(zero_shot.ci95),
    "gain_mean": none(gain.mean),
    "gain_ci95": none(gain.ci95),
    "accuracy_at": {
      mark: float(np.mean([line["accuracy_at"][mark] for line in fine])) for mark in marks
    },
  }


def format_summary(summary: dict[str, Any]) -> str:
  """A summary as the small table that a run ends with."""
  percent = lambda name: (
    "        –"
    if summary[f"{name}_mean"] is None
    else f"{100 * summary[f'{name}_mean']:6.2f} ± {100 * summary[f'{name}_ci95']:.2f}"
  )
  rows = [
    ("episodes", f"{summary['episodes']:6d}"),
    ("failed", f"{summary['failed']:6d}"),
    ("zero-shot accuracy (%)", percent("zero_shot")),
    ("adapted accuracy (%)", percent("accuracy")),
    ("paired gain (points)", percent("gain")),
  ]
  rows += [
    (f"  after {mark} steps (%)", f"{100 * value:6.2f}")
    for mark, value in summary["accuracy_at"].items()
  ]
  if summary.get("episodes_per_second"):
    rows.append(("episodes per second", f"{summary['episodes_per_second']:9.2f}"))
  width = max(len(name) for name, _ in rows)
  return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


if __name__ == "__main__":
  from mdtrap_jax.report import comparison

  raise SystemExit(comparison.main())
