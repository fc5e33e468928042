"""Objects in buckets, `gs://…` and `s3://…`: every request is tried until it worked, or never can.

Requests go to fsspec's gcsfs and s3fs (the extras `gcs` and `s3`) directly, and not through
`etils.epath` or `universal_pathlib`: neither has create-if-absent, the versions of objects, or
retries, which all of this rests on; and a path class over the network is needed nowhere, because
whatever reads files is given a copy on this machine (`local_copy`), from which it also gets memory
maps, seeks and digests. Credentials are found by the stores' own means alone.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import hashlib
import importlib
import json
import os
import random
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from absl import logging

PATIENCE = 1800.0  # seconds that a store may be out of reach before a run gives up
_PAUSES = 0.5, 30.0  # seconds between two tries, the first and the longest
_SILENT = 3.0  # seconds of trying before a line says so
_SMALL = 1 << 25  # bytes that are read or written in one piece
_THREADS = 16  # that download at once
_URL = re.compile(r"(gs|s3):/{1,2}(?=[^/]|$)")  # `pathlib` makes one slash of two
_EXTRAS = {"gs": "gcs", "s3": "s3"}
_LOGIN = {"gs": "gcloud auth application-default login", "s3": "aws configure"}
_FINAL = {errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.ENAMETOOLONG, errno.EMSGSIZE,
          getattr(errno, "EREMCHG", errno.EPERM)}  # fmt: skip

Result = TypeVar("Result")


class Object(NamedTuple):
  """One object of a bucket, as a listing has it."""

  size: int  # bytes
  version: str  # another one for any other content: a generation or an ETag
  time: float  # of writing, seconds since 1970 by the store's clock
  crc32c: str | None = None  # base64, where the store says it


def is_bucket(path: Any) -> bool:
  """Whether somebody means a bucket, with `gs://…` or `s3://…`.

  Raises:
    ValueError: they mean another kind of store.
  """
  text = os.fspath(path) if isinstance(path, os.PathLike) else path
  if not isinstance(text, str):
    return False
  if not _URL.match(text) and re.match(r"[A-Za-z][\w+.-]+://", text):
    raise ValueError(f"{text}: give a folder of this machine, gs://BUCKET/… or s3://BUCKET/….")
  return _URL.match(text) is not None


def url_of(path: Any) -> str:
  """The one spelling of a bucket's URL: `gs://BUCKET/a/b`, without a slash at the end.

  Raises:
    ValueError: it names no bucket, or a folder above another, `..`.
  """
  text = os.fspath(path)
  scheme, parts = _URL.match(text)[1], [part for part in text.split(":", 1)[1].split("/") if part]
  if not parts or {".", ".."} & set(parts):
    raise ValueError(f"{text}: give {scheme}://BUCKET/FOLDER.")
  return f"{scheme}://{'/'.join(parts)}"


class Bucket:
  """The objects below a URL; names are relative to it, and `""` is an object of that very name."""

  def __init__(self, url: Any, *, patience: float | None = None):
    """Makes no request yet.

    Args:
      url: of a folder or an object.
      patience: seconds that the store may be out of reach; `PATIENCE` if not given.

    Raises:
      ValueError: it is no URL of a bucket.
      ModuleNotFoundError: the extra that reads it is not installed.
    """
    self.url = url_of(url)
    self._fs = _file_system(self.url[:2])
    self._root, self._patience = self.url[5:], patience

  def find(self, prefix: str = "") -> dict[str, Object]:
    """All objects below the URL, by name and in order; none if there is no such folder.

    Args:
      prefix: that their names have.

    Raises:
      OSError: there is no such bucket, no permission, or no answer for `PATIENCE`.
    """
    found = self._try(
      "listing it", lambda: self._fs.find(self._root, detail=True, prefix=prefix, refresh=True)
    )
    if not found and not prefix:  # which an absent bucket looks like too
      self._try("looking for it", self._check_bucket)
    names = {name[len(self._root) :].lstrip("/"): _object(info) for name, info in found.items()}
    return {name: names[name] for name in sorted(names) if not name.endswith("/")}

  def read(self, name: str) -> bytes | None:
    """The content of an object; `None` if there is none."""
    with contextlib.suppress(FileNotFoundError):
      return self._try(f"reading {name}", functools.partial(self._whole, name))
    return None

  def create(self, name: str, content: bytes) -> bool:
    """Makes an object unless there is one; atomic, whoever else tries at the same time.

    Returns:
      Whether it holds `content` now: also after a write that succeeded and said it failed.
    """
    try:
      self._try(
        f"writing {name}", lambda: self._fs.pipe_file(self._path(name), content, mode="create")
      )
      return True
    except FileExistsError:
      return self.read(name) == content

  def write(self, name: str, content: bytes) -> None:
    """Makes or replaces an object, in one step."""
    self._try(f"writing {name}", lambda: self._fs.pipe_file(self._path(name), content))

  def upload(self, path: Path, name: str) -> None:
    """Makes or replaces an object of a file's content, in one step."""
    if path.stat().st_size <= _SMALL:  # as it is now: it may be growing
      self.write(name, path.read_bytes())
    else:
      self._try(f"writing {name}", lambda: self._fs.put_file(str(path), self._path(name)))

  def download(self, name: str, entry: Object, path: Path) -> None:
    """Writes an object to a file, in one step.

    Raises:
      OSError: it is gone or changed meanwhile, or the disk is full.
    """
    partial = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex}.partial")
    try:
      if entry.size <= _SMALL:  # in one request; gcsfs needs three for a file
        partial.write_bytes(self.read(name) or b"")
      else:
        self._try(f"reading {name}", lambda: self._fs.get_file(self._path(name), str(partial)))
      if partial.stat().st_size != entry.size or _crc32c(partial, entry) != entry.crc32c:
        raise OSError(f"{self._full(name)} changed while it was read: run the same command again.")
      os.replace(partial, path)
    finally:
      partial.unlink(missing_ok=True)

  def remove(self, names: Iterable[str]) -> None:
    """Removes objects; those that are gone already count as removed."""

    def remove(name: str) -> None:
      with contextlib.suppress(FileNotFoundError):
        self._try(f"removing {name}", lambda: self._fs.rm_file(self._path(name)))

    for_all(remove, names)

  def _path(self, name: str) -> str:
    return f"{self._root}/{name}" if name else self._root

  def _full(self, name: str) -> str:
    return f"{self.url}/{name}" if name else self.url

  def _whole(self, name: str) -> bytes:
    # In one request, where s3fs would ask for the size first.
    options = {"max_concurrency": 1} if self.url.startswith("s3") else {}
    return self._fs.cat_file(self._path(name), **options)

  def _check_bucket(self) -> None:
    self._fs.ls(self._root.partition("/")[0], detail=False, refresh=True)

  def _try(self, what: str, act: Callable[[], Result]) -> Result:
    """The result of a request, tried again with growing pauses while that can help."""
    began, pause, told = time.monotonic(), _PAUSES[0], False
    patience = PATIENCE if self._patience is None else self._patience
    while True:
      try:
        result = act()
        if told:
          logging.warning("%s answers again after %.0f s.", self.url, time.monotonic() - began)
        return result
      except Exception as error:
        if (final := _final(error, self.url)) is not None:
          raise final from error
        waited, reason = time.monotonic() - began, _reason(error)
        if waited > patience:
          raise OSError(
            f"{self.url}: {what} failed for {waited / 60:.0f} min ({reason}): run the same command "
            "again once it can be reached."
          ) from error
        if waited >= _SILENT and not told:
          logging.warning(
            "%s: %s failed (%s); it is tried again for up to %.0f min, and nothing is lost.",
            self.url, what, reason, patience / 60,
          )  # fmt: skip
          told = True
      time.sleep(pause * random.uniform(0.5, 1.0))
      pause = min(2 * pause, _PAUSES[1])


