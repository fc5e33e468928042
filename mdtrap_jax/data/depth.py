"""Images of more than 8 bits a channel: what values a file holds, and how they become bytes."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

_BITS, _PLANES = 258, 284  # Tags of TIFF.
_EXACT = ("PPM", "JPEG2000")  # Formats that say what white is; Pillow scales by it.
# Pillow keeps the high byte of 16-bit color. Read in the other byte order, it keeps the low one.
_SWAPPED = {
  "B": "L",
  "L": "B",
  "N": "B" if sys.byteorder == "little" else "L",
}


def is_deep(image: Image.Image) -> bool:
  """Whether an image that is not loaded yet has more than 8 bits a channel.

  Raises:
    ValueError: If it is of a kind that Pillow would take for bytes.
  """
  tags = getattr(image, "tag_v2", {})
  apart = tags.get(_PLANES) == 2 and any(tile.codec_name == "raw" for tile in image.tile)
  if apart and max(tags.get(_BITS, (8,))) > 8:
    raise ValueError(
      "it is an uncompressed TIFF of more than 8 bits with each color in a plane of its own, a "
      "kind that cannot be read; export it with interleaved colors"
    )
  deep = any(";16" in _raw_mode(tile) for tile in image.tile)
  return image.mode[0] in "IF" or (image.mode in ("RGB", "RGBA") and deep)


def read_deep(reopen: Callable[[], Image.Image]) -> tuple[np.ndarray, np.ndarray | None]:
  """The values of an image for which `is_deep` holds.

  Args:
    reopen: Opens the image; called once or twice.

  Returns:
    Integers or floats `[H, W]` of a grey or `[H, W, 3]` of a color image as the file holds
    them, and alpha uint8 `[H, W]` where there is one.
  """
  image = reopen()
  mode, key = image.mode, image.info.get("transparency")
  if mode[0] in "IF":
    values = _loaded(image)
    values = values.astype(np.float64 if mode == "F" else np.int64)
    alpha = None if key is None else np.where(values == key, 0, 255).astype(np.uint8)
    return values, alpha
  high = _loaded(image)
  alpha = high[..., 3] if mode == "RGBA" else None
  values = high[..., :3].astype(np.int64) << 8
  if key is not None or values.max(initial=0) < 1 << 15:  # Else low bytes change nothing seen.
    image = reopen()
    image.tile = [_low_bytes(tile) for tile in image.tile]
    grey = "RGBA" in [_raw_mode(tile) for tile in image.tile]  # Pairs of bytes: grey, alpha.
    values |= _loaded(image)[..., [1, 1, 1] if grey else slice(3)]
  if isinstance(key, tuple):  # A color that stands for transparency.
    alpha = np.where((values == key).all(-1), 0, 255).astype(np.uint8)
  return values, alpha


def to_bytes(
  values: np.ndarray, form: str | None, window: tuple[float, float] | None
) -> tuple[np.ndarray, int]:
  """Scales the values of a deep image to bytes.

  White is 2ᵇ-1 with `b` the bits that the image's largest value takes, at least 8, whatever the
  file sets aside: a 12-bit X-ray in a file of 16 bits has 4095 for white. Where a format states
  its white, as PGM's maximum does, and with a window, that holds instead.

  Args:
    values: From `read_deep`.
    form: Pillow's name of the file's format.
    window: The values that become 0 and 255; what is outside is clipped.

  Returns:
    uint8 of the values' shape, and `b`, which is 16 where it was not asked for.

  Raises:
    ValueError: If values are negative, of more than 16 bits or floats, and there is no window.
  """
  bits = 16
  if window is None:
    if values.dtype.kind == "f":
      raise ValueError(
        "it holds floats, which have no range known as black to white: give the values of both "
        "as --config.data.window=(low, high)"
      )
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    if low < 0 or high > 65535:
      raise ValueError(
        f"its values, {low} to {high}, are not 16-bit: give those of black and white as "
        "--config.data.window=(low, high)"
      )
    if form not in _EXACT:
      bits = max(8, high.bit_length())
    if bits == 16 and values.ndim == 3:  # As Pillow, and so the reference, does it.
      return (values >> 8).astype(np.uint8), bits
    window = 0, 2**bits - 1
  scaled = (values - window[0]) * (255 / (window[1] - window[0]))
  return np.floor(np.clip(np.nan_to_num(scaled), 0, 255) + 0.5).astype(np.uint8), bits


def _loaded(image: Image.Image) -> np.ndarray:
  image.load()  # Before the shape is asked for: a TIFF may turn itself.
  return np.asarray(image)


def _raw_mode(tile: Any) -> str:
  arguments = tile.args
  return str(arguments if isinstance(arguments, str) else (arguments or ("",))[0])


def _low_bytes(tile: Any) -> Any:  # Pillow's named tuple of codec, extents, offset, args.
  raw, arguments = _raw_mode(tile), tile.args
  low = "RGBA" if raw == "LA;16B" else raw[:-1] + _SWAPPED[raw[-1]]
  return tile._replace(args=low if isinstance(arguments, str) else (low, *arguments[1:]))
