"""Files of `mdtrap predict`: which images it is given, and the lines that it writes of them."""

from __future__ import annotations

import contextlib
import csv
import glob
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from mdtrap_jax import files
from mdtrap_jax.data import images, layout
from mdtrap_jax.data.names import listed, shown

_LISTS = (".txt", ".lst")  # files that list images, one a line


def find_images(arguments: Sequence[str]) -> list[str]:
  """The images that files, folders, patterns and lists name, in that order, each once.

  Raises:
    OSError: there is no such thing.
    ValueError: no images at all.
  """
  found: list[str] = []
  for argument in arguments:
    as_list = argument.lower().endswith(_LISTS)
    path = (files.beside if as_list else files.local)(argument)
    if os.path.isdir(path):
      found += layout.class_files(path).images
    elif os.path.isfile(path) and path.lower().endswith(_LISTS):
      lines = images.read_file(path).decode("utf-8-sig", "surrogateescape").splitlines()
      beside = os.path.dirname(path)
      found += [os.path.join(beside, line.strip()) for line in lines if line.strip()]
    elif os.path.lexists(path):
      found.append(path)
    elif matches := sorted(glob.glob(path, recursive=True)):
      found += [match for match in matches if not os.path.isdir(match)]
    else:
      raise FileNotFoundError(f"{shown(argument)}: no such file, folder or pattern of images.")
  if not found:
    raise ValueError(f"{listed(arguments, 3)}: no images there.")
  return list(dict.fromkeys(found))


def make_writer(file: TextIO, classes: list[Any], as_json: bool, top: int | None) -> Callable:
  """Writes probabilities as lines of CSV or JSON."""
  names = list(map(str, classes))
  out = csv.writer(file, lineterminator="\n")
  header = ["file", "prediction", "probability"]
  if top is not None and not 1 <= top <= len(names):
    raise ValueError(f"--top={top}: give 1 to {len(names)}, the number of classes.")
  if not as_json:
    ranks = range(1, (top or 0) + 1)
    out.writerow(
      header + ([f"p:{name}" for name in names] if top is None else
                [f"{what} {rank}" for rank in ranks for what in ("class", "probability")])
    )  # fmt: skip

  def write(items: Sequence[str], probabilities: np.ndarray) -> None:
    for item, row in zip(items, probabilities, strict=True):
      best = np.argsort(-row, kind="stable")[: top or len(names)]
      first, rounded = classes[best[0]], [round(float(p), 6) for p in row]
      if as_json:
        chances = {names[c]: rounded[c] for c in (range(len(names)) if top is None else best)}
        line = dict(zip(header, (files.typed(item), first, rounded[best[0]]), strict=True))
        file.write(json.dumps({**line, "p": chances}, ensure_ascii=False) + "\n")
        continue
      rest = [f"{p:.6f}" for p in row]
      if top is not None:
        rest = [cell for c in best for cell in (names[c], f"{row[c]:.6f}")]
      out.writerow([files.typed(item), first, f"{row[best[0]]:.6f}", *rest])

  return write


@contextlib.contextmanager
def in_one_step(target: str) -> Iterator[TextIO]:
  """A file that takes its place when it is complete."""
  with files.writing(target) as path, _replacing(path) as file:
    yield file


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[TextIO]:
  descriptor, partial = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
  try:
    with open(descriptor, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
      yield file
    os.replace(partial, target)
  except BaseException:
    os.unlink(partial)
    raise
