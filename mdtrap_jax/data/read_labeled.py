"""Where labels come from: folders, CSVs, splits in CoOp's format, or lists with their labels."""

from __future__ import annotations

import collections
import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mdtrap_jax import files
from mdtrap_jax.data import images, labeled, layout
from mdtrap_jax.data.folder_source import FolderSource
from mdtrap_jax.data.labeled import Labeled
from mdtrap_jax.data.names import listed, nfc, shown
from mdtrap_jax.data.split_file import read_split_file

# What people call the folders of their own splits; the first that is there is taken.
_PARTS = {
  "train": ("train", "training", "trainval"),
  "test": (
    "test", "testing", "holdout", "eval", "evaluation", "val", "valid", "validation", "dev"
  ),
}  # fmt: skip


def read_labeled(data: Any, labels: Any = None, part: str = "train") -> Labeled:
  """Understands labeled images.

  Args:
    data: a folder with one subfolder a class, or with folders `train`, `val`, `test` of such; a
      CSV with the columns `file` and `label` (paths relative to it), a split in CoOp's format, a
      list of paths, or images uint8 `[n, H, W, 3]` or `[H, W, 3]` each; or what was understood
      already.
    labels: `[n]` strings or integers, of a list of paths or of arrays.
    part: of data that come with a split: `train`, or `test` (of folders without one, `val`).

  Raises:
    OSError, ValueError: input that cannot be right, with the remedy.
  """
  if isinstance(data, Labeled):
    return data
  if isinstance(data, str | os.PathLike):
    if labels is not None:
      raise ValueError("labels go with lists of images; a folder or a CSV has its own.")
    is_table = os.fspath(data).lower().endswith((".csv", ".json"))
    path = Path((files.beside if is_table else files.local)(data))
    if not path.exists():
      raise FileNotFoundError(f"{shown(path)}: no such folder, CSV or JSON of labeled images.")
    if path.is_dir():
      return _folder(_own_split(path, part))
    return read_split(path, part) if path.suffix.lower() == ".json" else read_csv(path)
  items = list(data)
  if labels is None:
    raise ValueError("images without labels: give y, one label an image, or a folder or a CSV.")
  labels = labeled.check_labels(labels, len(items))
  return Labeled("images", labeled.check_items(items), labels, labeled.names_of(items))


def _own_split(path: Path, part: str) -> Path:
  """The folder of one part, where all folders are parts; else the folder itself."""
  folders = {entry.name.casefold(): entry for entry in path.iterdir() if entry.is_dir()}
  folders = {name: entry for name, entry in folders.items() if not name.startswith((".", "__"))}
  if not folders or not folders.keys() <= layout.SPLITS:
    return path
  found = next((folders[name] for name in _PARTS[part] if name in folders), None)
  if found is None:
    raise ValueError(
      f"{shown(path)} has the parts {listed(sorted(folders))} and no {part}; give the folder of "
      "one of them."
    )
  return found


def _folder(path: Path) -> Labeled:
  try:
    source = FolderSource(path)
  except ValueError as error:  # whose remedies are those of a config
    raise ValueError(str(error).replace("--config.data.path=", "")) from error
  labels = np.array([source.class_names[label] for label in source.labels])
  return Labeled(source.name, source.paths, labels, source.files)


def read_csv(path: Path, root: Path | None = None) -> Labeled:
  """Images that a CSV lists with their labels.

  Args:
    path: of the CSV, in UTF-8, with the columns `file` and `label`; commas, semicolons or tabs.
    root: what its paths are relative to; its own folder if not given.

  Raises:
    OSError: it, or an image that it lists, is not there.
    ValueError: it has other columns, is no UTF-8, or lists an image twice.
  """
  root = path.parent if root is None else root
  rows = read_table(path, ("file", "label"))
  names = [nfc(row["file"]) for row in rows]
  if twice := [name for name, count in collections.Counter(names).items() if count > 1]:
    raise ValueError(f"{shown(path)} lists {listed(twice, 3)} more than once; keep one row each.")
  found = [root / row["file"] for row in rows]
  if missing := [name for name, file in zip(names, found, strict=True) if not file.is_file()]:
    raise FileNotFoundError(
      f"{shown(path)} lists {len(missing)} files that are not there: {listed(missing, 3)}. Paths "
      f"are relative to {shown(root)}."
    )
  labels = np.array([nfc(row["label"]) for row in rows])
  return Labeled(shown(path), list(map(str, found)), labels, names)


