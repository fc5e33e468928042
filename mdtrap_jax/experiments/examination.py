"""What a run on all classes of a data set is drawn from and tested on, however it adapts.

Legend: `C` classes, `K` shots, `E` tasks at once, `B` images of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from mdtrap_jax import config as configs
from mdtrap_jax.data.class_selection import ClassSubset, check_feasible
from mdtrap_jax.data.parts import Parts, halves
from mdtrap_jax.data.prompts import Prompts
from mdtrap_jax.data.releases import RELEASES
from mdtrap_jax.data.source import Source
from mdtrap_jax.data.sources import make_source
from mdtrap_jax.data.task import TaskBatch, TaskId
from mdtrap_jax.experiments import finetune
from mdtrap_jax.run.experiment import Experiment, Group

# (inputs [B, …]) -> the classes found, [E, B] by each task and [·, B] by the pretrained model.
Classify = Callable[[np.ndarray], tuple[jax.Array, jax.Array]]


class Examination(NamedTuple):
  """Test images with the classes to tell apart."""

  name: str  # "test", "base", "new", or another data set
  source: Source
  prompts: Prompts


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses what means nothing here, before anything is opened.

  Raises:
    ValueError: names the field, its value and the remedy.
  """
  for field, value, why in (
    ("data.small_classes", "error", "all classes take part; name those to keep in data.classes"),
    ("data.unreadable", "error", "the whole test split is classified; repair what is unreadable"),
    ("predictions", False, "it would be of the validation images alone; leave it"),
  ):
    if (given := configs.get(config, field)) != value:
      raise ValueError(f"--config.{field}={given}: {why}.")


