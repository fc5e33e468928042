"""Where a run's files are kept: on a disk of this machine, or in a bucket.

A run reads and writes a directory of this machine, whatever it is kept in; all that a `Store` adds
is `push`, after which what was written so far outlives the machine. Of a bucket that directory is a
working copy: made from the objects when the run begins, gone when it ends. Objects can be neither
appended to nor locked. So the lines that an `episodes.jsonl` has gained become a part, an object
of its own that never changes (`episodes.parts/OFFSET-DIGEST.jsonl`); at the end of the run, or by
`mdtrap compact`, parts become one `episodes.jsonl`. And a lease (see `lease`) stands for the lock.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from mdtrap_jax import buckets, files
from mdtrap_jax.buckets import Bucket, Object
from mdtrap_jax.run import claim
from mdtrap_jax.run.lease import Lease, is_lease
from mdtrap_jax.run.star import PeerError
from mdtrap_jax.run.stop import PreemptedError

LINES, _PARTS = "episodes.jsonl", "episodes.parts/"
PREDICTIONS = ("predictions.npz", "predictions.json", "predictions.part")
_READ = {claim.MARKER, "config.json", "summary.json", "metrics.json", "run.log", LINES}
_READ |= set(PREDICTIONS)
# First what says whose a directory is; lines come when all is there that they stand for.
_ORDER = {claim.MARKER: 0, "config.json": 1, LINES: 3}
_OFTEN = 30.0  # seconds between two copies of a file that grows all the time
_GROWING = re.compile(r"(.*/)?events/.*|(.*/)?run\.log")
_OTHERS = re.compile(r"(process-(\d+)/)?(.*)", re.DOTALL)


class Store(Protocol):
  """Keeps a run's files."""

  root: Path  # on this machine
  name: str  # as people know it

  def push(self, everything: bool = False) -> None:
    """Returns once what has changed below `root` is kept; `events/` wait a while, or not."""


class Local(NamedTuple):
  """A directory on a disk of this machine: what is written is kept."""

  root: Path
  name: str

  def push(self, everything: bool = False) -> None:
    """Nothing is to be done."""
    del everything


def of(workdir: str | Path | Store) -> Store:
  """The store of a directory of this machine; a store as it is."""
  if isinstance(workdir, str | os.PathLike):
    path = files.local(workdir)
    return Local(Path(path), os.path.realpath(path))
  return workdir


@contextlib.contextmanager
def opened(workdir: str | Path, process: int = 0, count: int = 1) -> Iterator[Store]:
  """The store of a work directory, for as long as the run lasts.

  Args:
    workdir: what somebody typed.
    process: which of the run's processes this is.
    count: of them.

  Raises:
    OSError, ValueError: a bucket that is not there, cannot be written, or is in use. Errors inside
      that name files of the working copy name objects of the bucket instead.
  """
  if not buckets.is_bucket(workdir):
    yield of(workdir)
    return
  bucket = Bucket(workdir)
  place = files.cache_directory() / "runs" / hashlib.sha256(bucket.url.encode()).hexdigest()[:16]
  place = place / f"process-{process}"
  place.mkdir(parents=True, exist_ok=True)
  place = place.resolve()
  with (
    contextlib.closing(Lease(bucket, f"process-{process}/" if process else "")) as lease,
    _locked(place),
  ):
    root = place.joinpath("copy", *bucket.url.replace("://", "/").split("/"))
    store = _Copy(bucket, root, lease)
    try:
      store.fill(process, count)
      yield store
    except (ValueError, OSError) as error:
      if isinstance(error, PeerError):  # it was well until then
        with contextlib.suppress(OSError):
          store.push(everything=True)
      scheme = bucket.url[:2]
      raise _renamed(error, f"{place}/copy/{scheme}/", f"{scheme}://") from error
    except PreemptedError:
      store.push(everything=True)
      raise
    else:
      store.push(everything=True)
      store.compact()
    finally:
      shutil.rmtree(place / "copy", ignore_errors=True)


