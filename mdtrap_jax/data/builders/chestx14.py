"""TFDS builder of NIH ChestX-ray14: the images with exactly one of seven findings."""

import csv
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from mdtrap_jax.data import images

CLASS_NAMES = (
  "Atelectasis",
  "Cardiomegaly",
  "Effusion",
  "Infiltration",
  "Mass",
  "Nodule",
  "Pneumothorax",
)
"""The findings and the names in prompts, in the paper's order."""

SIDE = 256
_CITATION = """\
Wang et al., "ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks on
Weakly-Supervised Classification and Localization of Common Thorax Diseases", CVPR 2017."""


class Chestx14(tfds.core.GeneratorBasedBuilder):
  """The single-label images of seven findings, as 256×256 RGB."""

  VERSION = tfds.core.Version("1.0.0")
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "Download Data_Entry_2017_v2020.csv (or Data_Entry_2017.csv) and images_001.tar.gz to "
    "images_012.tar.gz (https://nihcc.app.box.com/v/ChestXray-NIHCC) into one folder and "
    "unpack the archives there, into images_001/images to images_012/images or all into "
    "images/; give that folder as --manual_dir."
  )

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description="Frontal chest X-rays with exactly one of seven findings.",
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(SIDE, SIDE, 3), encoding_format="png"),
          "label": tfds.features.ClassLabel(names=CLASS_NAMES),
          "filename": tfds.features.Text(),
        }
      ),
      supervised_keys=("image", "label"),
      homepage="https://nihcc.app.box.com/v/ChestXray-NIHCC",
      citation=_CITATION,
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    return {"train": self._generate_examples(pathlib.Path(dl_manager.manual_dir))}

  def _generate_examples(self, path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for file, label in read_labels(path):
      image = Image.fromarray(prepare(images.decode(file, str(file))))
      yield file.name, {"image": image, "label": label, "filename": file.name}


def prepare(image: np.ndarray) -> np.ndarray:
  """Resizes uint8 `[H, W, 3]` to `[256, 256, 3]`, the paper's first step for this data set.

  Done when the data set is written, not when it is read: decoding a release image of 1024×1024
  takes many times as long. The filter is bicubic, the default of the reference's `resize`.
  """
  return np.array(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def read_labels(release: pathlib.Path) -> list[tuple[pathlib.Path, str]]:
  """Reads which image shows what, keeping those with exactly one of the seven findings.

  Args:
    release: Folder of the unpacked official release.

  Returns:
    Image files and their findings.

  Raises:
    FileNotFoundError: If the csv, or an image to be kept, is missing.
    ValueError: If the csv lacks a column or several files could be it.
  """
  tables = sorted(release.glob("Data_Entry_2017*.csv"))
  if not tables:
    raise FileNotFoundError(
      f"{release} has no Data_Entry_2017*.csv. {Chestx14.MANUAL_DOWNLOAD_INSTRUCTIONS}"
    )
  if len(tables) > 1:
    raise ValueError(f"{release} has several label files; keep one of {[t.name for t in tables]}.")
  table = tables[0]
  columns = ("Image Index", "Finding Labels")
  with table.open(newline="", encoding="utf-8-sig") as file:
    reader = csv.DictReader(file)
    if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
      raise ValueError(
        f"{table} has no column {', '.join(missing)}; it has "
        f"{', '.join(reader.fieldnames or ())}. Use the csv of the official release."
      )
    # "A|B" is two findings, which is none of the names, so equality is the single-label filter.
    kept = [(row[columns[0]], row[columns[1]]) for row in reader if row[columns[1]] in CLASS_NAMES]
  if not kept:
    raise ValueError(f"{table} lists no image with exactly one of {', '.join(CLASS_NAMES)}.")
  folders = [*release.glob("images_*/images"), release / "images"]
  files = images.by_stem(folders)
  stem = lambda name: pathlib.PurePath(name).stem
  if absent := [name for name, _ in kept if stem(name) not in files]:
    raise FileNotFoundError(
      f"{len(absent)} images listed in {table.name} are not in {release}/images_*/images or "
      f"{release}/images, the first is {absent[0]}. Unpack all twelve archives."
    )
  return [(files[stem(name)], label) for name, label in kept]
