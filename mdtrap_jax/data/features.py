"""Features of whole data sets: given in files, or computed once and kept on disk.

A stored feature set is a folder with `features.npy` `[n, ...]` (read as a memory map),
`labels.npy` `[n]` and `identity.json`, which says what model and data they are of. A `.npz` file
with `features` and `labels` (or several sets, `<domain>/features` and so on) serves as well.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from tqdm import tqdm

from mdtrap_jax.data import images
from mdtrap_jax.data.sources import Source

_ROWS_CHECKED = 4096  # at once, so that a memory map is never read whole


class FeatureSet(NamedTuple):
  """A data set as an extractor sees it."""

  name: str
  features: np.ndarray  # [n, ...] float, or uint8 images [n, S, S, 3]; may be a memory map
  labels: np.ndarray  # [n] int32, into class_names; -1 for an image left out
  class_names: tuple[str, ...]


class Extractor(NamedTuple):
  """Something that turns images into features."""

  name: str
  identity: str  # hex digest of its weights and settings
  image_size: int
  encode: Callable[[np.ndarray], np.ndarray]  # uint8 [B, S, S, 3] -> [B, ...]


def read_features(path: str | Path, domain: str) -> FeatureSet:
  """A feature set from a file or folder.

  Args:
    path: a `.npz` file, a folder as described above, or a folder of such folders by domain.
    domain: which set of several; also the name in messages.

  Raises:
    FileNotFoundError: there is no such thing.
    ValueError: features or labels that cannot be right.
  """
  path = Path(path).expanduser()
  if path.is_file():
    return _read_npz(path, domain)
  folder = path / domain if (path / domain).is_dir() else path
  if not (folder / "features.npy").is_file():
    raise FileNotFoundError(
      f"{folder} has no features.npy. Set --config.features.path= to a .npz file with "
      "features and labels, or to a folder with features.npy and labels.npy."
    )
  if not (folder / "labels.npy").is_file():
    raise FileNotFoundError(f"{folder} has features.npy but no labels.npy beside it.")
  described = folder / "identity.json"
  names = json.loads(described.read_text())["class_names"] if described.is_file() else None
  return check_features(
    domain, np.load(folder / "features.npy", mmap_mode="r"), np.load(folder / "labels.npy"), names
  )


def check_features(
  name: str, features: np.ndarray, labels: np.ndarray, class_names: Sequence[str] | None
) -> FeatureSet:
  """Makes a feature set of arrays that can be right.

  Args:
    name: of the set, in messages.
    features: `[n, ...]`.
    labels: `[n]` integers; negative ones leave an image out.
    class_names: one for each label; numbers when `None`.

  Raises:
    ValueError: NaN or infinite features, labels that do not fit the features or the names, or
      two classes of one name.
  """
  labels = np.asarray(labels)
  if features.ndim < 2 or labels.shape != features.shape[:1]:
    raise ValueError(
      f"{name}: features of shape {list(features.shape)} and labels of shape "
      f"{list(labels.shape)}; they must be [n, …] and [n]."
    )
  if not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(f"{name}: labels are {labels.dtype}; they must be integers.")
  count = int(labels.max(initial=-1)) + 1
  names = tuple(str(n) for n in (range(count) if class_names is None else class_names))
  if count > len(names):
    raise ValueError(
      f"{name}: the largest label is {count - 1}, but there are only {len(names)} class names."
    )
  if twice := sorted({n for n in names if names.count(n) > 1}):
    raise ValueError(f"{name}: the class names {', '.join(twice)} occur twice.")
  if empty := [n for label, n in enumerate(names) if not (labels == label).any()]:
    logging.warning(
      "%s: no image has the label of %s; such classes are never drawn.", name, ", ".join(empty)
    )
  if features.dtype != np.uint8:
    for start in range(0, len(features), _ROWS_CHECKED):
      rows = np.asarray(features[start : start + _ROWS_CHECKED]).reshape(
        len(features[start : start + _ROWS_CHECKED]), -1
      )
      bad = np.flatnonzero(~np.isfinite(rows).all(-1))
      if len(bad):
        raise ValueError(
          f"{name}: the features of row {start + bad[0]} are NaN or infinite "
          f"({len(bad)} such rows near it). Compute them again."
        )
  return FeatureSet(name, features, labels.astype(np.int32), names)


def cached_features(
  domain: str,
  source: Source,
  extractor: Extractor,
  cache_dir: str | Path | None,
  *,
  batch_size: int = 64,
  threads: int = 4,
  resize: str = "squash",
  unreadable: str = "error",
) -> FeatureSet:
  """The features of a source: from the cache, or computed now and put there.

  Args:
    domain: names the set and its folder, `<cache_dir>/<extractor>/<domain>`.
    source: of the images.
    extractor: of the features.
    cache_dir: where feature sets are kept; `None` keeps them in memory alone.
    batch_size: images encoded at once.
    threads: that decode images.
    resize: how images come to the extractor's size, of `images.RESIZE_MODES`.
    unreadable: what an image that cannot be read does: "error", or "skip", which leaves it out
      with a warning and the label -1.

  Raises:
    ValueError: the cache there is of another model or of other data, or an image cannot be
      read.
  """
  identity = {
    "model": extractor.name,
    "weights": extractor.identity,
    "resize": resize,
    "data": source.name,
    "images": source.identity,
    "class_names": list(source.class_names),
  }
  folder = None
  if cache_dir:
    folder = Path(cache_dir).expanduser() / extractor.name.replace("/", "--") / domain
    if (folder / "identity.json").is_file():
      check_identity(folder, identity)
      features = np.load(folder / "features.npy", mmap_mode="r")
      labels = np.load(folder / "labels.npy")
      if unreadable == "skip" or not ((labels < 0) & (source.labels >= 0)).any():
        return FeatureSet(domain, features, labels, source.class_names)
  read = functools.partial(_read, source, extractor.image_size, resize, unreadable)
  features, labels = _extract(domain, source.labels, read, extractor, batch_size, threads)
  found = check_features(domain, features, labels, source.class_names)
  if folder is not None:
    _store(folder, found, identity)
  return found


def check_identity(folder: Path, identity: dict[str, Any]) -> None:
  """Compares what made a cached feature set with what would make it now.

  Raises:
    ValueError: they differ; the message says in what.
  """
  there = json.loads((folder / "identity.json").read_text())
  changed = [key for key in identity if there.get(key) != identity[key]]
  if changed:
    made = "other data" if {"images", "data", "class_names"} & set(changed) else "another model"
    raise ValueError(
      f"{folder} holds features made by {made} (its {', '.join(changed)} differ: it is of "
      f"{there.get('model')} on {there.get('data')}). Delete the folder, or set another "
      "--config.data.cache_dir."
    )


def _read(source, size: int, resize: str, unreadable: str, index: int) -> np.ndarray | None:
  """An image at the extractor's size; `None` for one that is skipped."""
  try:
    return images.resize(source.image(index), size, resize)
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
    for start in tqdm(range(0, len(kept), batch_size), f"features of {domain}", unit="batch"):
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


def _store(folder: Path, found: FeatureSet, identity: dict[str, Any]) -> None:
  """Writes a feature set so that a reader sees all of it or nothing."""
  partial = folder.with_name(f".{folder.name}.partial")
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  np.save(partial / "features.npy", found.features)
  np.save(partial / "labels.npy", found.labels)
  (partial / "identity.json").write_text(json.dumps(identity, indent=2) + "\n")
  shutil.rmtree(folder, ignore_errors=True)  # what a kill left there, without identity.json
  partial.rename(folder)


def _read_npz(path: Path, domain: str) -> FeatureSet:
  with np.load(path) as file:
    prefix = f"{domain}/" if f"{domain}/features" in file else ""
    for part in ("features", "labels"):
      if prefix + part not in file:
        sets = sorted(n.removesuffix("/features") for n in file.files if n.endswith("/features"))
        known = f"; it has the domains {', '.join(sets)}" if sets else ""
        raise ValueError(f"{path} has no array {prefix + part!r}{known}.")
    names = file.get(prefix + "classes", None)
    return check_features(domain, file[prefix + "features"], file[prefix + "labels"], names)