def local_copy(url: Any, wanted: Callable[[str], bool] = lambda name: True, *, cache: Path) -> Path:
  """A bucket's folder or object as one of this machine.

  It is kept in `cache` by the versions of its objects, so that only what is new there is read
  again; objects that several copies share are one file. Nothing is ever written into a copy.

  Args:
    url: of a folder or an object.
    wanted: says of the names of a folder's objects which are needed.
    cache: a directory of ours.

  Raises:
    FileNotFoundError: there is no such thing, or nothing wanted in it.
    OSError: it cannot be read, or the disk is full.
    ValueError: a name is none of a file.
  """
  bucket = Bucket(url)
  found = {name: entry for name, entry in bucket.find().items() if not name or wanted(name)}
  if not found:
    raise FileNotFoundError(f"{bucket.url}: no such folder or object in that bucket.")
  if len(found) > 1:
    found.pop("", None)  # an object with the name of a folder
  check_names(bucket.url, found)
  facts = [bucket.url, [[name, *entry[:2]] for name, entry in found.items()]]
  place = cache / "copies" / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
  root = place.joinpath(*bucket.url.replace("://", "/").split("/"))
  if (place / ".complete").exists():
    return root
  blobs = cache / "objects"
  blobs.mkdir(parents=True, exist_ok=True)
  fetch = functools.partial(_fetch, bucket, blobs, root)
  with _bar(bucket.url, found) as bar:
    for_all(lambda name: bar.update(fetch(name, found[name]).size), found)
  (place / ".complete").touch()
  return root


