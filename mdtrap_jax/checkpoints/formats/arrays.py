"""What every reader returns: arrays by name that are read from the file only when asked for."""

from __future__ import annotations

import collections
import contextlib
import difflib
import itertools
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


_POINTER = b"version https://git-lfs.github.com/"
_MOST_JSON = 2**26  # bytes; the largest published tokenizer has half of that
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_LONGEST = 2000  # characters of a message: names in a file may be of any length
_COMPARED = 1000  # names that a misspelt one is compared with
_SHOWN = 200  # characters of what a file may make as long as it likes


class UnusableFileError(ValueError):
  """A file that cannot be read; the message names the file, the reason, the remedy, in a line."""

  def __init__(self, message: str):
    super().__init__(_UNPRINTABLE.sub("?", message)[:_LONGEST])


@contextlib.contextmanager
def reading(path: Path, part: str = "") -> Iterator[None]:
  """Around the parsing of a file that may be damaged: one kind of error, which names the file.

  Args:
    path: of the file.
    part: what of it is read.

  Raises:
    UnusableFileError: whatever else a parser raises when it meets bytes that make no sense.
  """
  check_content(path)
  try:
    yield
  except (UnusableFileError, MemoryError):
    raise
  except Exception as error:  # zip, pickle, JSON and msgpack readers raise a dozen kinds
    if getattr(error, "filename", None):  # the operating system refuses, and says what
      raise
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    raise UnusableFileError(
      f"{path}: truncated or damaged{part and f' in {part[:_SHOWN]}'}, or of another format "
      f"({reason[:_SHOWN]}). Download it again."
    ) from error


def check_content(path: Path) -> None:
  """Refuses what would never end when it is read, and what only points to the content.

  Raises:
    FileNotFoundError: there is no such file.
    UnusableFileError: it is a pipe, a device or a folder; or git-lfs has not fetched it.
  """
  if not stat.S_ISREG(os.stat(path).st_mode):
    raise UnusableFileError(f"{path} is a pipe, device or folder, not a file of data.")
  with open(path, "rb") as file:
    if file.read(len(_POINTER)) == _POINTER:
      raise UnusableFileError(
        f"{path} is a pointer of git-lfs, not the file itself. Run `git lfs pull` in its "
        "repository, or download the file."
      )


def read_json(path: Path) -> Any:
  """The content of a JSON file.

  Raises:
    FileNotFoundError: there is no such file.
    UnusableFileError: it is no JSON, gives one field twice, or is too large for such a file.
  """
  with reading(path):
    if (size := os.path.getsize(path)) > _MOST_JSON:
      raise ValueError(f"{size} bytes, more than any such file has")
    return parse_json(path.read_bytes())


def parse_json(text: bytes) -> Any:
  """JSON in which no field is given twice: readers differ in which of both they take.

  Raises:
    ValueError: it is no JSON, or a field is repeated.
  """

  def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(fields := dict(pairs)) < len(pairs):
      [(repeated, _)] = collections.Counter(name for name, _ in pairs).most_common(1)
      raise ValueError(f"{repeated[:_SHOWN]!r} is given twice")
    return fields

  return json.loads(text.decode("utf-8"), object_pairs_hook=unique)


class StoredArray(NamedTuple):
  """One array of a checkpoint. Reading it costs its own size, and nothing is kept."""

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]
  read_rows: Callable[[int, int], np.ndarray] | None = None  # [start, stop), where cheap

  @property
  def is_float(self) -> bool:
    """Whether the numbers are floating point of 16 bits or more, as weights must be."""
    return self.dtype in (np.float16, BFLOAT16, np.float32, np.float64)


Arrays = Mapping[str, StoredArray]  # names with "." between their parts


def in_memory(flat: Mapping[str, np.ndarray]) -> dict[str, StoredArray]:
  """Arrays that are already loaded, in the form that the readers return."""
  arrays = {}
  for name, array in flat.items():
    array = np.asarray(array)
    arrays[name.replace("/", ".")] = StoredArray(
      array.shape, array.dtype, lambda array=array: array
    )
  return arrays


def normalized(arrays: Arrays, known: Set[str]) -> dict[str, StoredArray]:
  """Names without what training put before all of them, and without torch.compile's marks.

  `module.` (data parallel), `model.` (Lightning), `base_model.model.` (PEFT) and the like go as
  long as all names share them; big_vision's `params.` goes although `opt.` is beside it.

  Args:
    arrays: by name.
    known: first parts that a layout's own names have; these stay.

  Raises:
    ValueError: two names become one.
  """
  named = {name.replace("_orig_mod.", ""): array for name, array in arrays.items()}
  while True:
    firsts = {name.partition(".")[::2] for name in named}
    prefixes = {first for first, _ in firsts}
    if len(prefixes) != 1 or prefixes <= known or not all(rest for _, rest in firsts):
      break
    named = {name.partition(".")[2]: array for name, array in named.items()}
  named = {name.removeprefix("params."): array for name, array in named.items()}
  if len(named) < len(arrays):
    raise ValueError("two of its arrays have one name but for what torch.compile adds")
  return named


def nearest(name: str, names: Iterable[str]) -> str | None:
  """The most similar name, to ask whether it is meant; `None` if none is similar."""
  similar = (other for other in names if abs(len(other) - len(name)) < 32)
  return next(
    iter(difflib.get_close_matches(name, itertools.islice(similar, _COMPARED), 1, 0.8)), None
  )


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """An uninitialized array at an address that JAX's CPU backend can share without a copy."""
  dtype = np.dtype(dtype)
  size = int(np.prod(shape)) * dtype.itemsize
  raw = np.empty(size + 64, np.uint8)
  start = -raw.ctypes.data % 64
  return raw[start : start + size].view(dtype).reshape(shape)
