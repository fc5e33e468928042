"""What a run says of every query image, kept where `config.predictions` asks for it.

Like lines, records are added to a file and flushed, each batch's before its lines: an episode that
has a line has a record, whatever killed the run. When the run is finished, records become one
`predictions.npz` with a manifest, `predictions.json`, in an order that no kill changes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from absl import logging

from mdtrap_jax import __version__, files
from mdtrap_jax.run import claim
from mdtrap_jax.run.lines import read_object
from mdtrap_jax.run.store import PREDICTIONS

ARRAYS, MANIFEST, PART = PREDICTIONS
_MEANING = {
  "episode": "[E] numbers as in episodes.jsonl",
  "domain": "[E] place in `domains`",
  "scale": "[E] of `after`: probabilities are softmax(scale * cosine); 1 where these are logits",
  "classes": "[E, C] the columns of an episode: places in `class_names` of its domain; -1: none",
  "first": "[E + 1] rows of episode e: first[e] to first[e + 1]",
  "image": "[n] index into the source, as in episodes.jsonl",
  "filename": "[n] place in `files` of the domain",
  "label": "[n] true class, a place in `class_names` of the domain",
  "before": "[n, C] float32 cosines before adapting: zero-shot, or nearest centroids",
  "after": "[n, C] float32 cosines of the adapted model; NaN where an episode failed",
}


class Record(NamedTuple):
  """One episode's queries: `q` images, `C` classes."""

  episode: int
  domain: str  # "" where there is one
  class_names: list[str]  # C
  images: list[int]  # q indices into the source
  files: list[str]  # q names
  labels: list[int]  # q places in `class_names`
  scale: float  # of cosines
  before: np.ndarray  # [q, C] float32
  after: np.ndarray  # [q, C] float32


def make_record(
  task: Any,
  about: Mapping[str, Any],
  before: np.ndarray,
  after: np.ndarray,
  scale: float,
  describe: Callable[[int], str],
) -> Record:
  """The record of a task.

  Args:
    task: its `TaskId`.
    about: what its line says: `class_names` and `query`, indices by class.
    before: `[Q, C]` cosines, rows as in `about`, then padding.
    after: likewise, of the adapted model.
    scale: of cosines.
    describe: what an image of the source is called.
  """
  ways, images = len(about["class_names"]), [i for row in about["query"] for i in row]
  labels = [label for label, row in enumerate(about["query"]) for _ in row]
  cut = lambda cosines: np.asarray(cosines, np.float32)[: len(images), :ways]
  names, described = list(about["class_names"]), [describe(i) for i in images]
  return Record(
    task.episode, task.domain, names, images, described, labels, scale, cut(before), cut(after)
  )


