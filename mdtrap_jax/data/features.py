"""Features of whole data sets, computed once by an extractor and kept on disk."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from tqdm import tqdm

from mdtrap_jax import files
from mdtrap_jax.data import feature_cache, images
from mdtrap_jax.data.align_corners import resize_align_corners
from mdtrap_jax.data.feature_set import FeatureSet, check_features
from mdtrap_jax.data.source import Source

__all__ = ["Extractor", "FeatureSet", "cached_features"]

ALIGN_CORNERS = "align_corners"
_VERSION = 2  # Raise when the same images and weights give other features.


class Extractor(NamedTuple):
  """Something that turns images into features."""

  name: str
  identity: str  # hex digest of its weights and settings
  image_size: int
  # uint8 [B, S, S, 3], or such an image's values as float32 -> [B, ...]
  encode: Callable[[np.ndarray], np.ndarray]
  align_corners: bool = False  # trained on images as TensorFlow 1 resized Meta-Dataset's


def cached_features(
  domain: str,
  source: Source,
  extractor: Extractor,
  cache_dir: str | Path | None,
  *,
  batch_size: int = 64,
  threads: int = 4,
  resize: str = "squash",
  interpolation: str = "bilinear",
  unreadable: str = "error",
) -> FeatureSet:
  """The features of a source: from the cache, or computed now and put there.

  Args:
    domain: names the set and, with the extractor, its folder in the cache.
    source: of the images.
    extractor: of the features.
    cache_dir: where feature sets are kept, each under the hash of all that decides it; `None`
      keeps them in memory alone.
    batch_size: images encoded at once.
    threads: that decode images.
    resize: how images come to the extractor's size, of `images.RESIZE_MODES`.
    interpolation: by which filter, of `images.INTERPOLATIONS`.
    unreadable: what an image that cannot be read does: "error", or "skip", which leaves it out
      with a warning and the label -1.

  Raises:
    ValueError: an image cannot be read, or features come out that cannot be right.
    FileExistsError: something that is not of this cache stands where the features belong.
  """
  # Images of Meta-Dataset's records come to the networks trained on them as they did then.
  if extractor.align_corners and getattr(source, "align_corners", False):
    resize = ALIGN_CORNERS
  folder, stored = None, None
  identity = _identity(domain, source, extractor, (resize, interpolation), unreadable)
  if cache_dir:
    folder = f"{str(cache_dir).rstrip('/')}/{feature_cache.folder_name(identity)}"
    with contextlib.suppress(FileNotFoundError):  # of a bucket: not yet
      stored = feature_cache.load(Path(files.local(folder)), identity)
  hierarchy = getattr(source, "hierarchy", None)
  if stored is not None:
    return FeatureSet(domain, *stored, source.class_names, hierarchy)
  read = functools.partial(_read, source, extractor.image_size, resize, interpolation, unreadable)
  features, labels = _extract(domain, source.labels, read, extractor, batch_size, threads)
  found = check_features(domain, features, labels, source.class_names, hierarchy)
  if folder is not None:
    try:
      with files.writing(folder, last=feature_cache.IDENTITY) as here:
        feature_cache.store(here, found.features, found.labels, identity)
    except OSError as error:
      logging.warning("%s: the features are not kept, and the run goes on: %s", domain, error)
  return found


def _identity(
  domain, source, extractor, resizing: tuple[str, str], unreadable: str
) -> dict[str, Any]:
  """All that decides a feature set, in types that JSON knows."""
  return {
    "version": _VERSION,
    "domain": domain,
    "model": extractor.name,
    "weights": extractor.identity,
    "size": extractor.image_size,
    "resize": " ".join(resizing),
    "unreadable": unreadable,
    "data": source.name,
    "images": source.identity,
    "labels": hashlib.sha256(np.ascontiguousarray(source.labels, "<i4")).hexdigest(),
    "class_names": list(source.class_names),
  }


def _read(
  source, size: int, resize: str, interpolation: str, unreadable: str, index: int
) -> np.ndarray | None:
  """An image at the extractor's size; `None` for one that is skipped."""
  try:
    image = source.image(index)
    if resize == ALIGN_CORNERS:
      return resize_align_corners(image, size)
    return images.resize(image, size, resize, interpolation)
  except images.UnreadableImageError as error:
    if unreadable == "error":
      raise
    logging.warning("Left out: %s", error)
    return None


def _extract(domain, labels, read, extractor, batch_size, threads):
  """Encodes all images; the last batch is filled up, so that one program serves all."""
  labels, features = labels.copy(), None
  kept = np.flatnonzero(labels >= 0)
  with ThreadPoolExecutor(threads) as pool:
    for start in tqdm(
      range(0, len(kept), batch_size), f"features of {domain}", unit="batch", disable=None
    ):
      rows = kept[start : start + batch_size]
      pixels = list(pool.map(read, rows.tolist()))
      fine = np.array([image is not None for image in pixels])
      labels[rows[~fine]] = -1
      if not fine.any():
        continue
      batch = np.stack([image for image in pixels if image is not None])
      full = np.concatenate([batch, np.repeat(batch[-1:], batch_size - len(batch), 0)])
      encoded = np.asarray(extractor.encode(full))[: len(batch)]
      if features is None:
        features = np.zeros((len(labels), *encoded.shape[1:]), encoded.dtype)
      features[rows[fine]] = encoded
  if features is None:
    raise ValueError(f"{domain}: not one of its {len(kept)} images can be read.")
  return features, labels