def read_split(path: Path, part: str = "train") -> Labeled:
  """One part of a split in CoOp's format, `{"train": [[file, number, class name], …], …}`.

  Args:
    path: of the JSON; images are in its folder, or in a folder beside it.
    part: `train`, `val` or `test`.

  Raises:
    OSError: an image is not there.
    ValueError: it is no such file.
  """
  rows = [(row.file, row.name) for row in read_split_file(path, part)]
  folders = [path.parent, *sorted(entry for entry in path.parent.iterdir() if entry.is_dir())]
  root = next((folder for folder in folders if (folder / rows[0][0]).is_file()), None)
  if root is None:
    raise FileNotFoundError(
      f"{shown(path)}: {shown(rows[0][0])} is neither beside it nor in a folder beside it."
    )
  files, labels = zip(*rows, strict=True)
  if missing := [file for file in files if not (root / file).is_file()]:
    raise FileNotFoundError(
      f"{shown(path)} lists {len(missing)} files that are not there: {listed(missing, 3)}."
    )
  return Labeled(shown(path), [str(root / f) for f in files], np.array(labels), files)


def read_names(path: Path) -> dict[str, str]:
  """`{label: name in prompts}` from a CSV with the columns `folder` (or `label`) and `name`.

  Raises:
    OSError, ValueError: it cannot be read, or names a class twice.
  """
  key = "label" if "label" in _header(path) else "folder"
  rows = read_table(path, (key, "name"))
  labels = collections.Counter(nfc(row[key]) for row in rows)
  if twice := [label for label, count in labels.items() if count > 1]:
    raise ValueError(f"{shown(path)} names {listed(twice, 3)} more than once; keep one row each.")
  return {nfc(row[key]): nfc(row["name"]) for row in rows}


def read_templates(path: Path) -> list[str]:
  """Prompts, one a line, `{}` the class.

  Raises:
    OSError: it cannot be read.
    ValueError: it is no UTF-8, is empty, or a line has no `{}`; names the line.
  """
  lines = [line.strip() for line in _text(path).splitlines()]
  for number, line in enumerate(lines, 1):
    if line and "{}" not in line:
      raise ValueError(f"{shown(path)}, line {number}: {line!r} has no {{}} for the class.")
  if not any(lines):
    raise ValueError(
      f"{shown(path)} has no templates; write one a line, such as a photo of a {{}}."
    )
  return [line for line in lines if line]


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
  """The rows of a CSV; spaces around values go, empty lines too.

  Raises:
    OSError: it cannot be read.
    ValueError: it is no UTF-8, a column is missing, or a row has an empty value; names the line.
  """
  header, text = _header(path), _text(path)
  if missing := [column for column in columns if column not in header]:
    raise ValueError(
      f"{shown(path)} has the columns {listed(header) or 'none'}; its first line must name "
      f"{' and '.join(columns)}, but {missing[0]!r} is missing."
    )
  rows = []
  reader = csv.reader(io.StringIO(text), delimiter=_delimiter(text))
  next(reader)
  for values in reader:
    if not any(value.strip() for value in values):
      continue
    row = dict(zip(header, (value.strip() for value in values), strict=False))
    if empty := [column for column in columns if not row.get(column)]:
      raise ValueError(f"{shown(path)}, line {reader.line_num}: {empty[0]!r} is empty.")
    rows.append({column: row[column] for column in columns})
  if not rows:
    raise ValueError(f"{shown(path)} has a header and no rows.")
  return rows


def _header(path: Path) -> list[str]:
  text = _text(path)
  first = next(csv.reader(io.StringIO(text), delimiter=_delimiter(text)), [])
  return [name.strip().casefold() for name in first]


def _text(path: Path) -> str:
  try:
    return images.read_file(path).decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise ValueError(
      f"{shown(path)} is not UTF-8 (byte {error.start}); save it again as UTF-8."
    ) from error


def _delimiter(text: str) -> str:
  first = text.partition("\n")[0]
  return max(",;\t", key=first.count)
