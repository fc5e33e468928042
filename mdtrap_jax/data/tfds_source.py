"""The target domains by name, read through TFDS by random access, without TensorFlow."""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

# Importing a builder of ours registers its name with TFDS.
from mdtrap_jax.data import images
from mdtrap_jax.data.builders import chestx14 as _chestx14  # noqa: F401
from mdtrap_jax.data.builders import isic2018 as _isic2018  # noqa: F401

EUROSAT_CLASSES = {
  "AnnualCrop": "Annual Crop Land",
  "Forest": "Forest",
  "HerbaceousVegetation": "Herbaceous Vegetation Land",
  "Highway": "Highway or Road",
  "Industrial": "Industrial Buildings",
  "Pasture": "Pasture Land",
  "PermanentCrop": "Permanent Crop Land",
  "Residential": "Residential Buildings",
  "River": "River",
  "SeaLake": "Sea or Lake",
}


class Target(NamedTuple):
  """A target domain: its TFDS builder, and its labels' names in prompts where they differ."""

  builder: str
  class_names: Mapping[str, str] | None = None


TARGETS = {
  "eurosat": Target("eurosat/rgb", EUROSAT_CLASSES),
  "cropdisease": Target("plant_village"),
  "isic": Target("isic2018"),
  "chestx": Target("chestx14"),
}


class TfdsSource:
  """A split of a TFDS data set, prepared on disk as array_record."""

  def __init__(
    self,
    builder_name: str,
    split: str,
    data_dir: str | None = None,
    class_names: Mapping[str, str] | None = None,
  ):
    """Opens the data set and reads all its labels; no image is decoded yet.

    Args:
      builder_name: Of TFDS, with its config, for example "eurosat/rgb". The builder's examples
        have the features "image" and "label".
      split: For example "train" or "train[:50%]".
      data_dir: Where TFDS data sets are; None is TFDS's default.
      class_names: From each label's name in TFDS to the name in prompts, in the order that the
        classes shall have; None keeps TFDS's names and order.

    Raises:
      FileNotFoundError: If the data set is not prepared, with the command that does it.
      ValueError: If the names do not fit the builder's labels, or the split is unknown.
    """
    builder = tfds.builder(builder_name, data_dir=data_dir)
    readable = tfds.core.file_adapters.FileFormat.with_random_access()
    if not builder.is_prepared() or builder.info.file_format not in readable:
      raise FileNotFoundError(_not_prepared(builder_name, data_dir, builder))
    names = builder.info.features["label"].names
    order = class_names or {name: name for name in names}
    if set(order) != set(names):
      raise ValueError(f"{builder_name} has the labels {names}, not {list(order)}.")
    relabel = np.array([list(order).index(name) for name in names], np.int32)
    if split.partition("[")[0] not in builder.info.splits:
      raise ValueError(
        f"{builder_name} has no split {split!r}; it has {', '.join(builder.info.splits)}. "
        "Change --config.data.split."
      )
    self.name = builder_name
    self.class_names = tuple(order.values())
    as_stored = {"image": tfds.decode.SkipDecoding()}
    self._examples = builder.as_data_source(split, decoders=as_stored)
    self.labels = relabel[[example["label"] for example in self._examples]]
    digest = hashlib.sha256(f"{builder.info.full_name} {split}".encode())
    for file in sorted(builder.data_path.glob("*array_record*")):
      digest.update(f"{file.name} {file.stat().length} {file.stat().mtime}".encode())
    self.identity = digest.hexdigest()

  def image(self, index: int) -> np.ndarray:
    """Decodes an image, uint8 `[H, W, 3]`."""
    example = self._examples[index]
    return images.decode(bytes(example["image"]), self._name(index, example))

  def describe(self, index: int) -> str:
    """The example's number in the split, with its file's name where TFDS keeps it."""
    return self._name(index, self._examples[index])

  def _name(self, index: int, example: Mapping[str, Any]) -> str:
    file = example.get("filename", example.get("image/filename", b""))
    return f"{self.name} example {index} {bytes(file).decode()}".rstrip()


def _not_prepared(
  builder_name: str, data_dir: str | None, builder: tfds.core.DatasetBuilder
) -> str:
  if builder.is_prepared():
    return (
      f"{builder_name} at {builder.data_path} is stored as {builder.info.file_format.value}, "
      "which has no random access. Prepare it as array_record in another folder and give that "
      "as --config.data.data_dir=."
    )
  command = [
    "python -m mdtrap_jax.data.prepare",
    *(name for name, target in TARGETS.items() if target.builder == builder_name),
    f"--data_dir={data_dir or tfds.core.constants.DATA_DIR}",
  ]
  if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
    command.append("--manual_dir=<folder of the official release>")
  return (
    f"{builder_name} is not prepared at {builder.data_path}. Prepare it once with: "
    f"{' '.join(command)}"
  )
