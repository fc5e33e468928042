"""Where labeled images come from: folders, arrays, and the four target domains by name."""

import difflib
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from absl import logging

from mdtrap_jax.data import images
from mdtrap_jax.data.class_selection import ClassSubset, check_feasible, keep_classes
from mdtrap_jax.data.tfds_source import TARGETS, TfdsSource
from mdtrap_jax.world.digits import DigitsSource
from mdtrap_jax.world.source import WorldSource

__all__ = [
  "SOURCES",
  "ArraySource",
  "ClassSubset",
  "FolderSource",
  "Source",
  "TfdsSource",
  "check_feasible",
  "keep_classes",
  "make_source",
]

# Pillow knows more suffixes, but of kinds (documents, film) that are not photographs.
IMAGE_SUFFIXES = frozenset(
  ".avif .bmp .gif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()  # noqa: SIM905
)


class Source(Protocol):
  """A data set of `n` labeled images, each found by its index."""

  name: str  # For messages.
  class_names: tuple[str, ...]  # As used in prompts, before the template.
  labels: np.ndarray  # [n] int32, into class_names; -1 for an image left out.
  identity: str  # Hex digest of what the data is; equal data may share a cache.

  def image(self, index: int) -> np.ndarray:
    """Decodes an image, uint8 `[H, W, 3]`; safe to call from many threads."""

  def describe(self, index: int) -> str:
    """Names an image in messages: its file, or its id in the data set."""


class FolderSource:
  """A folder with one subfolder per class, of any depth; symbolic links are followed."""

  def __init__(
    self,
    path: str | os.PathLike[str],
    class_names: Mapping[str, str] | Sequence[str] | None = None,
  ):
    """Lists the folder; no image is read yet.

    Args:
      path: The folder. Its subfolders, sorted by name, are the classes; hidden files and
        folders are passed over, and so are, with a warning, files that are not images.
      class_names: The name in prompts of each subfolder that has another than its own, or the
        names of all subfolders in sorted order.

    Raises:
      FileNotFoundError: If there is no such folder.
      ValueError: If it has no subfolder with images, or the names do not fit it.
    """
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
      what = "not a folder" if root.exists() else "no such folder"
      raise FileNotFoundError(
        f"{root}: {what}. Set --config.data.path= to a folder with one subfolder per class."
      )
    folders = sorted(
      entry.name for entry in root.iterdir() if entry.is_dir() and entry.name[0] != "."
    )
    if class_names and not isinstance(class_names, Mapping):
      if len(class_names) != len(folders):
        raise ValueError(
          f"--config.data.class_names has {len(class_names)} names and {root} has "
          f"{len(folders)} classes: {', '.join(folders)}. Name each, in this order."
        )
      class_names = dict(zip(folders, class_names, strict=True))
    renamed = dict(class_names or {})
    if unknown := sorted(set(renamed) - set(folders)):
      raise ValueError(
        f"{root} has no subfolder {', '.join(unknown)} to name; it has {', '.join(folders)}."
      )
    self.name = str(root)
    self.class_names = tuple(renamed.get(folder, folder) for folder in folders)
    if len(set(self.class_names)) < len(folders):
      raise ValueError(f"{root}: two classes have the same name among {self.class_names}.")
    self._files: list[pathlib.Path] = []
    labels, strangers = [], []
    digest = hashlib.sha256()
    for label, folder in enumerate(folders):
      for file in _walk(root / folder):
        if file.suffix.lower() not in IMAGE_SUFFIXES:
          strangers.append(file)
          continue
        status = file.stat(follow_symlinks=file.exists())  # A dead link fails when read.
        entry = (file.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns)
        digest.update(repr(entry).encode())
        self._files.append(file)
        labels.append(label)
    if strangers:
      logging.warning(
        "%s: passed over %d files that are not images, among them %s.",
        root, len(strangers), ", ".join(str(file) for file in strangers[:3]),
      )  # fmt: skip
    if not self._files:
      raise ValueError(
        f"{root} holds no images in subfolders (subfolders: {', '.join(folders) or 'none'}). "
        "Put the images of each class into a subfolder of its own, named after the class."
      )
    self.labels = np.array(labels, np.int32)
    self.identity = digest.hexdigest()

  def image(self, index: int) -> np.ndarray:
    """Decodes an image, uint8 `[H, W, 3]`."""
    return images.decode(self._files[index], str(self._files[index]))

  def describe(self, index: int) -> str:
    """The image's file."""
    return str(self._files[index])


