"""Digits as masks, rasterized from fonts that matplotlib ships."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONT_FILES = (
  "DejaVuSans.ttf",
  "DejaVuSans-Bold.ttf",
  "DejaVuSerif.ttf",
  "STIXGeneral.ttf",
  "cmss10.ttf",
)


def digit_mask(digit: int, font_file: str, size: int, height: int) -> np.ndarray:
  """Draws one digit, centered by its bounding box.

  Args:
    digit: 0 to 9.
    font_file: one of `FONT_FILES`.
    size: side of the square mask in pixels.
    height: height of the digit in pixels.

  Returns:
    [size, size] bool, True inside the digit.

  Raises:
    FileNotFoundError: If the installed matplotlib does not ship the font.
  """
  import matplotlib  # which only these fonts need of a run

  path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / font_file
  if not path.is_file():
    raise FileNotFoundError(f"Font {path} is missing; reinstall matplotlib (it ships it).")
  em = 1000  # Large, so that hinting does not bend the outline.
  font = ImageFont.truetype(str(path), em, layout_engine=ImageFont.Layout.BASIC)
  left, top, right, bottom = font.getbbox(str(digit))
  canvas = Image.new("L", (right - left, bottom - top))
  ImageDraw.Draw(canvas).text((-left, -top), str(digit), fill=255, font=font)
  width = round(height * canvas.width / canvas.height)
  mask = Image.new("L", (size, size))
  mask.paste(canvas.resize((width, height)), ((size - width) // 2, (size - height) // 2))
  return np.asarray(mask) > 127
