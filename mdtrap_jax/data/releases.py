"""The eleven data sets of few-shot classification, read from their official releases in place.

They are those of CoOp (Zhou et al., IJCV 2022), with its published splits. Nothing is written.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mdtrap_jax.data import images
from mdtrap_jax.data.content import Content, digest_of, identity_of
from mdtrap_jax.data.names import listed, shown
from mdtrap_jax.data.release_lists import aircraft_lists, coop_split, imagenet_folders
from mdtrap_jax.data.split_file import PARTS, Row


class Release(NamedTuple):
  """What is known of a data set before it is read."""

  title: str
  folder: str  # of the images, below the release's own; "": itself
  split: str  # CoOp's file of its split; "": the release has lists of its own
  classes: int
  images: tuple[int | None, int | None, int]  # of train, val and test; None: not compared
  where: str  # to get it, and what to unpack
  read: Callable[[Path, Path, str], list[Row]] = coop_split  # (root, split file, part)


# Numbers of classes and images: CoOp, appendix A, table 6.
RELEASES = {
  "imagenet": Release(
    "ImageNet",
    "images",
    "",
    1000,
    (None, None, 50_000),
    "https://image-net.org, ILSVRC 2012: train and val into the folder images, and CoOp's "
    "classnames.txt beside it",
    imagenet_folders,
  ),
  "caltech101": Release(
    "Caltech-101",
    "101_ObjectCategories",
    "split_zhou_Caltech101.json",
    100,
    (4128, 1649, 2465),
    "https://data.caltech.edu/records/mzrjq-6wc02, 101_ObjectCategories.tar.gz",
  ),
  "oxford_pets": Release(
    "Oxford-IIIT Pets",
    "images",
    "split_zhou_OxfordPets.json",
    37,
    (2944, 736, 3669),
    "https://www.robots.ox.ac.uk/~vgg/data/pets, images.tar.gz",
  ),
  "stanford_cars": Release(
    "Stanford Cars",
    "",
    "split_zhou_StanfordCars.json",
    196,
    (6509, 1635, 8041),
    "http://ai.stanford.edu/~jkrause/cars/car_dataset.html, cars_train.tgz and cars_test.tgz",
  ),
  "oxford_flowers": Release(
    "Oxford Flowers 102",
    "jpg",
    "split_zhou_OxfordFlowers.json",
    102,
    (4093, 1633, 2463),
    "https://www.robots.ox.ac.uk/~vgg/data/flowers/102, 102flowers.tgz",
  ),
  "food101": Release(
    "Food-101",
    "images",
    "split_zhou_Food101.json",
    101,
    (50_500, 20_200, 30_300),
    "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
  ),
  "fgvc_aircraft": Release(
    "FGVC-Aircraft",
    "images",
    "",
    100,
    (3334, 3333, 3333),
    "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft, of fgvc-aircraft-2013b.tar.gz the "
    "folder data",
    aircraft_lists,
  ),
  "sun397": Release(
    "SUN397",
    "SUN397",
    "split_zhou_SUN397.json",
    397,
    (15_880, 3970, 19_850),
    "http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz",
  ),
  "dtd": Release(
    "Describable Textures",
    "images",
    "split_zhou_DescribableTextures.json",
    47,
    (2820, 1128, 1692),
    "https://www.robots.ox.ac.uk/~vgg/data/dtd, dtd-r1.0.1.tar.gz",
  ),
  "eurosat": Release(
    "EuroSAT",
    "2750",
    "split_zhou_EuroSAT.json",
    10,
    (13_500, 5400, 8100),
    "http://madm.dfki.de/files/sentinel/EuroSAT.zip",
  ),
  "ucf101": Release(
    "UCF101",
    "UCF-101-midframes",
    "split_zhou_UCF101.json",
    101,
    (7639, 1898, 3783),
    "the middle frames, UCF-101-midframes.zip, which CoOp publishes beside its split",
  ),
}


class ReleaseSource:
  """One part of a data set; a `source.Source`.

  Attributes:
    name: what it is, for messages.
    class_names: in the order of the published labels.
    labels: [n] int32.
    files: `n` names relative to the folder of the images.
  """

  def __init__(
    self,
    domain: str,
    path: str | Path,
    part: str = "train",
    split_file: str | Path = "",
    decoding: images.Decoding = images.DEFAULT,
  ):
    """Reads the lists; no image is read, nor looked for, yet.

    Args:
      domain: of `RELEASES`.
      path: the unpacked release.
      part: `train`, `val` or `test`.
      split_file: CoOp's JSON, where it is not in `path`.
      decoding: what becomes of depth and transparency.

    Raises:
      OSError, ValueError: there is no such data set or part, or it is not as it is published.
    """
    if domain not in RELEASES:
      raise ValueError(f"--config.data.domain={domain}: choose one of {', '.join(RELEASES)}.")
    if part not in PARTS:
      raise ValueError(f"--config.data.split={part}: {domain} has {', '.join(PARTS)}.")
    release, root = RELEASES[domain], Path(path).expanduser()
    self._folder = root / release.folder
    if not path or not self._folder.is_dir():
      what = f"{shown(path)} has no folder {release.folder}" if path else "no folder is given"
      raise FileNotFoundError(
        f"{release.title}: {what}. Give the unpacked release, {release.where}."
      )
    split = Path(split_file).expanduser() if split_file else root / release.split
    rows = release.read(root, split, part)
    self.name = f"{release.title} ({part})"
    self.class_names = _class_names(rows, self.name)
    self.labels = np.array([row.label for row in rows], np.int32)
    self.files = [row.file for row in rows]
    self._decoding, self._notes = decoding, images.Notes(self.name)

  @functools.cached_property
  def identity(self) -> str:
    """Hex digest of the images, the class names and how images are decoded."""
    return identity_of(self.class_names, self.content(), self._decoding, images.VERSION)

  def content(self) -> Content:
    """Number of images and a digest of their names and sizes for each class.

    The bytes are not read: a release is published once, and may have a million images.
    """
    return dict(self._content)

  @functools.cached_property
  def _content(self) -> Content:
    entries = [[] for _ in self.class_names]
    for label, file in zip(self.labels, self.files, strict=True):
      entries[label].append((file, (self._folder / file).stat().st_size))
    return {
      name: (len(entry), digest_of(entry))
      for name, entry in zip(self.class_names, entries, strict=True)
    }

  def missing(self) -> list[str]:
    """Files that are listed and not there."""
    return [file for file in self.files if not (self._folder / file).is_file()]

  def image(self, index: int) -> np.ndarray:
    """Decodes an image, uint8 `[H, W, 3]`."""
    path = self._folder / self.files[index]
    return images.decode(str(path), str(path), self._decoding, self._notes)

  def describe(self, index: int) -> str:
    """The image's file."""
    return shown(self._folder / self.files[index])