class Log:
  """The records of one run directory; of several processes, each has its own."""

  def __init__(self, folder: Path):
    """Opens it; a record that a kill cut short is dropped.

    Raises:
      OSError: it cannot be read.
    """
    self._path = folder / PART
    try:
      descriptor = claim.open_regular(self._path, os.O_RDWR)
    except FileNotFoundError:
      return
    with open(descriptor, "rb+") as file:
      _, good = _parse(file)
      os.ftruncate(descriptor, good)

  def append(self, records: Iterable[Record]) -> None:
    """Adds records and returns once they are on the disk.

    Raises:
      OSError: the disk is full; what was there before is untouched.
    """
    content = b"".join(map(_pack, records))
    descriptor = claim.open_regular(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    size = os.fstat(descriptor).st_size
    try:
      while content:
        content = content[os.write(descriptor, content) :]
      os.fsync(descriptor)
    except BaseException:
      os.ftruncate(descriptor, size)
      raise
    finally:
      os.close(descriptor)


def check(folder: Path, root: Path, finished: Collection[int]) -> None:
  """Refuses to keep predictions of a part of a run.

  Raises:
    ValueError: episodes were adapted without keeping any.
  """
  if finished and not any(map(kept, (folder, *_others(folder, root)))):
    raise ValueError(
      f"{folder} has {len(finished)} episodes and no predictions of them: give another --workdir, "
      "or go on without --config.predictions."
    )


def _others(folder: Path, root: Path) -> list[Path]:
  """Where other processes keep the same run."""
  return [other / folder.relative_to(root) for other in sorted(root.glob("process-*"))]


def finish(folder: Path, finished: Collection[int], root: Path) -> None:
  """Makes one file of the records of all processes.

  Args:
    folder: of the run.
    finished: the episodes that have lines.
    root: the work directory, in which other processes' directories are.
  """
  records = {n: record for n, record in gather(folder, root).items() if n in set(finished)}
  if lacking := len(finished) - len(records):
    logging.warning("%s: %d episodes have no predictions here.", folder / ARRAYS, lacking)
  arrays, about = _table([record for _, record in sorted(records.items())])
  content = io.BytesIO()
  np.savez_compressed(content, **arrays)
  digest = hashlib.sha256(content.getvalue()).hexdigest()
  about |= {"sha256": digest, "version": __version__}
  files.write(folder / ARRAYS, content.getvalue())
  files.write(folder / MANIFEST, json.dumps(about, indent=1) + "\n")
  (folder / PART).unlink(missing_ok=True)


def gather(folder: Path, root: Path | None = None) -> dict[int, Record]:
  """All records of a run directory, of other processes too, by episode.

  Args:
    folder: of the run.
    root: the work directory, in which other processes' directories are; none if not given.

  Raises:
    ValueError: `predictions.npz` is damaged.
  """
  records: dict[int, Record] = {}
  for other in _others(folder, root) if root else ():
    records |= _read_part(other)
  if (folder / ARRAYS).is_file() and (folder / MANIFEST).is_file():
    records |= _read_table(folder)
  return records | _read_part(folder)


def _pack(record: Record) -> bytes:
  """A line of JSON, and the bytes of both arrays with a digest of all."""
  head = json.dumps(record._replace(before=None, after=None)._asdict()).encode()
  body = b"".join(part.tobytes() for part in (record.before, record.after))
  return b"%b %d\n%b\n%b" % (
    hashlib.sha256(head + body).hexdigest().encode(), len(body), head, body
  )  # fmt: skip


def _parse(file: BinaryIO) -> tuple[dict[int, Record], int]:
  """Records by episode, of one that stands there twice the last, and the bytes they take."""
  records, good = {}, 0
  while True:
    digest, _, size = file.readline().partition(b" ")
    if not size.endswith(b"\n") or not size.strip().isdigit():
      return records, good
    head, body = file.readline()[:-1], file.read(int(size))
    if hashlib.sha256(head + body).hexdigest().encode() != digest:
      return records, good
    fields = json.loads(head)
    shape = (2, len(fields["images"]), len(fields["class_names"]))
    before, after = np.frombuffer(body, np.float32).reshape(shape)
    record = Record(**fields | {"before": before, "after": after})
    records[record.episode], good = record, file.tell()


def _read_part(folder: Path) -> dict[int, Record]:
  try:
    with open(claim.open_regular(folder / PART, os.O_RDONLY), "rb") as file:
      return _parse(file)[0]
  except FileNotFoundError:
    return {}


def _table(records: list[Record]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Arrays and manifest."""
  domains = {record.domain: ({}, {}) for record in records}
  ways = max((len(record.class_names) for record in records), default=0)
  places = lambda known, names: [known.setdefault(name, len(known)) for name in names]
  classes = np.full((len(records), ways), -1, np.int32)
  columns: dict[str, list[Any]] = {name: [] for name in ("filename", "label", "before", "after")}
  for row, record in enumerate(records):
    names, described = domains[record.domain]
    own = places(names, record.class_names)
    classes[row, : len(own)] = own
    columns["filename"] += places(described, record.files)
    columns["label"] += [own[label] for label in record.labels]
    missing = ((0, 0), (0, ways - len(own)))
    for name in ("before", "after"):
      columns[name].append(np.pad(getattr(record, name), missing, constant_values=-np.inf))
  order = {domain: number for number, domain in enumerate(domains)}
  cosines = {
    name: np.concatenate([np.zeros((0, ways), np.float32), *columns[name]])
    for name in ("before", "after")
  }
  arrays = {
    "episode": np.array([record.episode for record in records], np.int64),
    "domain": np.array([order[record.domain] for record in records], np.int32),
    "scale": np.array([record.scale for record in records], np.float64),
    "classes": classes,
    "first": np.cumsum([0, *(len(record.images) for record in records)], dtype=np.int64),
    "image": np.array([i for record in records for i in record.images], np.int64),
    "filename": np.array(columns["filename"], np.int32),
    "label": np.array(columns["label"], np.int32),
    **cosines,
  }
  known = [
    {"name": domain, "class_names": list(names), "files": list(described)}
    for domain, (names, described) in domains.items()
  ]
  about = {"episodes": len(records), "predictions": len(arrays["image"])}
  return arrays, about | {"arrays": _MEANING, "domains": known}


def _read_table(folder: Path) -> dict[int, Record]:
  about = read_object(folder / MANIFEST)
  content = (folder / ARRAYS).read_bytes()
  if hashlib.sha256(content).hexdigest() != about.get("sha256"):
    raise ValueError(f"{folder / ARRAYS} does not fit {MANIFEST}: restore or remove both.")
  with np.load(io.BytesIO(content)) as loaded:
    arrays = dict(loaded)
  records = {}
  for row, episode in enumerate(arrays["episode"].tolist()):
    domain, rows = about["domains"][arrays["domain"][row]], slice(*arrays["first"][row : row + 2])
    own = arrays["classes"][row]
    own = own[own >= 0].tolist()
    place = {label: column for column, label in enumerate(own)}
    records[episode] = Record(
      episode=episode,
      domain=domain["name"],
      class_names=[domain["class_names"][label] for label in own],
      images=arrays["image"][rows].tolist(),
      files=[domain["files"][number] for number in arrays["filename"][rows]],
      labels=[place[label] for label in arrays["label"][rows].tolist()],
      scale=float(arrays["scale"][row]),
      before=arrays["before"][rows, : len(own)],
      after=arrays["after"][rows, : len(own)],
    )
  return records


def kept(folder: Path) -> bool:
  """Whether a run directory has predictions."""
  return any((folder / name).exists() for name in (ARRAYS, PART))
