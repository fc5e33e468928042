"""Where labeled images come from: folders, arrays, and the four target domains by name."""

import difflib
import functools
import hashlib
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from mdtrap_jax.data.class_selection import (
  ClassSubset,
  check_feasible,
  describe_classes,
  keep_classes,
  keep_files,
)
from mdtrap_jax.data.content import Content, describe_changes, identity_of
from mdtrap_jax.data.folder_source import FolderSource
from mdtrap_jax.data.images import decoding_of
from mdtrap_jax.data.names import nfc
from mdtrap_jax.data.tfds_source import TARGETS, TfdsSource

__all__ = [
  "SOURCES",
  "ArraySource",
  "ClassSubset",
  "FolderSource",
  "Source",
  "TfdsSource",
  "check_feasible",
  "describe_changes",
  "describe_classes",
  "keep_classes",
  "keep_files",
  "make_source",
]


class Source(Protocol):
  """A data set of `n` labeled images, each found by its index."""

  name: str  # For messages.
  class_names: tuple[str, ...]  # As used in prompts, before the template.
  labels: np.ndarray  # [n] int32, into class_names; -1 for an image left out.
  identity: str  # Hex digest of all that decides the pixels; equal data may share a cache.

  def content(self) -> Content:
    """Number of images and a digest of them for each class, read when first asked for."""

  def image(self, index: int) -> np.ndarray:
    """Decodes an image, uint8 `[H, W, 3]`; safe to call from many threads."""

  def describe(self, index: int) -> str:
    """Names an image in messages: its file, or its id in the data set."""


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
    self.class_names = tuple(nfc(name) for name in class_names)
    self.labels = labels.astype(np.int32)
    self._images = images

  @functools.cached_property
  def identity(self) -> str:
    """Hex digest of the arrays and the class names."""
    return identity_of(self.class_names, self.content(), self.labels.tolist())

  def content(self) -> Content:
    """Number of images and a digest of their pixels for each class."""
    return dict(self._content)

  @functools.cached_property
  def _content(self) -> Content:
    digests = [hashlib.sha256() for _ in self.class_names]
    for label, image in zip(self.labels, self._images, strict=True):
      digests[label].update(repr(image.shape).encode())
      digests[label].update(np.ascontiguousarray(image))
    counts = np.bincount(self.labels, minlength=len(digests)).tolist()
    entries = zip(counts, (digest.hexdigest() for digest in digests), strict=True)
    return dict(zip(self.class_names, entries, strict=True))

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
  return FolderSource(config.path, getattr(config, "class_names", ()), decoding_of(config))


def _generated() -> ModuleType:
  """Found by name when it is asked for: it stands on this package, and loads a renderer."""
  return import_module("mdtrap_jax.world")


def _world(config: Any) -> Source:
  return _generated().WorldSource(config.domain, config.severity, config.images_per_class)


def _digits(config: Any) -> Source:
  del config
  return _generated().DigitsSource()


def _target(name: str) -> Callable[[Any], Source]:
  def make(config: Any) -> Source:
    target = TARGETS[name]
    return TfdsSource(
      target.builder,
      config.split,
      config.data_dir or None,
      target.class_names,
      decoding_of(config),
    )

  return make


SOURCES: dict[str, Callable[[Any], Source]] = {
  "folder": _folder,
  "world": _world,
  "digits": _digits,
  **{name: _target(name) for name in TARGETS},
}
"""Makers of sources by the name in a config."""


def make_source(config: Any) -> Source:
  """Makes the source that a config names.

  Args:
    config: `data` of `configs/default.py`: `name` (of `SOURCES`) and the fields of that source;
      `files`, `background`, `window` and `max_pixels` may be missing.

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
  source = SOURCES[config.name](config)
  if files := getattr(config, "files", ""):
    source = keep_files(source, files)
  return keep_classes(source, tuple(config.classes))
