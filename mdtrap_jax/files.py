"""Files, handled so that nothing of the user's is lost: names, digests, writing in one step."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sqlite3
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mdtrap_jax import buckets

_LONGEST = 200  # bytes of a name: file systems allow 255, and ours get suffixes
_RESERVED = frozenset({
  "snapshots", "events", "figures", "model", "config.json", "episodes.jsonl", "summary.json",
  "study.csv", "study.png", "run.log", "episodes.parts", "predictions.npz", "predictions.json",
  "predictions.part", "report",
})  # fmt: skip
_PROCESS = re.compile(r"process-\d+", re.IGNORECASE)
_RACY = 2.0  # seconds: a file this fresh may change again without a new time


def cache_directory() -> Path:
  """Where what can be made again is kept: compiled programs, digests of files."""
  caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  return Path(caches).expanduser() / "mdtrap_jax"


def local(typed: str | os.PathLike[str], wanted: Callable[[str], bool] | None = None) -> str:
  """Where on this machine is what somebody typed: `~` is their home, a bucket's has a copy here.

  Args:
    typed: a path, or the URL of a bucket's folder or object, which is read if it is not here yet.
    wanted: says of the names of objects in a bucket's folder which are needed; all if not given.

  Raises:
    OSError: a bucket's folder or object is not there or cannot be read.
    ValueError: a URL of another kind.
  """
  if not buckets.is_bucket(typed):
    return os.path.expanduser(typed)
  everything = lambda name: True
  return str(buckets.local_copy(typed, wanted or everything, cache=_copies()))


def beside(typed: str | os.PathLike[str]) -> str:
  """`local` of a file that has others beside it: those are here too."""
  if not buckets.is_bucket(typed):
    return local(typed)
  folder, _, name = buckets.url_of(typed).rpartition("/")
  return os.path.join(local(folder), name)


def typed(path: object) -> str:
  """The URL of what a copy of a bucket's holds, and any other path as it is."""
  inside = os.fspath(path).removeprefix(f"{_copies()}/copies/") if "/copies/" in str(path) else ""
  found = re.match(r"[0-9a-f]{16}/(gs|s3)/(.*)", inside)
  return f"{found[1]}://{found[2]}" if found else str(path)


@contextlib.contextmanager
def writing(target: str | os.PathLike[str], last: str = "") -> Iterator[Path]:
  """A path to write a file or folder to; a bucket's is written to it once all is complete.

  Args:
    target: what somebody typed.
    last: the file by which a folder in a bucket is known to be complete: it goes first and comes
      last, and what the folder had beside goes too. Without it, files are added or replaced.
  """
  if not buckets.is_bucket(target):
    yield Path(local(target))
    return
  bucket = buckets.Bucket(target)
  with tempfile.TemporaryDirectory(prefix="mdtrap_jax-") as aside:
    path = Path(aside) / bucket.url.rpartition("/")[2]
    yield path
    if path.is_file():
      bucket.upload(path, "")
      return
    names = [str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()]
    if last:
      there = set(bucket.find())
      first = {name for name in there if os.path.basename(name) == last}
      bucket.remove(sorted(first))
      bucket.remove(sorted(there - first))
    for name in sorted(names, key=lambda name: (os.path.basename(name) == last, name)):
      bucket.upload(path / name, name)


def is_there(target: str | os.PathLike[str]) -> bool:
  """Whether something has the name that somebody typed, and is no empty folder."""
  if buckets.is_bucket(target):
    return bool(buckets.Bucket(target).find())
  path = Path(local(target))
  return os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir()))


def _copies() -> Path:
  return cache_directory() / "buckets"