def _walk(folder: pathlib.Path, above: frozenset[str] = frozenset()) -> Iterator[pathlib.Path]:
  """All files below a folder, sorted; a link back to a folder above is not entered again."""
  above |= {os.path.realpath(folder)}
  for entry in sorted(folder.iterdir()):
    if entry.name.startswith("."):
      continue
    if not entry.is_dir():
      yield entry
    elif os.path.realpath(entry) not in above:
      yield from _walk(entry, above)


class ArraySource:
  """Images in memory."""

  def __init__(
    self,
    images: Sequence[np.ndarray] | np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
  ):
    """Takes the arrays as they are.

    Args:
      images: `n` images uint8 `[H, W, 3]`, of equal or of different sizes.
      labels: Integers `[n]` into `class_names`.
      class_names: The names in prompts.

    Raises:
      ValueError: If an image is not uint8 RGB, or labels do not fit the images or the names.
    """
    for index, image in enumerate(images):
      if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(
          f"Image {index} is {image.dtype} {list(image.shape)}, not uint8 [H, W, 3] of RGB."
        )
    labels = np.asarray(labels)
    if labels.shape != (len(images),):
      raise ValueError(f"Labels of shape {labels.shape} for {len(images)} images.")
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(class_names):
      raise ValueError(
        f"Labels go from {labels.min()} to {labels.max()}, but {len(class_names)} class names "
        f"need 0 to {len(class_names) - 1}."
      )
    self.name = "arrays"
    self.class_names = tuple(class_names)
    self.labels = labels.astype(np.int32)
    self._images = images
    digest = hashlib.sha256(self.labels.tobytes())
    for image in images:
      digest.update(repr(image.shape).encode())
      digest.update(np.ascontiguousarray(image))
    self.identity = digest.hexdigest()

  def image(self, index: int) -> np.ndarray:
    """An image, uint8 `[H, W, 3]`."""
    return np.asarray(self._images[index])

  def describe(self, index: int) -> str:
    """The image's place in the arrays."""
    return f"image {index}"


def _folder(config: Any) -> Source:
  if not config.path:
    raise ValueError(
      "No image folder is given. Set --config.data.path= to a folder with one subfolder per class."
    )
  return FolderSource(config.path, getattr(config, "class_names", ()))


def _world(config: Any) -> Source:
  return WorldSource(config.domain, config.severity, config.images_per_class)


def _target(name: str) -> Callable[[Any], Source]:
  def make(config: Any) -> Source:
    target = TARGETS[name]
    return TfdsSource(target.builder, config.split, config.data_dir or None, target.class_names)

  return make


SOURCES: dict[str, Callable[[Any], Source]] = {
  "folder": _folder,
  "world": _world,
  "digits": lambda config: DigitsSource(),
  **{name: _target(name) for name in TARGETS},
}
"""Makers of sources by the name in a config."""


def make_source(config: Any) -> Source:
  """Makes the source that a config names.

  Args:
    config: `data` of `configs/default.py`: `name` (of `SOURCES`) and the fields of that source.

  Returns:
    The source. `check_feasible` tells whether it can fill episodes.

  Raises:
    ValueError: If the name or a class is unknown, or the data are not as they should be.
    FileNotFoundError: If the data are not there.
  """
  if config.name not in SOURCES:
    near = difflib.get_close_matches(str(config.name), SOURCES, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
      f"Unknown data source --config.data.name={config.name}.{hint} Known: {', '.join(SOURCES)}."
    )
  return keep_classes(SOURCES[config.name](config), tuple(config.classes))
