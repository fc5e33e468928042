import errno
import itertools
import multiprocessing
import os
import threading

import jax
import numpy as np
import pytest
from PIL import Image

from mdtrap_jax.data import cache as cache_lib
from mdtrap_jax.data import images, loader, sampler, sources
from mdtrap_jax.data.task import TaskBatch, TaskId

SIZES = {"ways": 2, "shots": 1, "queries": 3}
OPTIONS = {"seed": 5, "size": 8, "threads": 4, **SIZES}


@pytest.fixture
def source(tmp_path):
  """Three classes of eight images."""
  random = np.random.default_rng(0)
  for label, number in itertools.product("abc", range(8)):
    file = tmp_path / "data" / label / f"{number}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(file)
  return sources.FolderSource(tmp_path / "data")


def batches_of(source, episodes, count, *, seed, threads, **options):
  """The batches of some episodes."""
  load = loader.episode_loader(source, **options)
  tasks = [TaskId(number, "", seed, number) for number in episodes]
  return loader.task_batches(load, tasks, count, threads=threads)


def numbers(batch):
  return [task.episode for task in batch.ids]


def index(batch, kind):
  return np.stack([about[kind] for about in batch.about])


def assert_same(first, second):
  assert first.about == second.about
  jax.tree.map(np.testing.assert_array_equal, first.tasks, second.tasks)


def test_shapes_types_and_content(source):
  batches = list(batches_of(source, [4, 9, 2], 2, **OPTIONS))
  assert [numbers(batch) for batch in batches] == [[4, 9], [2]]
  batch = batches[0]
  tasks = batch.tasks
  assert (tasks.support.dtype, tasks.query.dtype) == (np.uint8, np.uint8)
  assert (tasks.seed.tolist(), tasks.number.tolist()) == ([5, 5], [4, 9])
  assert tasks.support.shape == (2, 2, 8, 8, 3)
  assert tasks.query.shape == (2, 6, 8, 8, 3)
  assert tasks.support_labels[1].tolist() == [0, 1]
  assert tasks.query_labels[1].tolist() == [0, 0, 0, 1, 1, 1]
  drawn = sampler.sample_episode(source.labels, seed=5, episode=9, **SIZES)
  np.testing.assert_array_equal(index(batch, "support")[1], drawn.support)
  np.testing.assert_array_equal(index(batch, "query")[1], drawn.query)
  assert batch.about[1]["class_names"] == [source.class_names[c] for c in drawn.classes]
  np.testing.assert_array_equal(source.labels[drawn.query][:, 0], drawn.classes)
  for pixels, image in zip(tasks.query[1], drawn.query.reshape(-1), strict=True):
    np.testing.assert_array_equal(pixels, images.resize(source.image(image), 8))


def test_episodes_do_not_depend_on_batches_or_threads(source):
  together = list(batches_of(source, range(7), 7, **OPTIONS))[0]
  for batch_size, threads in ((1, 0), (2, 1), (3, 8)):
    options = {**OPTIONS, "threads": threads}
    batches = list(batches_of(source, range(7), batch_size, **options))
    tasks = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(b.tasks for b in batches))
    about = [each for batch in batches for each in batch.about]
    assert_same(TaskBatch([], tasks, about), together)


def test_no_episodes_no_batches(source):
  assert list(batches_of(source, [], 4, **OPTIONS)) == []


def test_decoding_runs_ahead_in_parallel(source):
  """Four readers must be inside `image` at once, or the barrier breaks."""
  barrier = threading.Barrier(4, timeout=20)
  plain = source.image

  def image(index):
    barrier.wait()
    return plain(index)

  source.image = image
  batches = batches_of(source, range(4), 4, **OPTIONS)
  assert len(next(batches).ids) == 4


def break_images(source, indices):
  for index in indices:
    with open(source.describe(index), "wb") as file:
      file.write(b"broken")


def test_an_unreadable_image_stops_with_its_own_message(source):
  drawn = sampler.sample_episode(source.labels, seed=5, episode=3, **SIZES)
  broken = drawn.query[1, 2]
  break_images(source, [broken])
  batches = batches_of(source, [3], 1, **OPTIONS)
  with pytest.raises(images.UnreadableImageError) as caught:
    next(batches)
  assert str(caught.value).startswith(f"Cannot read the image {source.describe(broken)}: not an")


