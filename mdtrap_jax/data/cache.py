"""An on-disk cache of resized images, shared by runs and processes.

One sparse file for each source, size and way of decoding and resizing, named after the hash of
all of these. Its head says whose images it holds; then comes a record for each image, a mark, a
checksum and the pixels `[S, S, 3]`. Mark and checksum are written after the pixels, so a killed
process leaves at worst an image that is made again, and what was damaged since, by a disk or a
person, is found when it is read. Two processes that write the same image write the same bytes.
"""

import errno
import hashlib
import json
import os
import pathlib
import stat
import struct
import weakref

import google_crc32c
import numpy as np
from absl import logging

from mdtrap_jax import buckets, files

_VERSION = 2  # Raise when decoding or resizing changes its result.
_MAGIC = b"mdtrap_jax: a cache of images\n"  # No file without it is ever written to.
_HEAD = 4096  # Bytes before the first record; what is not used of them is zero.
_MARK = b"\nimg"  # Of a record that is there; a hole in a sparse file reads as zeros.


class ImageCache:
  """Resized images of one source at one size; safe to use from many threads and processes."""

  def __init__(
    self,
    folder: str | os.PathLike[str],
    identity: str,
    count: int,
    size: int,
    resize: str = "squash",
    options: str = "",
  ):
    """Opens or creates the cache; anything that decides the bytes has a file of its own.

    Args:
      folder: Where the files are, created if missing. They are written image by image, as no
        object of a bucket can be: instead of a bucket this machine's cache directory is taken.
      identity: The source's `identity`.
      count: How many images `n` the source has.
      size: Image side `S`.
      resize: How images come to that size, see `images.resize`.
      options: Whatever else decides the pixels, as interpolation or background.

    Raises:
      OSError: If the file cannot be created or is none of ours, naming it and the remedy.
    """
    decides = {
      "version": _VERSION,
      "identity": identity,
      "count": count,
      "size": size,
      "resize": resize,
      "options": options,
    }
    self._key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).digest()
    if buckets.is_bucket(folder):
      here = files.cache_directory() / "images"
      logging.warning("%s: resized images are kept on this machine, in %s.", folder, here)
      folder = here
    self._path = pathlib.Path(files.local(folder)) / f"{self._key.hex()}.images"
    self._count, self._shape = count, (size, size, 3)
    self._bytes = size * size * 3
    self._record = len(_MARK) + 4 + self._bytes
    try:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      # A link of that name would lead out of the cache: it is not followed.
      self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
      weakref.finalize(self, os.close, self._file)
      self._claim()
    except OSError as error:
      raise self._failure("create", error) from error

  def get(self, index: int) -> np.ndarray | None:
    """The image uint8 `[S, S, 3]`, or None if it is not cached or was damaged."""
    record = os.pread(self._file, self._record, self._offset(index))
    head, pixels = record[: len(_MARK) + 4], record[len(_MARK) + 4 :]
    if head == self._head(index, pixels):
      return np.frombuffer(pixels, np.uint8).reshape(self._shape).copy()
    if head.strip(b"\0") or len(record) < self._record:
      logging.warning("%s: image %d is damaged there; it is made again.", self._path, index)
    return None

  def put(self, index: int, image: np.ndarray) -> None:
    """Stores an image uint8 `[S, S, 3]`.

    Raises:
      ValueError: If the image or the index does not fit the cache.
      OSError: If it cannot be written, as on a full disk.
    """
    if image.shape != self._shape or image.dtype != np.uint8 or not 0 <= index < self._count:
      raise ValueError(
        f"Image {index} {image.dtype} {image.shape} does not fit a cache of {self._count} "
        f"uint8 images {self._shape}."
      )
    pixels, offset = image.tobytes(), self._offset(index)
    try:
      _write(self._file, pixels, offset + len(_MARK) + 4)
      _write(self._file, self._head(index, pixels), offset)
    except OSError as error:
      raise self._failure("write", error) from error

  def _claim(self) -> None:
    """Makes sure that the open file is ours and as long as it should be."""
    head = (_MAGIC + self._key).ljust(_HEAD, b"\0")
    status = os.fstat(self._file)
    there = os.pread(self._file, _HEAD, 0)
    if not stat.S_ISREG(status.st_mode) or (there and not there.startswith(_MAGIC)):
      raise OSError(errno.EEXIST, "another file has its name, and is left alone")
    if there != head:
      if there:
        logging.warning("%s is damaged; its images are made again.", self._path)
        os.ftruncate(self._file, 0)
      _write(self._file, head, 0)
    if os.fstat(self._file).st_size < (length := self._offset(self._count)):
      os.ftruncate(self._file, length)  # Never shorter: another process may be ahead of us.

  def _offset(self, index: int) -> int:
    return _HEAD + index * self._record

  def _head(self, index: int, pixels: bytes) -> bytes:
    """What precedes an image: also of its place and file, should its record get into another."""
    place = self._key + struct.pack("<Q", index)
    return _MARK + struct.pack("<I", google_crc32c.extend(google_crc32c.value(place), pixels))

  def _failure(self, verb: str, error: OSError) -> OSError:
    gibibytes = self._count * self._bytes / 2**30
    return OSError(
      error.errno,
      f"Cannot {verb} the image cache {self._path}: {error.strerror}. Filled, it takes "
      f"{gibibytes:.2f} GiB. Free that space, or point --config.data.cache_dir= to another "
      "disk or set it empty to go without a cache",
    )


def _write(descriptor: int, data: bytes, offset: int) -> None:
  while data:  # A nearly full disk takes a part first and fails on the rest.
    written = os.pwrite(descriptor, data, offset)
    data, offset = data[written:], offset + written