class _Copy:
  """The working copy of a run in a bucket."""

  def __init__(self, bucket: Bucket, root: Path, lease: Lease):
    self.root, self.name = root, bucket.url
    self._bucket, self._lease = bucket, lease
    self._known: dict[str, tuple[int, int]] = {}  # size and time of what is in the bucket
    self._lines: dict[str, int] = {}  # bytes of each `episodes.jsonl` that are in the bucket
    self._parts: dict[str, list[str]] = {}  # of each directory whose lines this process writes
    self._pushed: dict[str, float] = {}  # when files that grow were copied

  def fill(self, process: int, count: int) -> None:
    """Makes the working copy of the objects there are.

    What no run reads (figures, other processes' snapshots) is there by its name alone.
    """
    found = {name: entry for name, entry in self._bucket.find().items() if not is_lease(name)}
    read = lambda name: _is_read(name) or (_falls_to(name, process, count) and _is_snapshot(name))
    self._parts = {
      folder: parts for folder, parts in _parts_of(found).items()
      if _falls_to(folder, process, count)
    }  # fmt: skip
    self.root.mkdir(parents=True)
    check_out(self._bucket, found, self.root, read)
    self._parents()
    self._known = {name: _state(path) for name, path in self._walk()}
    whole = lambda path: path.read_bytes().rfind(b"\n") + 1  # half a line will be cut off
    self._lines = {name: whole(self.root / name) for name in self._known if _is_lines(name)}

  def push(self, everything: bool = False) -> None:
    """Copies what has changed into the bucket, and removes there what is gone here.

    Raises:
      OSError: the store was out of reach for `buckets.PATIENCE`, or another run has taken over.
    """
    if self._lease.lost:
      raise OSError(self._lease.lost)
    own = {claim.MARKER, "config.json"} & self._known.keys()  # which no run removes
    if not all((self.root / name).exists() for name in own):
      raise OSError(
        f"the working copy of {self.name} on this machine was removed while the run went on: what "
        "was pushed is kept; run the same command again."
      )
    there = dict(self._walk())
    order = lambda name: _ORDER.get(name.rpartition("/")[2], 2)
    for name in sorted(there, key=lambda name: (order(name), name)):
      state = _state(there[name])
      if state is None or state == self._known.get(name):
        continue
      if _is_lines(name):
        self._add_part(name, there[name])
      elif everything or not self._waits(name):
        self._bucket.upload(there[name], name)
        self._pushed[name] = time.monotonic()
      else:
        continue
      self._known[name] = state
    gone = [name for name in self._known if name not in there]
    self._bucket.remove(gone)
    for name in gone:
      del self._known[name]

  def compact(self) -> None:
    """Makes one object of the lines of each directory that this process has written."""
    for folder, parts in self._parts.items():
      self._bucket.upload(self.root / folder / LINES, folder + LINES)
      self._bucket.remove(parts)
    self._parts.clear()

  def _add_part(self, name: str, path: Path) -> None:
    """Keeps the lines that a file has gained; a part that is there already holds just these."""
    start = self._lines.get(name, 0)
    with open(path, "rb") as file:
      file.seek(start)
      content = file.read()
    if content:
      folder = name.removesuffix(LINES)
      part = f"{folder}{_PARTS}{start:012d}-{hashlib.sha256(content).hexdigest()[:16]}.jsonl"
      self._bucket.create(part, content)
      self._parts.setdefault(folder, []).append(part)
    self._lines[name] = start + len(content)

  def _waits(self, name: str) -> bool:
    waited = time.monotonic() - self._pushed.get(name, -_OFTEN)
    return _GROWING.fullmatch(name) is not None and waited < _OFTEN

  def _parents(self) -> None:
    """Marks the folders above that are a run's, so that no run begins inside another."""
    url, folder = self._bucket.url, self.root
    while url.count("/") > 2:
      url, folder = url.rpartition("/")[0], folder.parent
      if content := Bucket(url).read(claim.MARKER):
        (folder / claim.MARKER).write_bytes(content)

  def _walk(self) -> Iterator[tuple[str, Path]]:
    """The files of the working copy that belong into the bucket, by name."""

    def refuse(error: OSError) -> None:
      raise error  # a folder that cannot be read is not an empty one

    for folder, _, names in os.walk(self.root, onerror=refuse):
      for name in names:
        path = Path(folder) / name
        if name != ".lock" and not name.endswith(".partial"):
          yield path.relative_to(self.root).as_posix(), path