def test_skipped_images_are_replaced_in_drawn_order(source, caplog):
  drawn = sampler.sample_episode(source.labels, seed=5, episode=3, **SIZES)
  before = list(batches_of(source, [3], 1, **OPTIONS))[0]
  break_images(source, [drawn.support[0, 0], drawn.query[0, 1], drawn.spare[0][1]])
  after = list(batches_of(source, [3], 1, unreadable="skip", **OPTIONS))[0]
  spare = drawn.spare[0]
  assert index(after, "support")[0].tolist() == [[spare[0]], drawn.support[1].tolist()]
  query = drawn.query.copy()
  query[0, 1] = spare[2]
  np.testing.assert_array_equal(index(after, "query")[0], query)
  np.testing.assert_array_equal(after.tasks.query[0, 1], images.resize(source.image(spare[2]), 8))
  np.testing.assert_array_equal(after.tasks.query[0, 3:], before.tasks.query[0, 3:])
  for broken in (drawn.support[0, 0], drawn.query[0, 1], spare[1]):
    assert source.describe(broken) in caplog.text
  again = loader.load_episode(source, drawn, 8, "skip", episode=3)
  np.testing.assert_array_equal(again.query, after.tasks.query[0])
  np.testing.assert_array_equal(again.query_index, query)


def test_running_out_of_spares_names_the_class(source):
  break_images(source, range(8))
  batches = batches_of(
    sources.keep_classes(source, ["a"]), [0], 1, unreadable="skip", **{**OPTIONS, "ways": 1}
  )
  with pytest.raises(images.UnreadableImageError, match=r"Class 'a' of .* too few readable"):
    next(batches)


def test_an_unknown_way_with_unreadable_images(source):
  with pytest.raises(ValueError, match="unreadable='ignore' is none of error, skip"):
    batches_of(source, [0], 1, unreadable="ignore", **OPTIONS)


def test_kept_classes_report_the_sources_indices(source):
  kept = sources.keep_classes(source, ["b", "c"])
  batch = next(batches_of(kept, range(6), 6, **OPTIONS))
  assert index(batch, "query").min() >= 8
  names = np.array(source.class_names)[source.labels[index(batch, "query")][..., 0]]
  assert names.tolist() == [about["class_names"] for about in batch.about]


def open_cache(source, folder, size=8, resize="squash"):
  return cache_lib.ImageCache(folder, source.identity, len(source.labels), size, resize)


def test_cached_images_are_the_images(source, tmp_path):
  plain = list(batches_of(source, range(5), 2, **OPTIONS))
  cache = open_cache(source, tmp_path / "cache" / "new")
  first = list(batches_of(source, range(5), 2, cache=cache, **OPTIONS))
  source.image = None  # From here on, nothing may be decoded.
  cache = open_cache(source, tmp_path / "cache" / "new")
  second = list(batches_of(source, range(5), 2, cache=cache, **OPTIONS))
  for one, two, three in zip(plain, first, second, strict=True):
    assert_same(one, two)
    assert_same(one, three)


def test_images_are_resized_as_asked(source, tmp_path):
  for cache in (None, open_cache(source, tmp_path / "cache", resize="crop")):
    options = {**OPTIONS, "resize": "crop", "cache": cache}
    batch = next(batches_of(source, [0], 1, **options))
    first = index(batch, "support").reshape(-1)[0]
    expected = images.resize(source.image(first), 8, "crop")
    np.testing.assert_array_equal(batch.tasks.support[0, 0], expected)
    assert (expected != images.resize(source.image(first), 8)).any()


def test_other_data_size_or_resizing_has_other_files(source, tmp_path):
  cache = open_cache(source, tmp_path / "cache")
  cache.put(3, np.full((8, 8, 3), 7, np.uint8))
  assert open_cache(source, tmp_path / "cache").get(3)[0, 0, 0] == 7
  assert open_cache(source, tmp_path / "cache", size=4).get(3) is None
  assert open_cache(source, tmp_path / "cache", resize="crop").get(3) is None
  os.replace(source.describe(4), source.describe(3))
  changed = sources.FolderSource(source.name)
  assert open_cache(changed, tmp_path / "cache").get(3) is None


