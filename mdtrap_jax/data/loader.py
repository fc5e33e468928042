"""Batches of episodes as uint8 images, decoded by threads ahead of the device.

Legend: `E` episodes of a batch, `C` classes, `K` shots, `Q` queries per class, `S` image side.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from absl import logging

from mdtrap_jax.data import images
from mdtrap_jax.data.cache import ImageCache
from mdtrap_jax.data.prompts import Prompts
from mdtrap_jax.data.sampler import EpisodeIndices, sample_episode
from mdtrap_jax.data.source import Source
from mdtrap_jax.data.task import Loaded, Task, TaskBatch, TaskId

UNREADABLE = ("error", "skip")


class EpisodeImages(NamedTuple):
  """The images of one episode, in the order of its classes."""

  support: np.ndarray  # [C·K, S, S, 3] uint8.
  query: np.ndarray  # [C·Q, S, S, 3] uint8.
  support_index: np.ndarray  # [C, K] int64, into the source.
  query_index: np.ndarray  # [C, Q] int64, into the source.


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
) -> EpisodeImages:
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
    The images; `support_index` and `query_index` are those really read.

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
  return EpisodeImages(support, query, support_index, query_index)


def episode_loader(
  source: Source,
  *,
  ways: int,
  shots: int,
  queries: int,
  size: int,
  resize: str = "squash",
  interpolation: str = "bilinear",
  unreadable: str = "error",
  cache: ImageCache | None = None,
  prompts: Prompts | None = None,
) -> Callable[[TaskId], Loaded]:
  """What reads an episode: a function of its identity, to be called from many threads.

  Args:
    source: Where the images are; see `check_feasible`.
    ways: Classes per episode `C`.
    shots: Support images per class `K`.
    queries: Query images per class `Q`.
    size: Image side `S`.
    resize: How images come to that size, see `images.resize`.
    interpolation: By which filter, see `images.resize`.
    unreadable: What to do about an image that cannot be read, see `load_episode`.
    cache: Of images resized in the same way.
    prompts: Of the source's classes, for methods that use texts.

  Raises:
    ValueError: If there is no such way with an unreadable image.
  """
  if unreadable not in UNREADABLE:
    raise ValueError(f"unreadable={unreadable!r} is none of {', '.join(UNREADABLE)}.")
  labels = lambda count: np.repeat(np.arange(ways, dtype=np.int32), count)

  def load(task: TaskId) -> Loaded:
    indices = sample_episode(
      source.labels, seed=task.seed, episode=task.task, ways=ways, shots=shots, queries=queries
    )
    read = load_episode(
      source,
      indices,
      size,
      unreadable,
      resize=resize,
      interpolation=interpolation,
      episode=task.task,
      cache=cache,
    )
    arrays = Task(
      support=read.support,
      support_labels=labels(shots),
      query=read.query,
      query_labels=labels(queries),
      seed=np.int32(task.seed),
      number=np.int32(task.task),
      token_ids=None if prompts is None else prompts.token_ids[indices.classes],
      text=None if prompts is None else prompts.text[indices.classes],
    )
    about = {
      "class_names": [source.class_names[label] for label in indices.classes],
      "support": read.support_index.tolist(),
      "query": read.query_index.tolist(),
    }
    return Loaded(arrays, about)

  return load


def task_batches(
  load: Callable[[TaskId], Loaded], tasks: Sequence[TaskId], size: int, *, threads: int = 8
) -> Iterator[TaskBatch]:
  """Iterates over tasks in batches, in the order given.

  Threads load the tasks of the next batch while the caller works on the last one. A task does not
  depend on the others, nor on the sizes of batches or the number of threads.

  Args:
    load: Reads one task; called from many threads.
    tasks: What to load.
    size: Tasks per batch `E`; the last batch may have fewer.
    threads: How many threads load; 0 loads in the caller's.

  Returns:
    An iterator of batches; an error met while reading a task is raised when its batch is due.
  """
  read_options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=max(size, threads) if threads else 0
  )
  dataset = grain.MapDataset.source(list(tasks)).map(lambda task: (task, load(task)))
  return iter(dataset.to_iter_dataset(read_options).batch(size, batch_fn=_stack))


def _stack(rows: Sequence[tuple[TaskId, Loaded]]) -> TaskBatch:
  ids, loaded = zip(*rows, strict=True)
  tasks = jax.tree.map(lambda *leaves: np.stack(leaves), *(each.task for each in loaded))
  return TaskBatch(ids, tasks, [each.about for each in loaded])


def ahead(
  put: Callable[[TaskBatch], Any], batches: Iterable[TaskBatch]
) -> Iterator[tuple[TaskBatch, Any]]:
  """Each batch with `put(batch)`, made in a thread while the caller works on the one before.

  Closing it does not wait for the batch that is being loaded, which is then not put anywhere.

  Args:
    put: Copies a batch to the devices.
    batches: From `task_batches`; an error in it is raised when its batch is due.
  """
  batches, closed = iter(batches), threading.Event()

  def following() -> tuple[TaskBatch, Any] | None:
    batch = next(batches, None)
    return None if batch is None or closed.is_set() else (batch, put(batch))

  pool = ThreadPoolExecutor(1)
  try:
    pending = pool.submit(following)
    while (item := pending.result()) is not None:
      pending = pool.submit(following)
      yield item
  finally:
    closed.set()
    pool.shutdown(wait=False, cancel_futures=True)
    pending = None  # an error in it would hold what its caller has on the devices
