"""A named model size."""

from __future__ import annotations

from typing import NamedTuple

from mdtrap_jax.models.image_stem import ImageConfig
from mdtrap_jax.models.text_stem import TextConfig


class Specification(NamedTuple):
  """Both encoders' shapes and where their weights are published."""

  family: str  # of `families.FAMILIES`
  image: ImageConfig
  text: TextConfig
  hub: str | None = None  # Hugging Face hub name
  published_counts: tuple[int, int] | None = None  # parameters of the image and text encoder
