"""The target domains by name, read through TFDS by random access, without TensorFlow."""

import contextlib
import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

# Importing a builder of ours registers its name with TFDS.
from mdtrap_jax import buckets, files
from mdtrap_jax.data import images
from mdtrap_jax.data.builders import chestx14 as _chestx14  # noqa: F401
from mdtrap_jax.data.builders import isic2018 as _isic2018  # noqa: F401
from mdtrap_jax.data.content import Content, digest_of, identity_of
from mdtrap_jax.data.names import listed, nfc, shown
from mdtrap_jax.data.targets import TARGETS


class TfdsSource:
  """A split of a TFDS data set, prepared on disk as array_record.

  Attributes:
    name: The builder's.
    class_names: As used in prompts, in the order of TFDS's labels.
    labels: [n] int32.
    files: `n` names, TFDS's label and the file's name where TFDS keeps it.
  """

  def __init__(
    self,
    builder_name: str,
    split: str,
    data_dir: str | None = None,
    class_names: Mapping[str, str] | None = None,
    decoding: images.Decoding = images.DEFAULT,
  ):
    """Opens the data set and reads all its labels; no image is decoded yet.

    Args:
      builder_name: Of TFDS, with its config, for example "eurosat/rgb". The builder's examples
        have the features "image" and "label".
      split: For example "train" or "train[:50%]".
      data_dir: Where TFDS data sets are; None is TFDS's default.
      class_names: The name in prompts of each label that has another than TFDS's.
      decoding: What becomes of depth and transparency.

    Raises:
      FileNotFoundError: If the data set is not prepared, with the command that does it.
      OSError: If a record file is damaged, naming it.
      ValueError: If the names do not fit the builder's labels, the split is unknown, or what
        TFDS wrote about the data set is damaged.
    """
    self._builder = builder = open_builder(builder_name, data_dir)
    self._again = prepare_command(builder_name, data_dir, builder.MANUAL_DOWNLOAD_INSTRUCTIONS)
    readable = tfds.core.file_adapters.FileFormat.with_random_access()
    if not builder.is_prepared() or builder.info.file_format not in readable:
      raise FileNotFoundError(_not_prepared(builder_name, builder, self._again))
    if absent := {"image", "label"} - set(builder.info.features):
      raise ValueError(f"{builder_name} has no feature {', '.join(sorted(absent))}.")
    names = builder.info.features["label"].names
    renamed = class_names or {}
    if not set(renamed) <= set(names):
      raise ValueError(f"{builder_name} has the labels {names}, not {list(renamed)}.")
    self._base = split.partition("[")[0]
    if self._base not in builder.info.splits:
      raise ValueError(
        f"{builder_name} has no split {split!r}; it has {', '.join(builder.info.splits)}. "
        "Change --config.data.split."
      )
    self.name = builder_name
    self.class_names = tuple(nfc(renamed.get(name, name)) for name in names)
    self._split, self._decoding, self._notes = split, decoding, images.Notes(builder_name)
    as_stored = {"image": tfds.decode.SkipDecoding()}
    with self._naming_damage():
      self._examples = builder.as_data_source(split, decoders=as_stored)
      kept = [(int(example["label"]), _file(example)) for example in self._examples]
    self.labels = np.array([label for label, _ in kept], np.int32)
    self.files = [f"{names[label]}/{nfc(file)}" for label, file in kept]

  @functools.cached_property
  def identity(self) -> str:
    """Hex digest of the records, the split, the class names and how images are decoded."""
    settings = self._builder.info.full_name, self._decoding, images.VERSION
    return identity_of(self.class_names, self.content(), *settings)

  def content(self) -> Content:
    """Number of images and a digest of the record files, of the split as a whole."""
    return dict(self._content)

  @functools.cached_property
  def _content(self) -> Content:
    return {self._split: (len(self.labels), digest_of(files.digests(self._records())))}

  def image(self, index: int) -> np.ndarray:
    """Decodes an image, uint8 `[H, W, 3]`."""
    with self._naming_damage():
      example = self._examples[index]
      encoded = bytes(example["image"])
    return images.decode(encoded, self.describe(index), self._decoding, self._notes)

  def describe(self, index: int) -> str:
    """The example's number in the split, with its file's name where TFDS keeps it."""
    return shown(f"{self.name} example {index} {self.files[index].partition('/')[2]}".rstrip())

  def _records(self) -> list[str]:
    return sorted(str(path) for path in self._builder.info.splits[self._base].filepaths)

  @contextlib.contextmanager
  def _naming_damage(self) -> Iterator[None]:
    """What reading a damaged record raises, as an error that names the file and the remedy."""
    try:
      yield
    except Exception as error:  # Riegeli raises RuntimeError; parsing raises what it meets.
      reason = " ".join(str(error).split()) or type(error).__name__
      damaged = [file for file in self._records() if not _is_whole(file)]
      where = listed(damaged or self._records(), 3)
      raise OSError(
        f"Cannot read {where}: damaged, cut short, or records without an image ({reason}). Delete "
        f"the folder {self._builder.data_path} and prepare it again with: {self._again}"
      ) from error


def open_builder(name: str, data_dir: str | None, **options: Any) -> tfds.core.DatasetBuilder:
  """TFDS's builder of a data set.

  Raises:
    ValueError: If what TFDS wrote about it in `data_dir` is damaged, naming the file.
  """
  if data_dir and buckets.is_bucket(data_dir):  # record files are read by C++, from disks alone
    own = name.partition("/")[0] + "/"
    try:
      here = files.local(data_dir, lambda found: found.startswith(own))
    except FileNotFoundError as error:
      raise FileNotFoundError(
        f"{name} is not prepared at {data_dir}. Prepare it once with: "
        f"{prepare_command(name, data_dir, None)}"
      ) from error
    return open_builder(name, here, **options)
  try:
    return tfds.builder(name, data_dir=data_dir, **options)
  except Exception as error:  # Of many kinds, when dataset_info.json is damaged.
    folder = pathlib.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser() / name
    written = listed(folder.glob("*/dataset_info.json")) or str(folder)
    raise ValueError(
      f"Cannot read {written}: {' '.join(str(error).split())} Delete that folder and prepare it "
      f"again with: {prepare_command(name, data_dir, None)}"
    ) from error


def _file(example: Mapping[str, Any]) -> str:
  """The file's name, or nothing."""
  name = example.get("filename", example.get("image/filename", b""))
  return bytes(name).decode(errors="surrogateescape")


def _is_whole(file: str) -> bool:
  """Whether an array_record can be read to its end."""
  from array_record.python.array_record_module import ArrayRecordReader  # Comes with TFDS.

  try:
    reader = ArrayRecordReader(file)
    reader.read_all()
    return reader.ok()
  except RuntimeError:
    return False


def prepare_command(builder_name: str, data_dir: str | None, instructions: str | None) -> str:
  """The command that prepares a target domain."""
  command = [
    "mdtrap prepare",
    *(name for name, target in TARGETS.items() if target.builder == builder_name),
    f"--data_dir={data_dir or tfds.core.constants.DATA_DIR}",
  ]
  if instructions:
    command.append("--manual_dir=<folder of the official release>")
  return " ".join(command)


def _not_prepared(builder_name: str, builder: tfds.core.DatasetBuilder, command: str) -> str:
  if builder.is_prepared():
    return (
      f"{builder_name} at {builder.data_path} is stored as {builder.info.file_format.value}, "
      "which has no random access. Prepare it as array_record in another folder and give that "
      "as --config.data.data_dir=."
    )
  return f"{builder_name} is not prepared at {builder.data_path}. Prepare it once with: {command}"
