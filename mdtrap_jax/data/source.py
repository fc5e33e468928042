"""What a source of labeled images is."""

from typing import Protocol

import numpy as np

from mdtrap_jax.data.content import Content


class Source(Protocol):
  """A data set of `n` labeled images, each found by its index."""

  name: str  # For messages.
  class_names: tuple[str, ...]  # As used in prompts, before the template.
  labels: np.ndarray  # [n] int32, into class_names; -1 for an image left out.
  identity: str  # Hex digest of all that decides the pixels; equal data may share a cache.

  def content(self) -> Content:
    """Number of images and a digest of them for each class, read when first asked for."""

  def image(self, index: int) -> np.ndarray:
    """Decodes an image, uint8 `[H, W, 3]`; safe to call from many threads."""

  def describe(self, index: int) -> str:
    """Names an image in messages: its file, or its id in the data set."""
