"""scikit-learn's handwritten digits as a real target domain that needs no download."""

import functools
import hashlib

import numpy as np
from PIL import Image

from mdtrap_jax.data.content import Content, identity_of
from mdtrap_jax.world import render, scenes


class DigitsSource:
  """The 1,797 handwritten digits of `load_digits`, 8x8 gray, enlarged and made RGB.

  Attributes:
    name: "digits".
    class_names: "digit zero" to "digit nine".
    labels: [1797] int32.
    identity: hex digest of the images as enlarged, and their classes.
  """

  def __init__(self):
    """Loads the data.

    Raises:
      ImportError: If scikit-learn is not installed.
    """
    try:
      from sklearn.datasets import load_digits  # An optional extra.
    except ImportError as error:
      raise ImportError(
        "The handwritten digits come with scikit-learn; run: pip install scikit-learn"
      ) from error
    data = load_digits()
    self.name = "digits"
    self.class_names = tuple(f"digit {word}" for word in scenes.DIGITS)
    self.labels = data.target.astype(np.int32)
    gray = np.round(data.images * (255 / 16)).astype(np.uint8)
    self._images = np.stack(
      [
        np.asarray(Image.fromarray(digit).resize((render.SIZE,) * 2, Image.Resampling.BILINEAR))
        for digit in gray
      ]
    )

  @functools.cached_property
  def identity(self) -> str:
    """Hex digest of the content and the order of the images."""
    return identity_of(self.class_names, self.content(), self.labels.tolist())

  def content(self) -> Content:
    """Number of images and a digest of their pixels for each class."""
    members = [self._images[self.labels == label] for label in range(len(self.class_names))]
    return {
      name: (len(pixels), hashlib.sha256(pixels.tobytes()).hexdigest())
      for name, pixels in zip(self.class_names, members, strict=True)
    }

  def __len__(self) -> int:
    return len(self.labels)

  def image(self, index: int) -> np.ndarray:
    """Image `index`, [48, 48, 3] uint8."""
    return np.repeat(self._images[index][..., None], 3, axis=-1)

  def describe(self, index: int) -> str:
    """What image `index` is."""
    return f"handwritten {self.class_names[self.labels[index]]} (load_digits {index})"