def check_out(bucket: Bucket, found: Mapping[str, Object], root: Path, read) -> None:
  """Writes objects to files below `root`, and parts as the lines of an `episodes.jsonl`.

  Args:
    bucket: of the run.
    found: objects in it.
    root: an empty directory.
    read: says of a name whether its content is needed; the others become empty files.
  """
  parts = {name for names in _parts_of(found).values() for name in names}
  buckets.check_names(bucket.url, found)

  def write(name: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if read(name) or name in parts:
      bucket.download(name, found[name], path)
    else:
      path.touch()

  buckets.for_all(write, found)
  for folder, names in _parts_of(found).items():
    lines = joined(
      path.read_bytes() for path in [root / folder / LINES, *(root / n for n in names)]
      if path.exists()
    )  # fmt: skip
    (root / folder / LINES).write_bytes(lines)
    shutil.rmtree(root / folder / _PARTS)


def joined(contents: Iterator[bytes]) -> bytes:
  """Lines of several files, each episode's once: the first, where two runs both did it."""
  seen, lines = set(), []
  for content in contents:
    for line in content.splitlines(keepends=True):
      if not line.endswith(b"\n"):
        continue  # cut short by a kill
      try:
        number = json.loads(line)["episode"]
      except (ValueError, TypeError, LookupError):
        number = line  # damaged: whoever reads the lines says so
      if number not in seen:
        seen.add(number)
        lines.append(line)
  return b"".join(lines)


def readable(path: str | Path) -> Path:
  """A directory of this machine to read a run, or several, from: of a bucket's, a copy.

  Raises:
    FileNotFoundError: there is no such folder in the bucket.
  """
  if not buckets.is_bucket(path):
    return Path(files.local(path))
  bucket = Bucket(path)
  found = bucket.find()
  parts = {name for names in _parts_of(found).values() for name in names}
  found = {name: entry for name, entry in found.items() if name in parts or _is_read(name)}
  if not found:
    raise FileNotFoundError(f"{bucket.url} holds no run.")
  place = tempfile.mkdtemp(prefix="mdtrap_jax-")
  atexit.register(shutil.rmtree, place, ignore_errors=True)
  root = Path(place).joinpath(*bucket.url.replace("://", "/").split("/"))
  root.mkdir(parents=True)
  check_out(bucket, found, root, lambda name: True)
  return root


def compact(url: str) -> int:
  """Makes one object of the parts of each directory of a run; returns how many parts there were.

  Raises:
    OSError: the run is under way, or the bucket cannot be read or written.
  """
  bucket = Bucket(url)
  found = _parts_of(bucket.find())
  with contextlib.ExitStack() as stack:
    for own in sorted({_OTHERS.fullmatch(folder)[1] or "" for folder in found} | {""}):
      stack.enter_context(contextlib.closing(Lease(bucket, own)))
    found = _parts_of(bucket.find())  # now that nobody writes
    for folder, parts in found.items():
      contents = (bucket.read(name) or b"" for name in [folder + LINES, *parts])
      bucket.write(folder + LINES, joined(contents))
      bucket.remove(parts)
  return sum(map(len, found.values()))


def _parts_of(found: Mapping[str, Object]) -> dict[str, list[str]]:
  """The parts of each directory, `""` or ending in a slash, in their order."""
  parts: dict[str, list[str]] = {}
  for name in sorted(found):
    folder, middle, rest = name.rpartition(_PARTS)
    if middle and "/" not in rest and (not folder or folder.endswith("/")):
      parts.setdefault(folder, []).append(name)
  return parts


def _is_lines(name: str) -> bool:
  return name.rpartition("/")[2] == LINES


def _is_read(name: str) -> bool:
  return name.rpartition("/")[2] in _READ


def _is_snapshot(name: str) -> bool:
  return _OTHERS.fullmatch(name)[3].startswith("snapshots/")


def _falls_to(name: str, process: int, count: int) -> bool:
  """Whether a process looks after a file: it is its own, or of a process that is no more."""
  number = int(_OTHERS.fullmatch(name)[2] or 0)
  return number == process or (number >= count and number % count == process)


def _state(path: Path) -> tuple[int, int] | None:
  try:
    status = path.stat()
  except FileNotFoundError:  # gone meanwhile
    return None
  return status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
  """Keeps others of this machine from the working copy, and begins with none."""
  descriptor = os.open(place / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
  try:
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      raise OSError(f"{place} is in use by another run of this machine: wait for it.") from error
    shutil.rmtree(place / "copy", ignore_errors=True)
    yield
  finally:
    os.close(descriptor)


def _renamed(error: Exception, here: str, there: str) -> Exception:
  """The error with the bucket's name for the working copy's."""
  if here not in str(error):
    return error
  if isinstance(error, OSError) and error.errno is not None:
    return type(error)(error.errno, str(error.strerror).replace(here, there))
  try:
    return type(error)(str(error).replace(here, there))
  except TypeError:
    return ValueError(str(error).replace(here, there))