def check_name(name: str, what: str) -> str:
  """A name that becomes a file or folder of ours: one part of a path and no more.

  Args:
    name: the name.
    what: the field it comes from, for the message.

  Returns:
    `name`.

  Raises:
    ValueError: it is empty, hidden, too long, or would lead to another folder.
  """
  reason = None
  if not isinstance(name, str) or not name.strip():
    reason = "is empty"
  elif name.startswith("."):
    reason = "begins with a dot"
  elif any(character in "/\\\0" or not character.isprintable() for character in name):
    reason = "holds a slash, backslash or control character"
  elif len(os.fsencode(name)) > _LONGEST:
    reason = f"has more than {_LONGEST} bytes"
  if reason:
    raise ValueError(
      f"{what}: the name {name!r} {reason}; it becomes a folder, so give a plain name."
    )
  return name


def is_reserved(name: str) -> bool:
  """Whether a run's directory has a file or folder of its own of that name.

  Whatever the file system makes of case; no variant of a run may be named like it.
  """
  return name.casefold() in _RESERVED or _PROCESS.fullmatch(name) is not None


def digest(path: str | os.PathLike[str]) -> str:
  """Hex SHA-256 of a file's content; kept by path, size, time and inode, so read once.

  Raises:
    OSError: it cannot be read, or is no regular file (a pipe would never end).
  """
  return digests([path])[0]


def digests(paths: Iterable[str | os.PathLike[str]]) -> list[str]:
  """`digest` of many files, with one look into what is known."""
  paths = [os.path.realpath(path) for path in paths]
  with contextlib.closing(_Known()) as known:
    return [known.digest(path) for path in paths]


class _Known:
  """Digests computed before, in a small database that processes share; or none if it fails."""

  def __init__(self):
    self._database = None
    with contextlib.suppress(OSError, sqlite3.Error):
      folder = cache_directory()
      folder.mkdir(parents=True, exist_ok=True)
      self._database = sqlite3.connect(folder / "digests.sqlite", timeout=5)
      self._database.execute(
        "CREATE TABLE IF NOT EXISTS digests "
        "(path TEXT PRIMARY KEY, size INT, time INT, inode INT, digest TEXT)"
      )

  def digest(self, path: str) -> str:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
      raise OSError(f"{path} is no regular file.")
    key = (status.st_size, status.st_mtime_ns, status.st_ino)
    found = self._ask("SELECT size, time, inode, digest FROM digests WHERE path = ?", path)
    if found and found[:3] == key:
      return found[3]
    with open(path, "rb") as file:
      value = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time() - status.st_mtime > _RACY:
      self._ask("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?, ?)", path, *key, value)
    return value

  def _ask(self, statement: str, *values: str | int) -> tuple | None:
    if self._database is None:
      return None
    try:
      return self._database.execute(statement, values).fetchone()
    except (sqlite3.Error, UnicodeEncodeError):  # full, damaged, or a name that is no UTF-8
      return None

  def close(self) -> None:
    if self._database is not None:
      with contextlib.suppress(sqlite3.Error):
        self._database.commit()
      self._database.close()


def write(path: str | os.PathLike[str], content: str | bytes) -> None:
  """Replaces a file in one step: a reader, or a kill, sees the old one or the new one.

  A link at `path` is replaced, never followed; what is written aside has a name of its own.

  Raises:
    OSError: the disk is full or the folder cannot be written; the old file is untouched.
  """
  path = Path(path)
  content = content.encode() if isinstance(content, str) else content
  descriptor, partial = tempfile.mkstemp(
    prefix=f".{path.name}.", suffix=".partial", dir=path.parent
  )
  try:
    with open(descriptor, "wb") as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    os.chmod(partial, 0o666 & ~_umask())
    os.replace(partial, path)
  except BaseException:
    with contextlib.suppress(OSError):
      os.unlink(partial)
    raise


@contextlib.contextmanager
def folder_aside(folder: Path) -> Iterator[Path]:
  """A new folder beside `folder`, to be filled and moved there; what is left of it goes."""
  folder.parent.mkdir(parents=True, exist_ok=True)
  aside = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.partial"
  aside.mkdir()
  try:
    yield aside
  finally:
    shutil.rmtree(aside, ignore_errors=True)


def _umask() -> int:
  """Of this process; can only be read by setting it."""
  mask = os.umask(0)
  os.umask(mask)
  return mask