def check_names(url: str, names: Iterable[str]) -> None:
  """Refuses names that lead elsewhere on a disk, such as `../x`.

  Raises:
    ValueError: says which.
  """
  for name in names:
    if name and {"", ".", ".."} & set(name.split("/")):
      raise ValueError(f"{url}/{name}: no file can have this name; rename the object.")


def for_all(act: Callable[[str], Any], names: Iterable[str]) -> None:
  """Does something for each name, many at a time; the first error ends it."""
  names = list(names)
  if len(names) < 2:
    for name in names:
      act(name)
    return
  with ThreadPoolExecutor(_THREADS) as pool:
    try:
      for _ in pool.map(act, names):
        pass
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise


def _fetch(bucket: Bucket, blobs: Path, root: Path, name: str, entry: Object) -> Object:
  """Reads an object if it is not here yet, and puts it into a copy."""
  blob = blobs / hashlib.sha256(f"{bucket.url}/{name}\n{entry[:2]}".encode()).hexdigest()
  if not blob.exists():
    bucket.download(name, entry, blob)
  target = root / name if name else root
  target.parent.mkdir(parents=True, exist_ok=True)
  with contextlib.suppress(FileExistsError):
    try:
      os.link(blob, target)
    except OSError as error:  # a file system without links
      if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
        raise
      aside = target.with_name(f".{target.name}.{os.getpid()}.partial")
      shutil.copyfile(blob, aside)
      os.replace(aside, target)
  return entry


def _bar(url: str, found: Mapping[str, Object]) -> Any:
  from tqdm import tqdm

  total = sum(entry.size for entry in found.values())
  return tqdm(total=total, desc=f"reading {url}", unit="B", unit_scale=True, leave=False, delay=2.0)


@functools.cache
def _file_system(scheme: str) -> Any:
  """fsspec's, without its cache of listings: others write there too."""
  module = {"gs": "gcsfs.core", "s3": "s3fs"}[scheme]
  try:
    module = importlib.import_module(module)
  except ModuleNotFoundError as error:
    extra = _EXTRAS[scheme]
    raise ModuleNotFoundError(
      f"{scheme}://… needs {error.name}: pip install 'mdtrap_jax[{extra}]'", name=error.name
    ) from error
  options = {"use_listings_cache": False, "skip_instance_cache": True}
  if scheme == "s3":
    return module.S3FileSystem(**options)
  import aiohttp

  # It prints a stack for each failure that we try again, or say in one line.
  module.logger.setLevel("CRITICAL")
  # For the whole of an object there is no limit, for silence there is.
  options["requests_timeout"] = aiohttp.ClientTimeout(total=None, sock_connect=20, sock_read=60)
  if os.environ.get("STORAGE_EMULATOR_HOST"):  # as Google's own client has it
    options["token"] = "anon"
  return module.GCSFileSystem(**options)


def _object(info: Mapping[str, Any]) -> Object:
  """From what gcsfs or s3fs say."""
  moment = info.get("mtime") or info.get("LastModified")
  version = info.get("generation") or info.get("ETag") or ""
  return Object(
    int(info["size"]), str(version), moment.timestamp() if moment else 0.0, info.get("crc32c")
  )


def _crc32c(path: Path, entry: Object) -> str | None:
  if entry.crc32c is None:
    return None
  import google_crc32c

  checksum = google_crc32c.Checksum()
  with open(path, "rb") as file:
    for _ in checksum.consume(file, 1 << 20):
      pass
  return base64.b64encode(checksum.digest()).decode()


def _final(error: Exception, url: str) -> Exception | None:
  """What to raise of an error that trying again does not cure."""
  reason, code = _reason(error), str(getattr(error, "code", ""))
  kind = type(error).__name__
  if isinstance(error, FileExistsError) or (
    isinstance(error, OSError) and "pre-conditions" in reason
  ):
    return FileExistsError(reason)
  if isinstance(error, FileNotFoundError):
    return FileNotFoundError(f"{url}: no such bucket, folder or object ({reason}).")
  denied = isinstance(error, PermissionError) or reason.startswith("Forbidden")
  if denied or code in ("401", "403") or "Credentials" in kind:
    return PermissionError(
      f"{url}: no permission ({reason}): {_LOGIN[url[:2]]}, or ask its owner for access."
    )
  full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
  if full or isinstance(error, Warning | MemoryError):
    return error
  wrong = isinstance(error, OSError) and error.errno in _FINAL
  if wrong or isinstance(error, ValueError | TypeError | AttributeError) or code == "400":
    return ValueError(f"{url}: refused by the store ({reason}).")
  return None


def _reason(error: Exception) -> str:
  """An error in one line."""
  return " ".join(str(error).split()).rstrip(".")[:300] or type(error).__name__
