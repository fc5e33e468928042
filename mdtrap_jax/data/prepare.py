"""Writes a target domain to disk as array_record, once, without TensorFlow.

    python -m mdtrap_jax.data.prepare NAME --data_dir=DIR [--manual_dir=DIR]

`isic` and `chestx` read the unpacked official release in `--manual_dir`. `eurosat` and
`cropdisease` download it, or read its class folders in `--manual_dir` if given.
"""

import argparse
import pathlib
import sys
import zipfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from mdtrap_jax.data.tfds_source import TARGETS


class Release(NamedTuple):
  """An archive that TFDS downloads, and the folder inside it that holds the class folders."""

  url: str
  folder: str


# TFDS's own generators for these two unpack and list files through TensorFlow; ours do not.
RELEASES = {
  "eurosat": Release("http://madm.dfki.de/files/sentinel/EuroSAT.zip", "2750"),
  "cropdisease": Release(
    "https://data.mendeley.com/public-files/datasets/tywbtsjrjv/files/"
    "d5652a28-c1d8-4b76-97f3-72fb80f94efc/file_downloaded",
    "Plant_leave_diseases_dataset_without_augmentation",
  ),
}


def prepare(name: str, data_dir: str | None = None, manual_dir: str | None = None) -> str:
  """Writes a target domain as array_record; does nothing if it is already there.

  Args:
    name: Of `TARGETS`.
    data_dir: Where TFDS data sets are; None is TFDS's default.
    manual_dir: Folder of the official release, unpacked.

  Returns:
    The folder written.

  Raises:
    ValueError: If a needed `manual_dir` is not given, or its files are not as they should be.
    FileNotFoundError: If `manual_dir` or a file of the release is missing.
  """
  builder = tfds.builder(TARGETS[name].builder, data_dir=data_dir, file_format="array_record")
  if manual_dir is None and builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
    raise ValueError(f"{name} needs --manual_dir. {builder.MANUAL_DOWNLOAD_INSTRUCTIONS}")
  if manual_dir is not None and not pathlib.Path(manual_dir).is_dir():
    raise FileNotFoundError(f"--manual_dir={manual_dir}: no such folder.")
  if name in RELEASES:
    builder._split_generators = lambda dl_manager: {
      "train": _examples(builder, _release_folder(RELEASES[name], dl_manager, manual_dir))
    }
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(manual_dir=manual_dir),
    file_format="array_record",
  )
  return str(builder.data_path)


def _release_folder(
  release: Release, dl_manager: tfds.download.DownloadManager, manual_dir: str | None
) -> pathlib.Path:
  """The folder of class folders: in `manual_dir`, or downloaded and unpacked."""
  if manual_dir is not None:
    inside = pathlib.Path(manual_dir) / release.folder
    return inside if inside.is_dir() else pathlib.Path(manual_dir)
  try:
    archive = pathlib.Path(dl_manager.download(release.url))
  except (OSError, tfds.download.DownloadError) as error:
    raise FileNotFoundError(
      f"Downloading {release.url} failed: {error}. Get the archive by other means, unpack it, "
      f"and give the folder that holds {release.folder} as --manual_dir."
    ) from error
  unpacked = archive.parent / f"{archive.name}-unpacked"
  with zipfile.ZipFile(archive) as file:
    file.extractall(unpacked)
  return unpacked / release.folder


def _examples(
  builder: tfds.core.DatasetBuilder, folder: pathlib.Path
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Examples of a release with one folder per label, keyed as TFDS keys them."""
  features = builder.info.features
  file_feature = "filename" if "filename" in features else "image/filename"
  present = {_plain(entry.name): entry for entry in folder.iterdir() if entry.is_dir()}
  labels = features["label"].names
  if absent := [label for label in labels if _plain(label) not in present]:
    raise FileNotFoundError(
      f"{folder} has no folder {', '.join(absent)}; it must hold one per class of "
      f"{builder.name}: {', '.join(labels)}."
    )
  for label in labels:
    for file in sorted(present[_plain(label)].iterdir()):
      if file.suffix.lower() in (".jpg", ".jpeg"):
        example = {"image": file.read_bytes(), "label": label, file_feature: file.name}
        yield f"{label}/{file.name}", example


def _plain(label: str) -> str:
  # Copies of PlantVillage differ in how they write spaces and commas.
  return label.replace(" ", "_").replace(",", "_")


def main(arguments: list[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("name", choices=sorted(TARGETS))
  parser.add_argument("--data_dir", help="where to write; TFDS's default folder if not given")
  parser.add_argument("--manual_dir", help="folder of the official release, unpacked")
  options = parser.parse_args(arguments)
  try:
    print(f"Prepared {prepare(options.name, options.data_dir, options.manual_dir)}")
  except (ValueError, FileNotFoundError) as error:
    sys.exit(f"error: {error}")


if __name__ == "__main__":
  main()
