"""Reading images: a photograph of a common format becomes 8-bit RGB, or an error names it."""

import functools
import io
import os
import pathlib
import stat
import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from PIL import Image, TiffImagePlugin

from mdtrap_jax.data import depth
from mdtrap_jax.data.names import shown

VERSION = 2  # Of the pixels that `decode` makes; raise it when they change.
RESIZE_MODES = ("squash", "crop")
INTERPOLATIONS = {
  "bilinear": Image.Resampling.BILINEAR,
  "bicubic": Image.Resampling.BICUBIC,
}
# Pillow knows more, but of kinds that are not photographs (documents, film), some of which start
# programs: of EPS, Ghostscript.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = frozenset(
  (
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpf",
    ".jpg", ".jpx", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
  )
)  # fmt: skip
"""Of file names, in lower case."""

_MAX_PIXELS = 178_956_970  # What Pillow refuses as a decompression bomb.
_LARGE = 2**24  # pixels of an enlarged image, of which only the center is wanted
_READERS = {
  ".heic": "pillow-heif",
  ".heif": "pillow-heif",
  ".dcm": "pydicom",
  ".dicom": "pydicom",
  ".nii": "nibabel",
  ".svs": "openslide-python",
  ".ndpi": "openslide-python",
  ".cr2": "rawpy",
  ".nef": "rawpy",
  ".arw": "rawpy",
  ".dng": "rawpy",
  ".svg": "cairosvg",
  ".psd": "psd-tools",
}
_OTHER_KINDS = (  # where, first bytes, what it is
  (4, b"ftyphei", "HEIC, which the package pillow-heif reads; convert it to PNG"),
  (4, b"ftyphev", "HEIC, which the package pillow-heif reads; convert it to PNG"),
  (4, b"ftypmif1", "HEIF, which the package pillow-heif reads; convert it to PNG"),
  (128, b"DICM", "DICOM, which the package pydicom reads; convert it to PNG"),
  (0, b"%!PS", "PostScript, a program that is not run here; convert it to PNG"),
  (0, b"\xc5\xd0\xd3\xc6", "PostScript, a program that is not run here; convert it to PNG"),
  (0, b"%PDF", "a PDF; convert it to PNG"),
  (0, b"version https://git-lfs", "a pointer of git-lfs; get the image by: git lfs pull"),
  (0, b"<", "text, perhaps the web page of a failed download"),
)
_TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112
_opening = threading.Lock()


class UnreadableImageError(ValueError):
  """An image that is corrupt, truncated, empty or of a kind with no meaning as RGB."""


class Decoding(NamedTuple):
  """How what 8-bit RGB does not have is brought into it."""

  background: tuple[int, int, int] = (255, 255, 255)  # Seen through transparency.
  window: tuple[float, float] | None = None  # Black and white of images of over 8 bits.
  max_pixels: int | None = None  # None: 178,956,970, Pillow's own limit.


DEFAULT = Decoding()


class Notes:
  """Says once for a source what was done to images of it, not once for each image."""

  def __init__(self, source: str):
    """`source` is named in each line."""
    self._source, self._said, self._lock = source, set(), threading.Lock()

  def say(self, kind: str, line: str) -> None:
    """Logs a line, the first of its kind."""
    with self._lock:
      if kind in self._said:
        return
      self._said.add(kind)
    logging.warning("%s: %s", self._source, line)


def decoding_of(config: Any) -> Decoding:
  """The fields `background`, `window` and `max_pixels` of `config.data`, where it has them."""
  given = lambda field, default: getattr(config, field, None) or default
  return Decoding(
    background=tuple(given("background", DEFAULT.background)),
    window=tuple(given("window", ())) or None,
    max_pixels=given("max_pixels", None),
  )


def decode(
  file_or_bytes: str | os.PathLike[str] | bytes,
  name: str,
  decoding: Decoding = DEFAULT,
  notes: Notes | None = None,
) -> np.ndarray:
  """Decodes an image to RGB, as viewers show it.

  Grey, palette, 1-bit, CMYK and YCbCr images are converted; more than 8 bits are scaled as
  `depth.to_bytes` says. An EXIF orientation is applied, and transparency shows the background.
  The reference does neither: it takes a photo as the sensor lay, and of a transparent pixel the
  color stored beneath it. The published target data sets have no such images; for a user's own,
  what people see is what was meant. A color profile is not applied. Of an animation, the first
  frame is read.

  Args:
    file_or_bytes: Path of a file, or the encoded file itself.
    name: What to call the image in messages.
    decoding: What becomes of depth and transparency.
    notes: Told, once a kind, of images that were turned, filled or scaled.

  Returns:
    uint8 `[H, W, 3]`.

  Raises:
    UnreadableImageError: If no RGB image comes out, naming the image and the reason.
  """
  name = shown(name)
  try:
    encoded = file_or_bytes if isinstance(file_or_bytes, bytes) else read_file(file_or_bytes)
    if not encoded:
      raise ValueError("the file is empty")
    return _to_rgb(encoded, name, decoding, notes)
  except Exception as error:  # Pillow's decoders raise whatever their parsing meets.
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, Image.UnidentifiedImageError):
      reason = _kind(encoded)
    raise UnreadableImageError(
      f"Cannot read the image {name}: {shown(reason)}. Replace or remove it, or set "
      "--config.data.unreadable=skip to take another image of its class."
    ) from error


def read_file(path: str | os.PathLike[str]) -> bytes:
  """The content of a regular file; a pipe would never end, a device may do anything.

  Raises:
    OSError: If it is none, or cannot be read.
  """
  if not stat.S_ISREG(os.stat(path).st_mode):
    raise OSError(f"{shown(path)} is a pipe, device or folder, not a file")
  with open(path, "rb") as file:
    return file.read()


