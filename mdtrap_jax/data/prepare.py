"""Writes a target domain to disk as array_record, once, without TensorFlow.

    mdtrap prepare NAME --data_dir=DIR [--manual_dir=DIR]

`isic` and `chestx` read the unpacked official release in `--manual_dir`. `eurosat` and
`cropdisease` download it, or read its class folders in `--manual_dir` if given.
"""

import argparse
import contextlib
import errno
import fcntl
import os
import pathlib
import signal
import sys
import zipfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from absl import logging

from mdtrap_jax import buckets, files
from mdtrap_jax.data import images
from mdtrap_jax.data.names import is_printable, listed, nfc, shown
from mdtrap_jax.data.targets import TARGETS
from mdtrap_jax.data.tfds_source import open_builder


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
    OSError: If it cannot be written, or is being prepared by another process; what was written
      so far is removed.
  """
  if data_dir and buckets.is_bucket(data_dir):
    folder = f"{buckets.url_of(data_dir)}/{TARGETS[name].builder.partition('/')[0]}"
    if not any(found.endswith("dataset_info.json") for found in buckets.Bucket(folder).find()):
      with files.writing(folder, last="dataset_info.json") as aside:
        prepare(name, str(aside.parent), manual_dir)
    return folder
  manual_dir = manual_dir and files.local(manual_dir)
  builder = open_builder(TARGETS[name].builder, data_dir, file_format="array_record")
  if manual_dir is None and builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
    raise ValueError(f"{name} needs --manual_dir. {builder.MANUAL_DOWNLOAD_INSTRUCTIONS}")
  if manual_dir is not None and not pathlib.Path(manual_dir).is_dir():
    raise FileNotFoundError(f"--manual_dir={manual_dir}: no such folder.")
  if name in RELEASES:
    builder._split_generators = lambda dl_manager: {
      "train": _examples(name, builder, _release_folder(RELEASES[name], dl_manager, manual_dir))
    }
  try:
    with _alone(pathlib.Path(builder.data_dir_root) / builder.name):
      builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=manual_dir),
        file_format="array_record",
      )
  except (ValueError, OSError) as error:
    if getattr(error, "errno", None) is None:
      raise  # It says itself what is wrong.
    raise _unwritten(builder, error) from error
  except Exception as error:  # The writer of records raises RuntimeError, TFDS what it meets.
    raise _unwritten(builder, error) from error
  return str(builder.data_path)


def _unwritten(builder: tfds.core.DatasetBuilder, error: Exception) -> OSError:
  reason = " ".join(str(error).split()) or type(error).__name__
  return OSError(
    f"Could not prepare {builder.data_path}: {reason}. Nothing of it was kept; see that the "
    "release can be read and --data_dir be written and has space, then start again."
  )


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
  """Holds a lock on the folder of a data set, which ends with the process and leaves no file."""
  folder.mkdir(parents=True, exist_ok=True)
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:  # Others: a file system that has no locks.
    if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
      os.close(descriptor)
      raise OSError(
        f"Another process is preparing {folder}. Wait for it, or give another --data_dir."
      ) from error
  try:
    yield
  finally:
    os.close(descriptor)


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
  try:
    with zipfile.ZipFile(archive) as file:
      file.extractall(unpacked)
  except zipfile.BadZipFile as error:
    raise ValueError(
      f"{archive}, downloaded from {release.url}, is no whole zip archive. Delete it and start "
      "again."
    ) from error
  return unpacked / release.folder


def _examples(
  name: str, builder: tfds.core.DatasetBuilder, folder: pathlib.Path
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Examples of a release with one folder per label, keyed as TFDS keys them."""
  features = builder.info.features
  file_feature = "filename" if "filename" in features else "image/filename"
  present = {_plain(entry.name): entry for entry in folder.iterdir() if entry.is_dir()}
  labels = features["label"].names
  prompts = TARGETS[name].class_names or {}  # What copies of PlantVillage name their folders.
  folders = {
    label: present.get(_plain(label), present.get(_plain(prompts.get(label, label))))
    for label in labels
  }
  if absent := [label for label in labels if folders[label] is None]:
    raise FileNotFoundError(
      f"{folder} has no folder {', '.join(absent)}; it must hold one per class of "
      f"{builder.name}: {', '.join(labels)}."
    )
  others = []
  for label in labels:
    files = sorted(folders[label].iterdir())
    photos = [file for file in files if file.suffix.lower() in images.SUFFIXES]
    others += (rest := [file for file in files if file.suffix.lower() not in images.SUFFIXES])
    if not photos:
      raise FileNotFoundError(
        f"{folders[label]} holds no images, {_seen(rest)}. It must hold those of {label}, such "
        "as .jpg or .png files."
      )
    for file in photos:
      if not is_printable(file.name):
        raise ValueError(f"The name of {shown(file)} is not UTF-8 text of one line. Rename it.")
      example = {"image": images.read_file(file), "label": label, file_feature: file.name}
      yield f"{label}/{file.name}", example
  if others:
    logging.warning("%s: passed over files that are not images, %s.", folder, _seen(others))


def _seen(files: list[pathlib.Path]) -> str:
  return f"but {listed(files, 3)}" + images.readers(file.suffix.lower() for file in files)


def _plain(label: str) -> str:
  # Copies of PlantVillage differ in how they write spaces and commas.
  return nfc(label).replace(" ", "_").replace(",", "_")


def main(arguments: list[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("name", choices=sorted(TARGETS))
  parser.add_argument("--data_dir", help="where to write; TFDS's default folder if not given")
  parser.add_argument("--manual_dir", help="folder of the official release, unpacked")
  options = parser.parse_args(arguments)
  stopping = signal.SIGTERM, signal.SIGHUP  # As Ctrl-C: TFDS removes what is half written.
  before = [signal.signal(number, signal.default_int_handler) for number in stopping]
  try:
    print(f"Prepared {prepare(options.name, options.data_dir, options.manual_dir)}")
  except (ValueError, OSError) as error:
    sys.exit(f"error: {' '.join(str(error).split())}")
  except KeyboardInterrupt:
    print(f"Stopped; nothing of {options.name} was kept.", file=sys.stderr)
    sys.exit(130)
  finally:
    for number, handler in zip(stopping, before, strict=True):
      signal.signal(number, handler)


if __name__ == "__main__":
  main()
