"""What the families of vision-language models expect of their inputs."""

from __future__ import annotations

from typing import NamedTuple


class Family(NamedTuple):
  """What an image and a prompt must look like."""

  image_mean: tuple[float, float, float]  # of images in [0, 1]
  image_std: tuple[float, float, float]
  resize: str  # in the original's own evaluation, of `data.images.RESIZE_MODES`
  interpolation: str  # there, of `data.images.INTERPOLATIONS`
  prompt: str  # "{}" is the class name


FAMILIES = {
  "clip": Family(
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
    "crop",
    "bicubic",
    "a photo of a {}.",
  ),
  "siglip": Family((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "squash", "bicubic", "a photo of a {}."),
  "siglip2": Family((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "squash", "bilinear", "a photo of a {}."),
  "pe-core": Family((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "squash", "bilinear", "a photo of a {}."),
}
