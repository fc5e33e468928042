"""Images in memory as a source."""

import functools
import hashlib
from collections.abc import Sequence

import numpy as np

from mdtrap_jax.data.content import Content, identity_of
from mdtrap_jax.data.names import nfc


class ArraySource:
  """Images in memory."""

  def __init__(
    self,
    images: Sequence[np.ndarray] | np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
  ):
    """Takes the arrays as they are.

    Args:
      images: `n` images uint8 `[H, W, 3]`, of equal or of different sizes.
      labels: Integers `[n]` into `class_names`.
      class_names: The names in prompts.

    Raises:
      ValueError: If an image is not uint8 RGB, or labels do not fit the images or the names.
    """
    for index, image in enumerate(images):
      if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(
          f"Image {index} is {image.dtype} {list(image.shape)}, not uint8 [H, W, 3] of RGB."
        )
    labels = np.asarray(labels)
    if labels.shape != (len(images),):
      raise ValueError(f"Labels of shape {labels.shape} for {len(images)} images.")
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(class_names):
      raise ValueError(
        f"Labels go from {labels.min()} to {labels.max()}, but {len(class_names)} class names "
        f"need 0 to {len(class_names) - 1}."
      )
    self.name = "arrays"
    self.class_names = tuple(nfc(name) for name in class_names)
    self.labels = labels.astype(np.int32)
    self._images = images

  @functools.cached_property
  def identity(self) -> str:
    """Hex digest of the arrays and the class names."""
    return identity_of(self.class_names, self.content(), self.labels.tolist())

  def content(self) -> Content:
    """Number of images and a digest of their pixels for each class."""
    return dict(self._content)

  @functools.cached_property
  def _content(self) -> Content:
    digests = [hashlib.sha256() for _ in self.class_names]
    for label, image in zip(self.labels, self._images, strict=True):
      digests[label].update(repr(image.shape).encode())
      digests[label].update(np.ascontiguousarray(image))
    counts = np.bincount(self.labels, minlength=len(digests)).tolist()
    entries = zip(counts, (digest.hexdigest() for digest in digests), strict=True)
    return dict(zip(self.class_names, entries, strict=True))

  def image(self, index: int) -> np.ndarray:
    """An image, uint8 `[H, W, 3]`."""
    return np.asarray(self._images[index])

  def describe(self, index: int) -> str:
    """The image's place in the arrays."""
    return f"image {index}"
