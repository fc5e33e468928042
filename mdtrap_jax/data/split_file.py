"""Splits in CoOp's format: `{"train": [[file, label, class name], …], "val": …, "test": …}`."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from mdtrap_jax.data import images
from mdtrap_jax.data.names import nfc, shown

PARTS = ("train", "val", "test")


class Row(NamedTuple):
  """One image of a data set."""

  file: str  # relative to the folder of the images, `/` between folders
  label: int  # the place of its class, where the file says it
  name: str  # of its class


def read_split_file(path: Path, part: str) -> list[Row]:
  """The images of one part.

  Args:
    path: of the JSON.
    part: of `PARTS`.

  Raises:
    OSError: there is no such file.
    ValueError: it is no such file, the part is empty, or a name leads out of the folder.
  """
  try:
    rows = [
      Row(str(file), int(label), nfc(str(name)))
      for file, label, name in json.loads(images.read_file(path))[part]
    ]
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise ValueError(
      f"{shown(path)} is no split in CoOp's format, {{{part!r}: [[file, number, class name], …]}}."
    ) from error
  if not rows:
    raise ValueError(f"{shown(path)} has no images under {part!r}.")
  for row in rows:
    check_inside(row.file, path)
  return rows


def check_inside(file: str, where: Path) -> None:
  """Refuses the name of an image that leads out of the folder of the images.

  Raises:
    ValueError: names it, and the file that lists it.
  """
  name = PurePosixPath(file)
  if not file or name.is_absolute() or ".." in name.parts or "\0" in file:
    raise ValueError(
      f"{shown(where)} lists {shown(file)!r}, which is no file below the folder of the images."
    )
