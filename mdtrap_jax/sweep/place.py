"""Where a sweep is kept, a directory that its jobs share or a bucket, and who has a cell there.

On a disk, who runs a cell holds a lock on a file, which the kernel lets go when the process ends,
however it does. In a bucket a lease stands for the lock (see `run.lease`), which expires.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from mdtrap_jax import buckets, files
from mdtrap_jax.buckets import Bucket
from mdtrap_jax.run import claim
from mdtrap_jax.run import store as stores
from mdtrap_jax.run.lease import EXPIRES, Lease
from mdtrap_jax.sweep.cells import Cell

_OWN = ".sweep"


class Place(Protocol):
  """Keeps the runs of a sweep, and what the sweep itself notes."""

  name: str  # as people know it

  def runs(self, cell: Cell | None = None) -> Path:
    """A directory of this machine to read the cells' runs from, at least those of one cell."""

  def taken(self, cell: Cell) -> contextlib.AbstractContextManager[tuple[int, ...] | None]:
    """While this process has a cell to itself; gives `None` if another has.

    Else it gives descriptors: a process that inherits them has the cell too.
    """

  def holder(self, cell: Cell) -> str:
    """Who has a cell; empty if nobody has."""

  def failure(self, cell: Cell) -> dict:
    """The last note about a cell: `error`, and `when` in seconds since the epoch."""

  def note(self, cell: Cell, error: str) -> None:
    """Leaves a note of why a cell failed; an empty one removes it."""

  def write(self, name: str, text: str) -> None:
    """Writes a file of the sweep's `tables/`."""


class Disk(NamedTuple):
  """A directory that carries no mark of a run, for the cells are runs inside it; `.sweep` does."""

  name: str

  def runs(self, cell: Cell | None = None) -> Path:
    """The directory itself."""
    del cell
    return Path(self.name)

  @contextlib.contextmanager
  def taken(self, cell: Cell) -> Iterator[tuple[int, ...] | None]:
    """By a lock."""
    descriptor = claim.open_regular(self._file(cell, "lock"), os.O_RDWR | os.O_CREAT)
    try:
      if not _locked(descriptor):
        yield None
        return
      about = {"host": socket.gethostname(), "process": os.getpid(), "since": time.time()}
      os.ftruncate(descriptor, 0)
      os.pwrite(descriptor, json.dumps(about).encode(), 0)
      yield (descriptor,)
    finally:
      os.close(descriptor)

  def holder(self, cell: Cell) -> str:
    """See `Place`."""
    try:
      descriptor = claim.open_regular(self._file(cell, "lock"), os.O_RDONLY)
    except FileNotFoundError:
      return ""
    try:
      fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
      return ""
    except BlockingIOError:
      about = _parsed(self._file(cell, "lock").read_bytes())
      return _described(about, "since", about.get("since", time.time()))
    finally:
      os.close(descriptor)

  def failure(self, cell: Cell) -> dict:
    """See `Place`."""
    path = self._file(cell, "failed")
    return _parsed(path.read_bytes()) if path.is_file() else {}

  def note(self, cell: Cell, error: str) -> None:
    """See `Place`."""
    path = self._file(cell, "failed")
    if error:
      files.write(path, _note(error))
    else:
      path.unlink(missing_ok=True)

  def write(self, name: str, text: str) -> None:
    """See `Place`."""
    claim.mark(Path(self.name) / "tables")
    files.write(Path(self.name) / "tables" / name, text)

  def _file(self, cell: Cell, kind: str) -> Path:
    return Path(self.name) / _OWN / f"{_flat(cell)}.{kind}"


