"""Which images a release has in each part of its published split, by the release's own lists."""

from __future__ import annotations

import collections
import csv
import os
from pathlib import Path

from mdtrap_jax.data import images
from mdtrap_jax.data.names import listed, nfc, shown
from mdtrap_jax.data.split_file import Row, check_inside, read_split_file

COOP = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"


# CLIP's list of ImageNet's names has "missile" and "sunglasses" twice; later ones tell them apart.
_AGAIN = {"n04008634": "projectile", "n04355933": "sunglass"}


def coop_split(root: Path, split_file: Path, part: str) -> list[Row]:
  """The images of a part of CoOp's split, which nine of the eleven data sets are used by.

  Args:
    root: of the release; not read.
    split_file: CoOp's `split_zhou_….json`.
    part: `train`, `val` or `test`.

  Raises:
    OSError, ValueError: there is no such file, or it is no such split.
  """
  del root
  if not split_file.is_file():
    raise FileNotFoundError(
      f"{shown(split_file)}: no such file. It is the split that results are published on; get it "
      f"from {COOP} and put it there, or name it with --config.data.split_file=."
    )
  return read_split_file(split_file, part)


def aircraft_lists(root: Path, split_file: Path, part: str) -> list[Row]:
  """FGVC-Aircraft's own lists of its variants, `images_variant_….txt`."""
  del split_file
  names = _lines(root / "variants.txt")
  labels = {name: label for label, name in enumerate(names)}
  rows = []
  where = root / f"images_variant_{part}.txt"
  for line in _lines(where):
    number, _, name = line.partition(" ")
    if name not in labels:
      raise ValueError(f"{shown(where)} has a line {shown(line)!r} of no variant in variants.txt.")
    check_inside(number, where)
    rows.append(Row(f"{number}.jpg", labels[name], name))
  return rows


def imagenet_folders(root: Path, split_file: Path, part: str) -> list[Row]:
  """ImageNet's training folders, and its validation images as the test part.

  Those lie in a folder a class, or in one folder with `LOC_val_solution.csv` beside it, as the
  release now comes. It has no third part: `val` is images of the training folders.

  Raises:
    OSError, ValueError: a folder, `classnames.txt` or the solution is not there or not right.
  """
  del split_file
  classes = _class_names(root / "classnames.txt")
  labels = {folder: label for label, folder in enumerate(classes)}
  top = "val" if part == "test" else "train"
  folder = root / "images" / top
  entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
  folders = [entry.name for entry in entries if entry.is_dir()]
  if not folders and part == "test":
    pairs = _solution(root / "LOC_val_solution.csv")
  else:
    if absent := sorted(labels.keys() - set(folders)):
      raise FileNotFoundError(f"{shown(folder)} has no folder {listed(absent, 3)}.")
    pairs = [
      (f"{name}/{file}", name)
      for name in folders
      if name in labels
      for file in sorted(os.listdir(folder / name))
    ]
  return [
    Row(f"{top}/{file}", labels[synset], classes[synset])
    for file, synset in pairs
    if Path(file).suffix.lower() in images.SUFFIXES and synset in labels
  ]


def _class_names(path: Path) -> dict[str, str]:
  """`{folder: name}` from lines like `n01440764 tench`, in their order."""
  if not path.is_file():
    raise FileNotFoundError(
      f"{shown(path)}: no such file. It names the classes, a line each (`n01440764 tench`); get "
      f"CoOp's from {COOP}."
    )
  names = {
    nfc(line.partition(" ")[0]): nfc(line.partition(" ")[2].strip()) for line in _lines(path)
  }
  twice = {name for name, count in collections.Counter(names.values()).items() if count > 1}
  return {f: _AGAIN.get(f, name) if name in twice else name for f, name in names.items()}


def _solution(path: Path) -> list[tuple[str, str]]:
  """Files and folders of classes from `ImageId,PredictionString`, by file."""
  if not path.is_file():
    raise FileNotFoundError(
      f"{shown(path)}: no such file. It says which class each validation image is of; or sort the "
      "images into one folder a class."
    )
  rows = list(csv.reader(_lines(path)[1:]))
  if bad := [row for row in rows if len(row) != 2 or not row[1].split()]:
    raise ValueError(f"{shown(path)} has a row {bad[0]}; its columns are ImageId,PredictionString.")
  for number, _ in rows:
    check_inside(number, path)
  return sorted((f"{number}.JPEG", prediction.split()[0]) for number, prediction in rows)


def _lines(path: Path) -> list[str]:
  """Those of a list that are not empty.

  Raises:
    OSError, ValueError: it cannot be read, or is empty.
  """
  try:
    lines = images.read_file(path).decode("utf-8-sig").splitlines()
  except UnicodeDecodeError as error:
    raise ValueError(f"{shown(path)} is not UTF-8 (byte {error.start}).") from error
  if not (lines := [line.strip() for line in lines if line.strip()]):
    raise ValueError(f"{shown(path)} is empty.")
  return lines
