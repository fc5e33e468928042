"""Batches of episodes as uint8 images, decoded by threads ahead of the device.

Legend: `E` episodes of a batch, `C` classes, `K` shots, `Q` queries per class, `S` image side.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import logging

from mdtrap_jax.data import images
from mdtrap_jax.data.cache import ImageCache
from mdtrap_jax.data.sampler import EpisodeIndices, sample_episode
from mdtrap_jax.data.sources import Source

UNREADABLE = ("error", "skip")


class EpisodeBatch(NamedTuple):
  """Episodes on the host, images in the order of their classes; one row has no axis `E`."""

  episode: np.ndarray  # [E] int64, the episodes' numbers.
  classes: np.ndarray  # [E, C] int32, into the source's class names.
  support: np.ndarray  # [E, C·K, S, S, 3] uint8.
  query: np.ndarray  # [E, C·Q, S, S, 3] uint8.
  support_index: np.ndarray  # [E, C, K] int64, into the source.
  query_index: np.ndarray  # [E, C, Q] int64, into the source.


def load_episode(
  source: Source,
  indices: EpisodeIndices,
  size: int,
  unreadable: str = "error",
  *,
  resize: str = "squash",
  interpolation: str = "bilinear",
  episode: int = 0,
  cache: ImageCache | None = None,
) -> EpisodeBatch:
  """Reads the images of one episode.

  Args:
    source: Where the images are.
    indices: Which images, from `sample_episode`.
    size: Side `S` that images are resized to.
    unreadable: "error" raises at an image that cannot be read; "skip" warns and takes the
      class's next spare image in its place, so the same episode always gets the same images.
    resize: How images come to that size, see `images.resize`.
    interpolation: By which filter, see `images.resize`.
    episode: The episode's number.
    cache: Images resized in the same way are taken from and put into it.

  Returns:
    One row of a batch. `support_index` and `query_index` are the images really read.

  Raises:
    UnreadableImageError: If an image cannot be read and none may take its place.
    OSError: If the cache cannot be written.
  """
  spares = [iter(spare) for spare in indices.spare]

  def read(index: int) -> np.ndarray:
    image = None if cache is None else cache.get(index)
    if image is None:
      image = images.resize(source.image(index), size, resize, interpolation)
      if cache is not None:
        cache.put(index, image)
    return image

  def read_or_replace(row: int, index: int) -> tuple[int, np.ndarray]:
    while True:
      try:
        return index, read(index)
      except images.UnreadableImageError as error:
        if unreadable == "error":
          raise
        replacement = next(spares[row], None)
        name = source.class_names[indices.classes[row]]
        if replacement is None:
          raise images.UnreadableImageError(
            f"Class {name!r} of {source.name} has too few readable images for episode "
            f"{episode}: {error}"
          ) from error
        logging.warning(
          "Episode %d takes %s instead of an image of class %r: %s",
          episode, source.describe(replacement), name, error,
        )  # fmt: skip
        index = int(replacement)

  def read_all(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.empty((chosen.size, size, size, 3), np.uint8)
    taken = np.empty(chosen.shape, np.int64)
    for number, (row, column) in enumerate(np.ndindex(*chosen.shape)):
      taken[row, column], pixels[number] = read_or_replace(row, int(chosen[row, column]))
    return pixels, taken

  support, support_index = read_all(indices.support)
  query, query_index = read_all(indices.query)
  number = np.int64(episode)
  return EpisodeBatch(number, indices.classes, support, query, support_index, query_index)


def episode_batches(
  source: Source,
  episodes: Sequence[int],
  batch_size: int,
  *,
  seed: int,
  ways: int,
  shots: int,
  queries: int,
  size: int,
  resize: str = "squash",
  interpolation: str = "bilinear",
  unreadable: str = "error",
  threads: int = 8,
  cache: ImageCache | None = None,
) -> Iterator[EpisodeBatch]:
  """Iterates over episodes in batches, in the order given.

  Threads decode the episodes of the next batch while the caller works on the last one. An
  episode does not depend on the others, nor on the sizes of batches or the number of threads.

  Args:
    source: Where the images are; see `check_feasible`.
    episodes: The episodes' numbers.
    batch_size: Episodes per batch `E`; the last batch may have fewer.
    seed: Of the run.
    ways: Classes per episode `C`.
    shots: Support images per class `K`.
    queries: Query images per class `Q`.
    size: Image side `S`.
    resize: How images come to that size, see `images.resize`.
    interpolation: By which filter, see `images.resize`.
    unreadable: What to do about an image that cannot be read, see `load_episode`.
    threads: How many threads decode; 0 decodes in the caller's.
    cache: Of images resized in the same way.

  Returns:
    An iterator of batches; an error met while reading an episode is raised when its batch is
    due.

  Raises:
    ValueError: If an option is out of range.
  """
  if unreadable not in UNREADABLE:
    raise ValueError(f"unreadable={unreadable!r} is none of {', '.join(UNREADABLE)}.")
  for name, value, least in (("batch_size", batch_size, 1), ("threads", threads, 0)):
    if value < least:
      raise ValueError(f"{name}={value} must be at least {least}.")
  sample = functools.partial(
    sample_episode, source.labels, seed=seed, ways=ways, shots=shots, queries=queries
  )

  def load(episode: int) -> EpisodeBatch:
    indices = sample(episode=episode)
    return load_episode(
      source,
      indices,
      size,
      unreadable,
      resize=resize,
      interpolation=interpolation,
      episode=episode,
      cache=cache,
    )

  read_options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=max(batch_size, threads) if threads else 0
  )
  dataset = grain.MapDataset.source([int(episode) for episode in episodes]).map(load)
  batches = dataset.to_iter_dataset(read_options).batch(batch_size, batch_fn=_stack)
  return iter(batches)


def _stack(rows: Sequence[EpisodeBatch]) -> EpisodeBatch:
  return EpisodeBatch(*(np.stack(column) for column in zip(*rows, strict=True)))


def ahead(
  put: Callable[[EpisodeBatch], Any], batches: Iterable[EpisodeBatch]
) -> Iterator[tuple[EpisodeBatch, Any]]:
  """Each batch with `put(batch)`, made in a thread while the caller works on the one before.

  Closing it does not wait for the batch that is being made.

  Args:
    put: Copies a batch to the devices.
    batches: From `episode_batches`; an error in it is raised when its batch is due.
  """
  batches = iter(batches)

  def following() -> tuple[EpisodeBatch, Any] | None:
    batch = next(batches, None)
    return None if batch is None else (batch, put(batch))

  pool = ThreadPoolExecutor(1)
  try:
    pending = pool.submit(following)
    while (item := pending.result()) is not None:
      pending = pool.submit(following)
      yield item
  finally:
    pool.shutdown(wait=False, cancel_futures=True)
