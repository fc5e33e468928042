"""An on-disk cache of resized images, shared by runs and processes.

Two files per source, size and way of resizing: the images as one raw uint8 array
`[n, S, S, 3]`, which is sparse until filled, and one byte per image that says whether it is
there. The byte is written after the image, so a killed process leaves at worst an image that is
made again, and two processes that write the same image write the same bytes.
"""

import os
import pathlib
import weakref

import numpy as np

_VERSION = 1  # Raise when decoding or resizing changes its result.


class ImageCache:
  """Resized images of one source at one size; safe to use from many threads and processes."""

  def __init__(
    self,
    folder: str | os.PathLike[str],
    identity: str,
    count: int,
    size: int,
    resize: str = "squash",
  ):
    """Opens or creates the cache; other data, another size or resizing has other files.

    Args:
      folder: Where the files are, created if missing.
      identity: The source's `identity`.
      count: How many images `n` the source has.
      size: Image side `S`.
      resize: How images come to that size, see `images.resize`.

    Raises:
      OSError: If the files cannot be created, naming the folder and the remedy.
    """
    stem = pathlib.Path(folder).expanduser() / f"{identity[:32]}-{size}-{resize}-v{_VERSION}"
    self._path = stem.with_suffix(".images")
    self._count, self._shape = count, (size, size, 3)
    self._bytes = size * size * 3
    try:
      stem.parent.mkdir(parents=True, exist_ok=True)
      self._images_file = _open(self._path, count * self._bytes)
      self._filled_file = _open(stem.with_suffix(".filled"), count)
    except OSError as error:
      raise self._failure("create", error) from error
    for descriptor in (self._images_file, self._filled_file):
      weakref.finalize(self, os.close, descriptor)
    self._images = np.memmap(self._path, np.uint8, "r", shape=(count, *self._shape))
    self._filled = np.memmap(stem.with_suffix(".filled"), np.uint8, "r", shape=(count,))

  def get(self, index: int) -> np.ndarray | None:
    """The image uint8 `[S, S, 3]`, or None if it is not cached."""
    return np.array(self._images[index]) if self._filled[index] else None

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
    try:
      # Written to the file, not through the mapping: there, a full disk kills the process.
      _write(self._images_file, image.tobytes(), index * self._bytes)
      _write(self._filled_file, b"\1", index)
    except OSError as error:
      raise self._failure("write", error) from error

  def _failure(self, verb: str, error: OSError) -> OSError:
    gibibytes = self._count * self._bytes / 2**30
    return OSError(
      error.errno,
      f"Cannot {verb} the image cache {self._path}: {error.strerror}. Filled, it takes "
      f"{gibibytes:.2f} GiB. Free that space, or point --config.data.cache_dir= to another "
      "disk or set it empty to go without a cache",
    )


def _open(path: pathlib.Path, size: int) -> int:
  descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
  os.ftruncate(descriptor, size)  # Keeps what is there: a file of this name has this size.
  return descriptor


def _write(descriptor: int, data: bytes, offset: int) -> None:
  while data:  # A nearly full disk takes a part first and fails on the rest.
    written = os.pwrite(descriptor, data, offset)
    data, offset = data[written:], offset + written
