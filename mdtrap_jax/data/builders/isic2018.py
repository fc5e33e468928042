"""TFDS builder of ISIC 2018 task 3 (HAM10000): seven kinds of skin lesion."""

import csv
import pathlib
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from mdtrap_jax.data import images

CLASS_NAMES = {
  "MEL": "Melanoma",
  "NV": "Melanocytic Nevus",
  "BCC": "Basal Cell Carcinoma",
  "AKIEC": "Actinic Keratosis",
  "BKL": "Benign Keratosis",
  "DF": "Dermatofibroma",
  "VASC": "Vascular Lesion",
}
"""The csv's columns and the names in prompts, in the paper's order."""

_IMAGES = "ISIC2018_Task3_Training_Input"
_TRUTH = "ISIC2018_Task3_Training_GroundTruth"
_CITATION = """\
Codella et al., "Skin Lesion Analysis Toward Melanoma Detection 2018", arXiv:1902.03368.
Tschandl, Rosendahl and Kittler, "The HAM10000 dataset", Scientific Data 5:180161, 2018."""


class Isic2018(tfds.core.GeneratorBasedBuilder):
  """The 10,015 training images of task 3, each of one class."""

  VERSION = tfds.core.Version("1.0.0")
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    f"Download {_IMAGES}.zip and {_TRUTH}.zip (https://challenge.isic-archive.com/data/#2018) "
    f"and unpack both into one folder, so that it holds {_IMAGES}/*.jpg and "
    f"{_TRUTH}/{_TRUTH}.csv; give that folder as --manual_dir."
  )

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description="Dermatoscopic images of seven kinds of skin lesion.",
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(None, None, 3)),
          "label": tfds.features.ClassLabel(names=list(CLASS_NAMES.values())),
          "filename": tfds.features.Text(),
        }
      ),
      supervised_keys=("image", "label"),
      homepage="https://challenge.isic-archive.com",
      citation=_CITATION,
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    return {"train": self._generate_examples(pathlib.Path(dl_manager.manual_dir))}

  def _generate_examples(self, path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for file, label in read_labels(path):
      yield file.stem, {"image": images.read_file(file), "label": label, "filename": file.name}


def read_labels(release: pathlib.Path) -> list[tuple[pathlib.Path, str]]:
  """Reads which image shows what.

  Args:
    release: Folder of the unpacked official release.

  Returns:
    Image files, of whatever kind they were exported as, and their class names.

  Raises:
    FileNotFoundError: If the csv, or an image that it lists, is missing.
    ValueError: If the csv lacks a column or a row does not have exactly one class.
  """
  table = release / _TRUTH / f"{_TRUTH}.csv"
  if not table.is_file():
    raise FileNotFoundError(f"{table} is missing. {Isic2018.MANUAL_DOWNLOAD_INSTRUCTIONS}")
  with table.open(newline="", encoding="utf-8-sig") as file:
    reader = csv.DictReader(file)
    if missing := [
      name for name in ("image", *CLASS_NAMES) if name not in (reader.fieldnames or ())
    ]:
      raise ValueError(
        f"{table} has no column {', '.join(missing)}; it has "
        f"{', '.join(reader.fieldnames or ())}. Use the csv of the official release."
      )
    rows = list(reader)
  labels = []
  for row in rows:
    found = [column for column in CLASS_NAMES if row[column] and float(row[column]) == 1]
    if len(found) != 1:
      raise ValueError(f"{table}: image {row['image']} has {len(found)} classes instead of one.")
    labels.append((row["image"], CLASS_NAMES[found[0]]))
  files = images.by_stem([release / _IMAGES])
  if absent := [name for name, _ in labels if name not in files]:
    raise FileNotFoundError(
      f"{len(absent)} images listed in {table.name} are not in {release / _IMAGES}, the first "
      f"is {absent[0]}.jpg. Unpack {_IMAGES}.zip again."
    )
  return [(files[name], label) for name, label in labels]
