"""Labeled images of a user's own, in whatever form they come: folder, list, paths or arrays."""

from __future__ import annotations

import collections
import csv
import functools
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mdtrap_jax import files
from mdtrap_jax.data import images
from mdtrap_jax.data.folder_source import FolderSource
from mdtrap_jax.data.names import listed, nfc, shown

THREADS = 8  # that decode images
_WINDOW = 4  # images decoded ahead, for each thread


class Labeled(NamedTuple):
  """Images and what they show; nothing is decoded yet."""

  name: str  # for messages
  items: Sequence[Any]  # n paths, or arrays uint8 [H, W, 3]
  labels: np.ndarray  # [n], strings or integers; sorted ones are the classes
  files: Sequence[str]  # n names for tables


class Preprocessing(NamedTuple):
  """How an image becomes a model's pixels; normalization is the model's own."""

  size: int  # pixels
  resize: str  # of `images.RESIZE_MODES`
  interpolation: str  # of `images.INTERPOLATIONS`
  decoding: images.Decoding = images.DEFAULT


def read_labeled(data: Any, labels: Any = None) -> Labeled:
  """Understands labeled images.

  Args:
    data: a folder with one subfolder a class, a CSV with the columns `file` and `label` (paths
      relative to it), a list of paths, or images uint8 `[n, H, W, 3]` or `[H, W, 3]` each; or what
      was understood already.
    labels: `[n]` strings or integers, of a list of paths or of arrays.

  Raises:
    OSError, ValueError: input that cannot be right, with the remedy.
  """
  if isinstance(data, Labeled):
    return data
  if isinstance(data, str | os.PathLike):
    if labels is not None:
      raise ValueError("labels go with lists of images; a folder or a CSV has its own.")
    path = Path(data).expanduser()
    if not path.exists():
      raise FileNotFoundError(f"{shown(path)}: no such folder, CSV or JSON of labeled images.")
    read = {".json": read_split}.get(path.suffix.lower(), read_csv)
    return read(path) if path.is_file() else _folder(path)
  items = list(data)
  if labels is None:
    raise ValueError("images without labels: give y, one label an image, or a folder or a CSV.")
  labels = check_labels(labels, len(items))
  return Labeled("images", check_items(items), labels, names_of(items))


def check_items(items: Sequence[Any]) -> Sequence[Any]:
  """Paths or images as they are.

  Raises:
    ValueError: one is neither; says which.
  """
  for number, item in enumerate(items):
    if isinstance(item, str | os.PathLike):
      continue
    dtype, shape = getattr(item, "dtype", type(item).__name__), list(getattr(item, "shape", ()))
    if dtype != np.uint8 or len(shape) != 3 or shape[-1] != 3:
      raise ValueError(f"image {number} is {dtype} {shape}, not a path or uint8 [H, W, 3] of RGB.")
  return items


def check_labels(labels: Any, count: int) -> np.ndarray:
  """Labels as an array of strings or integers.

  Raises:
    ValueError: they are of another kind or number.
  """
  array = np.asarray(labels)
  if array.ndim != 1 or array.dtype.kind not in "iuU" or len(array) != count:
    raise ValueError(
      f"labels of type {array.dtype} and shape {list(array.shape)} for {count} images: give one "
      "string or integer an image."
    )
  return array


def names_of(items: Sequence[Any]) -> list[str]:
  """What tables call images: their paths, or their numbers."""
  return [
    os.fspath(item) if isinstance(item, str | os.PathLike) else f"image {number}"
    for number, item in enumerate(items)
  ]


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
  try:
    rows = [(str(file), str(name)) for file, _, name in json.loads(path.read_bytes())[part]]
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f"{shown(path)} is no split in CoOp's format, {{{part!r}: [[file, number, class name], …]}}."
    ) from error
  if not rows:
    raise ValueError(f"{shown(path)} has no images under {part!r}.")
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
      f"{shown(path)} is not UTF-8 (byte {error.start}); save it again as CSV UTF-8."
    ) from error


def _delimiter(text: str) -> str:
  first = text.partition("\n")[0]
  return max(",;\t", key=first.count)


class Duplicates(NamedTuple):
  """Groups of files with the same bytes."""

  within: list[list[str]]  # of one class
  across: list[list[str]]  # of several: at least one of the labels is wrong


def find_duplicates(data: Labeled) -> Duplicates:
  """Exact copies among the images, by the digest of their content."""
  groups = collections.defaultdict(list)
  for number, digest in enumerate(_digests(data.items)):
    groups[digest].append(number)
  same = [group for group in groups.values() if len(group) > 1]
  named = lambda group: [data.files[number] for number in group]
  labels = lambda group: {data.labels[number] for number in group}
  return Duplicates(
    [named(group) for group in same if len(labels(group)) == 1],
    [named(group) for group in same if len(labels(group)) > 1],
  )


def _digests(items: Sequence[Any]) -> list[Any]:
  if all(isinstance(item, str | os.PathLike) for item in items):
    return files.digests(items)
  return [
    os.fspath(item) if isinstance(item, str | os.PathLike) else (item.shape, item.tobytes())
    for item in items
  ]


def decode(item: Any, how: Preprocessing) -> np.ndarray:
  """One image as a model takes it, uint8 `[S, S, 3]`.

  Raises:
    UnreadableImageError: a file that gives no image.
  """
  if not isinstance(item, np.ndarray):
    try:
      item = images.decode(item, os.fspath(item), how.decoding)
    except images.UnreadableImageError as error:  # whose second remedy is one of a config
      line = str(error).partition(", or set --config.data.unreadable")[0].rstrip(".")
      raise images.UnreadableImageError(f"{line}.") from error
  return images.resize(item, how.size, how.resize, how.interpolation)


def decode_all(items: Sequence[Any], how: Preprocessing) -> np.ndarray:
  """All of them, `[n, S, S, 3]`, by several threads.

  Raises:
    UnreadableImageError: as `decode`.
  """
  pixels = np.empty((len(items), how.size, how.size, 3), np.uint8)
  for row, image in enumerate(in_order(functools.partial(decode, how=how), items)):
    pixels[row] = image
  return pixels


def in_order(fn: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
  """`fn` of each item by several threads, in order; only a few results are kept ahead."""
  pool, pending = ThreadPoolExecutor(THREADS), collections.deque()
  try:
    for item in items:
      pending.append(pool.submit(fn, item))
      if len(pending) >= _WINDOW * THREADS:
        yield pending.popleft().result()
    while pending:
      yield pending.popleft().result()
  finally:
    pool.shutdown(wait=False, cancel_futures=True)


def counts_of(labels: np.ndarray) -> Mapping[Any, int]:
  """Images of each class, sorted by class."""
  classes, counts = np.unique(labels, return_counts=True)
  return dict(zip(classes.tolist(), counts.tolist(), strict=True))
