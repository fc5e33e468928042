"""Labeled images of a user's own: checked, looked through for copies, decoded."""

from __future__ import annotations

import collections
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from mdtrap_jax import files
from mdtrap_jax.data import images

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


def in_order(
  fn: Callable[[Any], Any], items: Iterable[Any], ahead: int = _WINDOW * THREADS
) -> Iterator[Any]:
  """`fn` of each item by several threads, in order; at most `ahead` results wait to be taken."""
  pool, pending = ThreadPoolExecutor(THREADS), collections.deque()
  try:
    for item in items:
      pending.append(pool.submit(fn, item))
      if len(pending) >= ahead:
        yield pending.popleft().result()
    while pending:
      yield pending.popleft().result()
  finally:
    pool.shutdown(wait=False, cancel_futures=True)


def counts_of(labels: np.ndarray) -> Mapping[Any, int]:
  """Images of each class, sorted by class."""
  classes, counts = np.unique(labels, return_counts=True)
  return dict(zip(classes.tolist(), counts.tolist(), strict=True))