def open_parts(config: ml_collections.ConfigDict) -> tuple[Parts, dict[str, Source]]:
  """The parts to draw from, and the test images by examination.

  With `config.base_to_new` the classes are split in half as CoOp does it: adapted are the first,
  tested both. A source that has no published split is split in half class by class.

  Raises:
    ValueError, OSError: the data are not as they should be.
  """
  data = config.data
  if data.name == "fsl":
    opened = [make_source(configs.replace(config, {"data.split": p}).data) for p in _parts(data)]
    parts = Parts(*(opened if len(opened) == 3 else (opened[0], *opened)))
  else:
    parts = halves(make_source(data))
  exams = {"test": parts.test}
  if config.base_to_new:
    names = parts.train.class_names
    base, new = names[: -(-len(names) // 2)], names[-(-len(names) // 2) :]
    kept = {
      id(part): ClassSubset(part, base) for part in parts
    }  # `val` may be `train`, and stays so
    parts = Parts(*(kept[id(part)] for part in parts))
    exams = {"base": parts.test, "new": ClassSubset(exams["test"], new)}
  for entry in config.transfer:
    name, _, path = entry.partition("=")
    other = configs.replace(
      config,
      {"data.name": "fsl", "data.domain": name, "data.path": path, "data.split": "test",
       "data.split_file": "", "data.classes": (), "data.files": ""},
    )  # fmt: skip
    exams[name] = make_source(other.data)
  for name, source in exams.items():
    if not (source.labels >= 0).any():
      raise ValueError(f"{source.name}: there are no test images for {name}.")
  shared = parts.val is parts.train  # an image more, to validate on
  check_feasible(parts.train, 2, data.shots, int(shared))
  check_feasible(parts.val, 2, 1, 0)
  return parts, exams


def _parts(data: Any) -> tuple[str, ...]:
  """ImageNet has two: validation images come from its training folders."""
  release = RELEASES.get(data.domain)
  return ("train", "test") if release and release.images[1] is None else ("train", "val", "test")


def make_experiment(
  config: ml_collections.ConfigDict,
  parts: Parts,
  exams: Mapping[str, Source],
  group: Group,
  placing: dict[str, Any],
) -> Experiment:
  """One run of one group, with what was understood of its data."""
  sources = {"train": parts.train, "val": parts.val} | exams
  identity = finetune.identity(config, parts.train)
  identity["domains"] = {
    name: {"class_names": list(source.class_names), "content": source.content()}
    for name, source in sources.items()
  }
  counted = [f"{name} {int((source.labels >= 0).sum())}" for name, source in sources.items()]
  about = (
    f"{parts.train.name}: all {len(parts.train.class_names)} classes, {config.data.shots} images "
    f"of each; images: {', '.join(counted)}\n"
    + finetune.about(config, parts.train).rpartition("\n")[2]
  )
  return Experiment({"": config}, {"": identity}, [group], placing, about)


def with_prompts(
  parts: Parts, exams: Mapping[str, Source], encode: Callable[[Source], Prompts]
) -> tuple[Prompts, list[Examination]]:
  """The prompts of the classes that are learned, and the examinations, each with its own.

  Args:
    parts: what is drawn from.
    exams: test images by name.
    encode: all classes of a source.
  """
  learned = encode(parts.train)
  return learned, [
    Examination(name, source, learned if name in ("test", "base") else encode(source))
    for name, source in exams.items()
  ]


def about_task(parts: Parts, support: np.ndarray, validation: np.ndarray) -> dict[str, Any]:
  """What a line says of a task's data: its classes, and indices `[C, ·]` of its images."""
  return {
    "class_names": list(parts.train.class_names),
    "support": support.tolist(),
    "query": validation.tolist(),
  }


def task_labels(rows: np.ndarray) -> np.ndarray:
  """`[C · n] int32`, of rows `[C, n]` one after the other."""
  return np.repeat(np.arange(len(rows), dtype=np.int32), rows.shape[1])


def batches(load: Callable[..., Any], tasks: Sequence[TaskId], size: int) -> Iterator[TaskBatch]:
  """Tasks in batches of `size`; the next is loaded while the last is adapted."""
  for start in range(0, len(tasks), size):
    ids = tasks[start : start + size]
    arrays, about = zip(*map(load, ids), strict=True)
    yield TaskBatch(ids, jax.tree.map(lambda *leaves: np.stack(leaves), *arrays), about)


def examine(
  exams: Sequence[Examination],
  read: Callable[[Examination, np.ndarray], Iterator[np.ndarray]],
  classify: Callable[[Examination], Classify],
  *,
  tasks: int,
  batch_size: int,
  tick: Callable[[str], None],
) -> list[dict[str, Any]]:
  """Classifies all test images by what each task has learned, and by the pretrained model.

  Args:
    exams: in the order of the table.
    read: gives, one after the other, what stands for the images of some rows of an examination.
    classify: of an examination.
    tasks: `E`; more rows than that are padding.
    batch_size: `B`.
    tick: told how far it is; may raise to stop.

  Returns:
    For each task, what its line says: of the first examination as `accuracy` and
    `zero_shot_accuracy`, of all in `tests`.
  """
  lines: list[dict[str, Any]] = [{} for _ in range(tasks)]
  for exam in exams:
    call = classify(exam)
    rows = np.flatnonzero(exam.source.labels >= 0)
    right, before, inputs = np.zeros(tasks, np.int64), 0, read(exam, rows)
    for start in range(0, len(rows), batch_size):
      chosen = rows[start : start + batch_size]
      batch = [next(inputs) for _ in chosen]
      found, zero_shot = call(np.stack(batch + batch[-1:] * (batch_size - len(chosen))))
      labels = exam.source.labels[chosen]
      right += (np.asarray(found)[:tasks, : len(chosen)] == labels).sum(1)
      before += int((np.asarray(zero_shot)[0, : len(chosen)] == labels).sum())
      tick(f"{exam.name}: {start + len(chosen)} of {len(rows)} test images")
    for line, count in zip(lines, right, strict=True):
      line[exam.name] = {
        "images": len(rows),
        "accuracy": round(int(count) / len(rows), 6),
        "zero_shot_accuracy": round(before / len(rows), 6),
      }
  first = exams[0].name
  return [
    {name: line[first][name] for name in ("accuracy", "zero_shot_accuracy")} | {"tests": line}
    for line in lines
  ]
