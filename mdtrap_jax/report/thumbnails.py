"""Small copies of images for a page."""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
from PIL import Image

from mdtrap_jax.data import images
from mdtrap_jax.report.html import data_uri

SIDE = 160  # pixels, at most
_QUALITY = 80


def thumbnail(item: Any) -> str | None:
  """A JPEG without metadata as a data URI; `None` for what gives no image.

  Args:
    item: a path, or an image uint8 `[H, W, 3]`.
  """
  if not isinstance(item, np.ndarray):
    try:
      item = images.decode(item, os.fspath(item))
    except (OSError, ValueError, TypeError):
      return None
  small = Image.fromarray(item)
  small.thumbnail((SIDE, SIDE))
  content = io.BytesIO()
  small.save(content, "JPEG", quality=_QUALITY, optimize=True)
  return data_uri(content.getvalue(), "image/jpeg")