@pytest.mark.parametrize("interpolation", images.INTERPOLATIONS)
def test_the_filter_of_resizing_reaches_the_pixels(interpolation, source):
  options = {**OPTIONS, "interpolation": interpolation}
  batch = next(batches_of(source, [0], 1, **options))
  whole = source.image(index(batch, "support").reshape(-1)[0])
  expected = images.resize(whole, 8, interpolation=interpolation)
  np.testing.assert_array_equal(batch.tasks.support[0, 0], expected)


def test_cache_refuses_what_does_not_fit(source, tmp_path):
  cache = open_cache(source, tmp_path)
  with pytest.raises(ValueError, match="does not fit a cache of 24"):
    cache.put(0, np.zeros((4, 4, 3), np.uint8))
  with pytest.raises(ValueError, match="Image 24"):
    cache.put(24, np.zeros((8, 8, 3), np.uint8))


def test_an_interrupted_write_is_not_believed(source, tmp_path, monkeypatch):
  cache = open_cache(source, tmp_path)
  calls = []

  def pwrite(descriptor, data, offset):
    calls.append(len(data))
    if len(calls) == 1:
      return write(descriptor, data[:50], offset)  # A short write, then the disk is full.
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  write = os.pwrite
  monkeypatch.setattr(os, "pwrite", pwrite)
  with pytest.raises(OSError, match=r"image cache .*No space left.*cache_dir=") as caught:
    cache.put(2, np.full((8, 8, 3), 9, np.uint8))
  assert caught.value.errno == errno.ENOSPC
  assert calls == [192, 142]
  monkeypatch.undo()
  assert cache.get(2) is None
  cache.put(2, np.full((8, 8, 3), 9, np.uint8))
  assert (cache.get(2) == 9).all()


def test_full_disk_reaches_the_caller(source, tmp_path, monkeypatch):
  cache = open_cache(source, tmp_path)

  def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, "pwrite", full)
  with pytest.raises(OSError, match="No space left"):
    next(batches_of(source, [0], 1, cache=cache, **OPTIONS))


def test_cache_folder_that_cannot_be(source, tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(OSError, match=r"Cannot create the image cache .*cache_dir="):
    open_cache(source, tmp_path / "file" / "cache")


def _fill(folder, identity, offset):
  cache = cache_lib.ImageCache(folder, identity, 200, 16)
  for index in range(offset, 200, 1):
    cache.put(index, np.full((16, 16, 3), index, np.uint8))


def test_two_processes_fill_one_cache(tmp_path):
  context = multiprocessing.get_context("spawn")
  workers = [context.Process(target=_fill, args=(tmp_path, "x", start)) for start in (0, 50)]
  for worker in workers:
    worker.start()
  for worker in workers:
    worker.join(60)
    assert worker.exitcode == 0
  cache = cache_lib.ImageCache(tmp_path, "x", 200, 16)
  for index in range(200):
    assert (cache.get(index) == index).all()


def test_the_next_batch_is_placed_while_the_caller_works():
  placed = [threading.Event() for _ in range(3)]

  def place(number):
    placed[number].set()
    return -number

  for batch, value in loader.ahead(place, range(3)):
    assert value == -batch
    assert placed[min(batch + 1, 2)].wait(10)
    assert batch > 0 or not placed[2].is_set()  # one ahead, not all


def test_a_batch_that_nobody_waits_for_is_not_placed():
  loading, left, placed = threading.Event(), threading.Event(), []

  def batches():
    yield 0
    loading.set()
    left.wait(10)
    yield 1

  found = loader.ahead(placed.append, batches())
  next(found)
  loading.wait(10)
  found.close()
  left.set()
  for thread in threading.enumerate():
    if thread is not threading.current_thread() and "ThreadPool" in thread.name:
      thread.join(10)
  assert placed == [0]


def test_an_error_ahead_waits_for_its_turn():
  def batches():
    yield 1
    raise OSError("disk")

  found = loader.ahead(lambda batch: batch, batches())
  assert next(found) == (1, 1)
  with pytest.raises(OSError, match="disk"):
    next(found)