class InBucket(NamedTuple):
  """A folder of a bucket."""

  name: str  # its URL

  def runs(self, cell: Cell | None = None) -> Path:
    """A copy; an empty directory where there is nothing yet."""
    try:
      if cell is None:
        return stores.readable(self.name)
      root = stores.readable(f"{self.name}/{cell.name}")
      return root.parents[cell.name.count("/")]
    except FileNotFoundError:
      return Path(tempfile.gettempdir()) / "mdtrap_jax-none"

  @contextlib.contextmanager
  def taken(self, cell: Cell) -> Iterator[tuple[int, ...] | None]:
    """By a lease."""
    try:
      lease = Lease(self._own(cell))
    except OSError as error:
      if "in use" not in str(error):
        raise
      yield None
      return
    with contextlib.closing(lease):
      yield ()

  def holder(self, cell: Cell) -> str:
    """See `Place`; who has not renewed a lease has lost it."""
    own = self._own(cell)
    leases = own.find(".lease-")
    if not leases or time.time() - leases[max(leases)].time > EXPIRES:
      return ""
    about = _parsed(own.read(max(leases)) or b"")
    return _described(about, "seen", leases[max(leases)].time) if about else ""

  def failure(self, cell: Cell) -> dict:
    """See `Place`."""
    return _parsed(self._own(cell).read("failed") or b"")

  def note(self, cell: Cell, error: str) -> None:
    """See `Place`."""
    if error:
      self._own(cell).write("failed", _note(error).encode())
    else:
      self._own(cell).remove(["failed"])

  def write(self, name: str, text: str) -> None:
    """See `Place`."""
    Bucket(f"{self.name}/tables").write(name, text.encode())

  def _own(self, cell: Cell) -> Bucket:
    return Bucket(f"{self.name}/{_OWN}/{_flat(cell)}")


def claimed(workdir: str | Path) -> Place:
  """Makes a sweep's place, or takes one that is a sweep's.

  Raises:
    ValueError, OSError: it is something else's; nothing was written then.
  """
  if buckets.is_bucket(workdir):
    bucket = Bucket(workdir)
    found = bucket.find()
    if found and not any(name.startswith(f"{_OWN}/") for name in found):
      raise ValueError(f"{bucket.url} is not empty and no sweep: give a new or empty --workdir.")
    if not found:
      bucket.create(f"{_OWN}/{claim.MARKER}", b"")
    return InBucket(bucket.url)
  folder = Path(workdir).expanduser().resolve()
  for parent in (folder, *folder.parents):
    if claim.is_ours(parent):
      raise ValueError(f"{parent} is a run's: give another --workdir.")
  if folder.exists() and not folder.is_dir():
    raise NotADirectoryError(f"{folder} is no directory: give another --workdir.")
  if folder.is_dir() and any(folder.iterdir()) and not claim.is_ours(folder / _OWN):
    raise ValueError(f"{folder} is not empty and no sweep: give a new or empty --workdir.")
  folder.mkdir(parents=True, exist_ok=True)
  claim.mark(folder / _OWN)
  return Disk(str(folder))


def found(workdir: str | Path) -> Place:
  """The place of a sweep that was begun; writes nothing.

  Raises:
    FileNotFoundError: there is none.
  """
  if buckets.is_bucket(workdir):
    bucket = Bucket(workdir)
    there = bool(bucket.find(f"{_OWN}/"))
    place: Place = InBucket(bucket.url)
  else:
    place = Disk(str(Path(workdir).expanduser().resolve()))
    there = (Path(place.name) / _OWN).is_dir()
  if not there:
    raise FileNotFoundError(f"{workdir} holds no sweep: give the --workdir of one.")
  return place


def _locked(descriptor: int, tries: int = 5) -> bool:
  """Locks a file; who only looks whether it is locked holds it for a moment, too."""
  for _ in range(tries):
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
      return True
    except BlockingIOError:
      time.sleep(0.1)
  return False


def _flat(cell: Cell) -> str:
  return cell.name.replace("/", ",")


def _note(error: str) -> str:
  return json.dumps({"error": error, "when": time.time()}) + "\n"


def _described(about: dict, word: str, moment: float) -> str:
  when = time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))
  return f"on {about.get('host', '?')}, process {about.get('process', '?')}, {word} {when}"


def _parsed(content: bytes) -> dict:
  """An object of ours, or nothing while somebody writes it."""
  with contextlib.suppress(ValueError):
    value = json.loads(content)
    if isinstance(value, dict):
      return value
  return {}
