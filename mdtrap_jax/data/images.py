"""Reading images: any file that Pillow knows becomes 8-bit RGB, or an error that names it."""

import io
import os
import pathlib

import numpy as np
from PIL import Image

RESIZE_MODES = ("squash", "crop")


class UnreadableImageError(ValueError):
  """An image that is corrupt, truncated, empty or of a kind with no meaning as RGB."""


def decode(file_or_bytes: str | os.PathLike[str] | bytes, name: str) -> np.ndarray:
  """Decodes an image to RGB.

  Grey, palette, 1-bit, CMYK and YCbCr images are converted. Grey of 16 bits is divided by 257
  (65535 becomes 255) and rounded, not clipped. Transparency is dropped: a transparent pixel
  gets the color stored beneath it, as `convert("RGB")` of the reference does. An EXIF
  orientation is *not* applied, nor is a color profile; the reference applies neither. Of an
  animation, the first frame is read.

  Args:
    file_or_bytes: Path of a file, or the encoded file itself.
    name: What to call the image in messages.

  Returns:
    uint8 `[H, W, 3]`.

  Raises:
    UnreadableImageError: If no RGB image comes out, naming the image and the reason.
  """
  try:
    encoded = file_or_bytes
    if not isinstance(encoded, bytes):
      encoded = pathlib.Path(encoded).read_bytes()
    if not encoded:
      raise ValueError("the file is empty")
    with Image.open(io.BytesIO(encoded)) as image:
      return _to_rgb(image)
  except Exception as error:  # Pillow's thirty decoders raise whatever their parsing meets.
    reason = str(error) or type(error).__name__
    if isinstance(error, Image.UnidentifiedImageError):
      reason = "not an image, or its first bytes are damaged"
    raise UnreadableImageError(
      f"Cannot read the image {name}: {reason}. Replace or remove it, or set "
      "--config.data.unreadable=skip to take another image of its class."
    ) from error


def _to_rgb(image: Image.Image) -> np.ndarray:
  if image.mode.startswith("I"):  # "I;16" and its byte orders, or "I" with 16 bits inside.
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
      raise ValueError(f"its values, {values.min()} to {values.max()}, are not 16-bit grey")
    grey = ((values + 128) // 257).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)
  if image.mode == "F":
    raise ValueError("it holds floats, which have no range known as black to white")
  if "transparency" in image.info:
    image = image.convert("RGBA")  # In one step, Pillow warns of a palette's transparency.
  return np.array(image.convert("RGB"))


def resize(image: np.ndarray, size: int, mode: str = "squash") -> np.ndarray:
  """Resizes to a square by PIL's bilinear filter.

  Args:
    image: uint8 `[H, W, 3]`.
    size: Side `S` of the result in pixels.
    mode: "squash" gives up the aspect ratio; "crop" resizes the short side to `S` and takes
      the center of the long one. A square image comes out the same.

  Returns:
    uint8 `[S, S, 3]`.

  Raises:
    ValueError: If there is no such mode.
  """
  if mode not in RESIZE_MODES:
    raise ValueError(f"resize={mode!r} is none of {', '.join(RESIZE_MODES)}.")
  height, width = (
    (size, size)
    if mode == "squash"
    else (int(size * side / min(image.shape[:2])) for side in image.shape[:2])
  )
  resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
  left, top = round((width - size) / 2), round((height - size) / 2)
  return np.array(resized.crop((left, top, left + size, top + size)))