def check_release(domain: str, path: str | Path, split_file: str | Path = "") -> str:
  """Compares an unpacked release with what is published of it.

  Args:
    domain: of `RELEASES`.
    path: the unpacked release.
    split_file: CoOp's JSON, where it is not in `path`.

  Returns:
    What was found, a line for each part.

  Raises:
    OSError, ValueError: something is not there, or not as published; names it.
  """
  release, lines = RELEASES[domain], []
  for part, published in zip(PARTS, release.images, strict=True):
    source = ReleaseSource(domain, path, part, split_file)
    found = len(source.class_names), len(source.files)
    if found[0] != release.classes or published not in (None, found[1]):
      raise ValueError(
        f"{source.name} has {found[0]} classes and {found[1]} images; published are "
        f"{release.classes} and {found[1] if published is None else published}. Get it again: "
        f"{release.where}."
      )
    if missing := source.missing():
      raise FileNotFoundError(
        f"{source.name}: {len(missing)} of {found[1]} images are not there: {listed(missing, 3)}. "
        f"Get it again: {release.where}."
      )
    lines.append(f"{source.name}: {found[0]} classes, {found[1]} images")
  return "\n".join(lines)


def _class_names(rows: list[Row], name: str) -> tuple[str, ...]:
  """The name of each label.

  Raises:
    ValueError: a label has several names or none, or two have the same.
  """
  names: dict[int, str] = {}
  for row in rows:
    if (first := names.setdefault(row.label, row.name)) != row.name:
      raise ValueError(f"{name}: label {row.label} is both {first!r} and {row.name!r}.")
  if sorted(names) != list(range(len(names))):
    lacking = min(set(range(max(names) + 1)) - names.keys(), default=min(names))
    raise ValueError(f"{name}: no image has the label {lacking}, of {max(names) + 1}.")
  if twice := [n for n, count in collections.Counter(names.values()).items() if count > 1]:
    raise ValueError(f"{name}: two classes have the same name, {listed(twice)}.")
  return tuple(names[label] for label in range(len(names)))
