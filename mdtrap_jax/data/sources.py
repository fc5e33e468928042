"""The sources that a config can name: folders, targets, the eleven data sets, generated images."""

import difflib
from collections.abc import Callable
from importlib import import_module
from typing import Any

from mdtrap_jax.data.array_source import ArraySource
from mdtrap_jax.data.class_selection import (
  ClassSubset,
  check_feasible,
  describe_classes,
  keep_classes,
  keep_files,
)
from mdtrap_jax.data.content import describe_changes
from mdtrap_jax.data.folder_source import FolderSource
from mdtrap_jax.data.images import decoding_of
from mdtrap_jax.data.releases import ReleaseSource
from mdtrap_jax.data.source import Source
from mdtrap_jax.data.targets import TARGETS

__all__ = [
  "SOURCES",
  "ArraySource",
  "ClassSubset",
  "FolderSource",
  "Source",
  "check_feasible",
  "describe_changes",
  "describe_classes",
  "keep_classes",
  "keep_files",
  "make_source",
]


def _lazily(name: str) -> Any:
  """Of the generated world, which is built upon this folder: the one arrow that runs up.

  A config names a world like any other source; who names none does not wait for its renderer.
  """
  return getattr(import_module("mdtrap_jax.world"), name)


def _folder(config: Any) -> Source:
  if not config.path:
    raise ValueError(
      "No image folder is given. Set --config.data.path= to a folder with one subfolder per class."
    )
  return FolderSource(config.path, getattr(config, "class_names", ()), decoding_of(config))


def _fsl(config: Any) -> Source:
  return ReleaseSource(
    config.domain, config.path, config.split, config.split_file, decoding_of(config)
  )


def _world(config: Any) -> Source:
  return _lazily("WorldSource")(config.domain, config.severity, config.images_per_class)


def _target(name: str) -> Callable[[Any], Source]:
  def make(config: Any) -> Source:
    from mdtrap_jax.data.tfds_source import TfdsSource  # and TFDS, which no other source waits for

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
  "fsl": _fsl,
  "world": _world,
  "digits": lambda config: _lazily("DigitsSource")(),
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
