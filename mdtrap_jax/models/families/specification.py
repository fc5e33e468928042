"""A named model size."""

from __future__ import annotations

from typing import NamedTuple

from mdtrap_jax.models.image_stem import ImageConfig
from mdtrap_jax.models.text_stem import TextConfig


class Specification(NamedTuple):
  """Both encoders' shapes, where their weights are published, and how many they are there."""

  family: str  # of `families.FAMILIES`
  image: ImageConfig
  text: TextConfig
  hub: str | None = None  # Hugging Face hub name
  published_counts: tuple[int, int] | None = None  # parameters of the image and text encoder
  published_total: int | None = None  # parameters of both, with scale and bias