def by_stem(folders: Iterable[pathlib.Path]) -> dict[str, pathlib.Path]:
  """The images in folders by their names without suffix, of whatever kind they were exported as."""
  found = [file for folder in folders for file in folder.glob("*")]
  return {file.stem: file for file in sorted(found) if file.suffix.lower() in SUFFIXES}


def readers(suffixes: Iterable[str]) -> str:
  """A clause on which packages read files of such suffixes, or nothing."""
  known = sorted({(suffix, _READERS[suffix]) for suffix in suffixes if suffix in _READERS})
  if not known:
    return ""
  clauses = ", ".join(f"{suffix} is read by the package {package}" for suffix, package in known)
  return f" ({clauses}: convert such files to PNG first)"


@functools.cache
def _formats() -> tuple[str, ...]:
  Image.init()
  return tuple(form for form in FORMATS if form in Image.OPEN)


def _open(encoded: bytes, max_pixels: int | None) -> Image.Image:
  # Pillow's own limit is one for the whole process; here each source has its own.
  with _opening:
    pillows, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
      image = Image.open(io.BytesIO(encoded), formats=_formats())
    finally:
      Image.MAX_IMAGE_PIXELS = pillows
  limit = _MAX_PIXELS if max_pixels is None else max_pixels
  if image.width * image.height > limit:
    raise ValueError(
      f"its {image.width}x{image.height} pixels are more than {limit}, so it may be a bomb; if "
      "it is not, raise --config.data.max_pixels"
    )
  return image


def _to_rgb(encoded: bytes, name: str, decoding: Decoding, notes: Notes | None) -> np.ndarray:
  say = notes.say if notes else lambda kind, line: None
  image = _open(encoded, decoding.max_pixels)
  deep, form = depth.is_deep(image), image.format
  orientation = _orientation(image)  # Which may load the image, and with it forget its depth.
  if deep:
    values, alpha = depth.read_deep(lambda: _open(encoded, decoding.max_pixels))
    scaled, bits = depth.to_bytes(values, form, decoding.window)
    if bits < 16 and values.any():
      say(
        "depth",
        f"{name} uses {bits} of 16 bits; each such image is scaled by the bits that it uses. To "
        "scale all alike, give the values of black and white as --config.data.window=(low, high).",
      )
    image = Image.fromarray(scaled).convert("RGB")
    if alpha is not None:
      image.putalpha(Image.fromarray(alpha))
  elif "transparency" in image.info:
    image = image.convert("RGBA")  # In one step, Pillow warns of a palette's transparency.
  if "A" in image.getbands() or "a" in image.getbands():
    image = image.convert("RGBA")
    alpha = image.getchannel("A")
    if alpha.getextrema()[0] < 255:
      say("transparency", f"{name} is transparent; config.data.background shows through.")
    filled = Image.new("RGB", image.size, decoding.background)
    filled.paste(image, mask=alpha)
    image = filled
  image = image.convert("RGB")
  if orientation in _TURNS:
    say("orientation", f"{name} was taken with the camera turned; EXIF turns it upright.")
    if form != "TIFF":  # Which Pillow turns as it loads.
      image = image.transpose(_TURNS[orientation])
  return np.array(image)


def _orientation(image: Image.Image) -> int:
  try:
    return image.getexif().get(_ORIENTATION, 1)
  except Exception:  # Damaged metadata; the picture itself may be whole.
    return 1


def _kind(encoded: bytes) -> str:
  """What a file is that is no photograph."""
  for start, first, what in _OTHER_KINDS:
    if encoded.startswith(first, start):
      return f"it is {what}"
  if encoded[:4] in (b"II*\0", b"MM\0*"):
    try:
      tags, stream = TiffImagePlugin.ImageFileDirectory_v2(encoded[:8]), io.BytesIO(encoded)
      stream.seek(tags.next)
      tags.load(stream)
      bands, bits = tags[277], tags[258][0]
    except Exception:  # Damaged, which the last line says.
      return "a TIFF whose first bytes are damaged"
    return (
      f"it is a TIFF of {bands} bands of {bits} bits, a kind that cannot be read; export three "
      "bands as 8-bit RGB"
    )
  return "not an image, or its first bytes are damaged"


def resize(
  image: np.ndarray, size: int, mode: str = "squash", interpolation: str = "bilinear"
) -> np.ndarray:
  """Resizes to a square by PIL's filters.

  Args:
    image: uint8 `[H, W, 3]`.
    size: Side `S` of the result in pixels.
    mode: "squash" gives up the aspect ratio; "crop" resizes the short side to `S` and takes
      the center of the long one. A square image comes out the same.
    interpolation: Of `INTERPOLATIONS`.

  Returns:
    uint8 `[S, S, 3]`.

  Raises:
    ValueError: If there is no such mode or interpolation.
  """
  for field, value, known in (
    ("resize", mode, RESIZE_MODES), ("interpolation", interpolation, INTERPOLATIONS)
  ):  # fmt: skip
    if value not in known:
      raise ValueError(f"{field}={value!r} is none of {', '.join(known)}.")
  method, picture = INTERPOLATIONS[interpolation], Image.fromarray(image)
  if mode == "squash":
    return np.array(picture.resize((size, size), method))
  height, width = (int(size * side / min(image.shape[:2])) for side in image.shape[:2])
  left, top = round((width - size) / 2), round((height - size) / 2)
  if width * height > _LARGE:  # A strip: its center alone is enlarged, by the same filter.
    across, down = picture.width / width, picture.height / height
    box = (left * across, top * down, (left + size) * across, (top + size) * down)
    return np.array(picture.resize((size, size), method, box))
  resized = picture.resize((width, height), method)
  return np.array(resized.crop((left, top, left + size, top + size)))
