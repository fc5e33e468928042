"""Meta-Dataset's records, read in place and without TensorFlow.

Its conversion leaves one folder per data set with `dataset_spec.json` and one TFRecord file per
class, `0.tfrecords`, `1.tfrecords`, …, whose examples hold the encoded `image`. Class numbers
run through the training classes first, then validation, then test.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from mdtrap_jax import files
from mdtrap_jax.data import images
from mdtrap_jax.data.hierarchy import leaves_below, read_hierarchy
from mdtrap_jax.data.tfrecord import Record, bytes_feature, index_records, read_record

SPLITS = ("TRAIN", "VALID", "TEST")
_MOST_CLASSES = 100_000  # of a data set; more are no specification of Meta-Dataset's


class RecordSource:
  """The classes of one split of one data set of Meta-Dataset; a `Source`.

  Attributes:
    name: of the data set, with its split.
    class_names: of the split's classes.
    labels: [n] int32.
    identity: hex digest of all images' sizes and checksums, class by class.
    hierarchy: of the classes, where the specification has one; else `None`.
    align_corners: networks trained on Meta-Dataset saw its images resized in that way.
  """

  align_corners = True

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
    in_dataset = lambda name: name.startswith(f"{dataset}/")
    folder = Path(files.local(root, in_dataset)) / dataset
    specification = folder / "dataset_spec.json"
    if not root or not specification.is_file():
      raise FileNotFoundError(
        f"{specification} does not exist. Set --config.data.records= to the folder that "
        "Meta-Dataset's conversion wrote, with one subfolder per data set."
      )
    if split.upper() not in SPLITS:
      raise ValueError(f"--config.data.records_split={split!r}: choose train, valid or test.")
    self.name = f"{dataset}/{split}"
    try:
      spec = json.loads(specification.read_text(encoding="utf-8"))
      numbers = split_classes(spec, split.upper())
      names = [str(spec.get("class_names", {}).get(str(n), n)) for n in numbers]
      self.hierarchy = read_hierarchy(spec, split.upper(), numbers)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
      reason = f"no {error}" if isinstance(error, KeyError) else f"{error}".rstrip(".")
      raise ValueError(
        f"{specification} is damaged or is no specification: {reason}. Convert {dataset} again "
        "with Meta-Dataset's own code."
      ) from error
    if not numbers:
      raise ValueError(f"{specification}: {dataset} has no classes in the split {split!r}.")
    if len(set(names)) < len(numbers):  # Omniglot's characters, by alphabet
      names = [f"{name} {n}" for name, n in zip(names, numbers, strict=True)]
    self.class_names = tuple(names)
    self._records: list[Record] = []
    counts, self._digests = [], []
    for number in numbers:
      found = [record for file in _files(folder, number) for record in index_records(file)]
      _check_count(specification, spec, number, len(found))
      self._records += found
      counts.append(len(found))
      contents = repr([(record.size, record.checksum) for record in found])
      self._digests.append(hashlib.sha256(contents.encode()).hexdigest())
    self.labels = np.repeat(np.arange(len(numbers), dtype=np.int32), counts)
    self.identity = hashlib.sha256(repr(list(self.content().items())).encode()).hexdigest()

  def image(self, index: int) -> np.ndarray:
    """Decodes an image, uint8 `[H, W, 3]`.

    Raises:
      UnreadableImageError: the record is damaged or holds no image.
    """
    try:
      encoded = bytes_feature(read_record(self._records[index]), "image")
    except ValueError as error:
      raise images.UnreadableImageError(
        f"Cannot read the image {self.describe(index)}: {error}. Copy or convert the file again, "
        "or set --config.data.unreadable=skip to leave it out."
      ) from error
    return images.decode(encoded, self.describe(index))

  def describe(self, index: int) -> str:
    """The record's file and where it starts there."""
    record = self._records[index]
    return f"{record.path}, byte {record.start}"

  def content(self) -> dict[str, tuple[int, str]]:
    """`{class name: (images, hex digest of their sizes and checksums)}`."""
    counts = np.bincount(self.labels, minlength=len(self.class_names)).tolist()
    return dict(zip(self.class_names, zip(counts, self._digests, strict=True), strict=True))


def split_classes(spec: dict[str, Any], split: str) -> range:
  """The class numbers of a split, by a `dataset_spec.json`.

  Raises:
    ValueError: the specification does not say how many classes each split has.
    KeyError, TypeError: it is damaged.
  """
  if "superclasses_per_split" in spec:  # Omniglot: alphabets, each with some characters
    sizes, counts, first = spec["classes_per_superclass"], {}, 0
    for name in SPLITS:
      last = first + spec["superclasses_per_split"][name]
      counts[name] = sum(sizes[str(i)] for i in range(first, last))
      first = last
  elif "split_subgraphs" in spec:  # ImageNet: the leaves of a part of WordNet
    graphs = spec["split_subgraphs"]
    counts = {
      name: sum(leaves == {node} for node, leaves in leaves_below(graphs[name]).items())
      for name in SPLITS
    }
  elif "classes_per_split" in spec:
    counts = spec["classes_per_split"]
  else:
    raise ValueError("it has neither classes_per_split nor superclasses_per_split")
  numbers = [counts[name] for name in SPLITS]
  if not all(type(n) is int and 0 <= n <= _MOST_CLASSES for n in numbers):
    raise ValueError(f"{numbers} classes for training, validation and test cannot be")
  before = sum(numbers[: SPLITS.index(split)])
  return range(before, before + counts[split])


def _files(folder: Path, number: int) -> list[Path]:
  """The file of a class, or its shards."""
  whole = folder / f"{number}.tfrecords"
  files = [whole] if whole.is_file() else sorted(folder.glob(f"{number}_*.tfrecords"))
  if not files:
    raise FileNotFoundError(f"{whole} is missing: convert {folder.name} again.")
  return files


def _check_count(specification: Path, spec: dict[str, Any], number: int, count: int) -> None:
  """Warns where a class has other images than its specification says; a file cut after a record."""
  expected = spec.get("images_per_class")
  expected = expected.get(str(number)) if isinstance(expected, dict) else None
  if isinstance(expected, int) and expected != count:
    logging.warning(
      "%s says that class %d has %d images, but its records hold %d: the file may be cut short.",
      specification, number, expected, count,
    )  # fmt: skip
