"""Meta-Dataset's records, read in place and without TensorFlow.

Its conversion leaves one folder per data set with `dataset_spec.json` and one TFRecord file per
class, `0.tfrecords`, `1.tfrecords`, …, whose examples hold the encoded `image`. Class numbers
run through the training classes first, then validation, then test.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mdtrap_jax.data import images

SPLITS = ("TRAIN", "VALID", "TEST")
# The one data set whose specification gives its classes as a graph.
IMAGENET = {"TRAIN": 712, "VALID": 158, "TEST": 130}
_LENGTH, _OVERHEAD = 8, 16  # bytes: a record's length, and that with its two checksums


class RecordSource:
  """The classes of one split of one data set of Meta-Dataset; a `Source`.

  Attributes:
    name: of the data set, with its split.
    class_names: of the split's classes.
    labels: [n] int32.
    identity: hex digest of the files' names, sizes and times.
  """

  def __init__(self, root: str | Path, dataset: str, split: str = "test"):
    """Finds where each record starts; no image is read yet.

    Args:
      root: the folder of all data sets' records.
      dataset: the name of a folder in it.
      split: "train", "valid" or "test".

    Raises:
      FileNotFoundError: There is no such data set, or a class's file is missing.
      ValueError: No such split, or files that are not as Meta-Dataset writes them.
    """
    folder = Path(root).expanduser() / dataset
    specification = folder / "dataset_spec.json"
    if not root or not specification.is_file():
      raise FileNotFoundError(
        f"{specification} does not exist. Set --config.data.records= to the folder that "
        "Meta-Dataset's conversion wrote, with one subfolder per data set."
      )
    if split.upper() not in SPLITS:
      raise ValueError(f"--config.data.records_split={split!r}: choose train, valid or test.")
    self.name = f"{dataset}/{split}"
    spec = json.loads(specification.read_text(encoding="utf-8"))
    numbers = split_classes(spec, split.upper())
    if not numbers:
      raise ValueError(f"{specification}: {dataset} has no classes in the split {split!r}.")
    names = spec.get("class_names", {})
    self.class_names = tuple(str(names.get(str(n), n)) for n in numbers)
    if len(set(self.class_names)) < len(numbers):  # Omniglot's characters, by alphabet
      self.class_names = tuple(
        f"{name} {n}" for name, n in zip(self.class_names, numbers, strict=True)
      )
    self._records: list[tuple[Path, int, int]] = []
    labels, digest = [], hashlib.sha256()
    for label, number in enumerate(numbers):
      for file in _files(folder, number):
        found = [(file, start, size) for start, size in _records(file)]
        self._records += found
        labels += [label] * len(found)
        status = file.stat()
        digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}".encode())
    self.labels = np.array(labels, np.int32)
    self.identity = digest.hexdigest()

  def image(self, index: int) -> np.ndarray:
    """Decodes an image, uint8 `[H, W, 3]`."""
    path, start, size = self._records[index]
    with open(path, "rb") as file:
      file.seek(start)
      return images.decode(encoded_image(file.read(size), path), self.describe(index))

  def describe(self, index: int) -> str:
    """The record's file and where it starts there."""
    path, start, _ = self._records[index]
    return f"{path}, byte {start}"


def split_classes(spec: dict[str, Any], split: str) -> range:
  """The class numbers of a split, by a `dataset_spec.json`.

  Raises:
    ValueError: the specification does not say how many classes each split has.
  """
  counts = spec.get("classes_per_split")
  if "superclasses_per_split" in spec:  # Omniglot: alphabets, each with some characters
    sizes, counts, first = spec["classes_per_superclass"], {}, 0
    for name in SPLITS:
      last = first + spec["superclasses_per_split"][name]
      counts[name] = sum(sizes[str(i)] for i in range(first, last))
      first = last
  if counts is None and "split_subgraphs" in spec:
    counts = IMAGENET
  if counts is None:
    raise ValueError(
      f"dataset_spec.json of {spec.get('name')}: neither classes_per_split nor "
      "superclasses_per_split; convert it again with Meta-Dataset's own code."
    )
  before = sum(counts[name] for name in SPLITS[: SPLITS.index(split)])
  return range(before, before + counts[split])


def encoded_image(example: bytes, path: Path) -> bytes:
  """The `image` of a serialized `tf.train.Example`.

  Raises:
    ValueError: it has none.
  """
  for _, features in _fields(example):
    for _, entry in _fields(features):
      parts = dict(_fields(entry))  # 1 is the key, 2 the feature, whose field 1 is bytes
      if parts.get(1) == b"image":
        return dict(_fields(dict(_fields(parts[2]))[1]))[1]
  raise ValueError(f"{path}: a record has no feature named 'image'; Meta-Dataset's have.")


def _files(folder: Path, number: int) -> list[Path]:
  """The file of a class, or its shards."""
  whole = folder / f"{number}.tfrecords"
  files = [whole] if whole.is_file() else sorted(folder.glob(f"{number}_*.tfrecords"))
  if not files:
    raise FileNotFoundError(f"{whole} is missing: convert {folder.name} again.")
  return files


def _records(path: Path) -> Iterator[tuple[int, int]]:
  """Start and size of each record's content."""
  end = path.stat().st_size
  with open(path, "rb") as file:
    position = 0
    while position < end:
      file.seek(position)
      head = file.read(_LENGTH)
      size = struct.unpack("<Q", head)[0] if len(head) == _LENGTH else end
      if position + size + _OVERHEAD > end:
        raise ValueError(
          f"{path} ends within a record, at byte {position}: it was cut short, "
          "or is no TFRecord file."
        )
      yield position + _LENGTH + 4, size
      position += size + _OVERHEAD


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
  """Number and content of each field of a protocol buffer that has no other kind but bytes."""
  position = 0
  while position < len(message):
    tag, position = _varint(message, position)
    size, position = _varint(message, position)
    if tag & 7 != 2 or position + size > len(message):
      raise ValueError("a record is no tf.train.Example.")
    yield tag >> 3, message[position : position + size]
    position += size


def _varint(message: bytes, position: int) -> tuple[int, int]:
  value = shift = 0
  while position < len(message):
    byte = message[position]
    value |= (byte & 127) << shift
    shift, position = shift + 7, position + 1
    if byte < 128:
      return value, position
  raise ValueError("a record is no tf.train.Example.")
