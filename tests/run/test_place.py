"""How many tasks run at once, on which devices; what does not fit."""

import functools

import jax
import pytest

from mdtrap_jax.methods import finetune
from mdtrap_jax.run import place as placing
from mdtrap_jax.run import programs as batching
from tests.episodes import row
from tests.methods.test_finetune import setup


def test_memory_decides_how_many_episodes_run_at_once(monkeypatch):
  adaptation, params, _, episodes, weights = setup()
  place = functools.partial(placing.place, adaptation, params, row(episodes, 0), weights)
  one = jax.devices()[:1]
  assert place(most=10**6, devices=one, memory=2**31).each > 100
  with pytest.raises(MemoryError, match="one task needs .* GiB"):
    place(most=4, devices=one, memory=2**16, fixed=True)
  _, mesh, each = place(most=8, devices=jax.devices()[:4])  # cores: by the number of rows
  assert (mesh.size, each) == (4, 2)
  assert place(most=3).mesh.size == 3  # no core adapts what nobody asked for
  with monkeypatch.context() as patch:
    patch.setattr(finetune, "LARGE", 1)
    assert place(most=3).mesh.size == 1  # a large encoder's products use all cores
  needed, _ = placing.bytes_needed(
    adaptation, params, row(episodes, 0), weights, batching.task_mesh(one)
  )
  monkeypatch.setattr(placing, "memory_limit", lambda device: 3 * needed)
  assert place(most=100).mesh.size == 3  # cores share the memory
  monkeypatch.setattr(placing, "memory_limit", lambda device: needed - 1)
  assert place(most=100).method.chunk is not None  # rows are encoded in parts, which fits
  with pytest.raises(MemoryError, match="one task needs .* GiB"):
    place(most=100, fixed=True)


def stubbed(monkeypatch, **options):
  """`place` where one task needs 90 bytes, 30 of them for the weights."""
  monkeypatch.setattr(placing, "bytes_needed", lambda *_: placing.Need(one=90, shared=30))
  return placing.place(object(), None, None, {}, **options)


@pytest.mark.parametrize(
  ("memory", "most", "each"),
  [(100, 9, 1), (166, 9, 1), (167, 9, 2), (233, 9, 2), (234, 9, 3), (1000, 40, 14), (1000, 5, 5)],
)
def test_as_many_tasks_at_once_as_fit_and_no_more(monkeypatch, memory, most, each):
  """Of nine tenths of the memory: 90 bytes for the first and 60 for each further one."""
  placed = stubbed(monkeypatch, most=most, memory=memory, devices=jax.devices()[:1])
  assert placed.each == each


@pytest.mark.parametrize(
  ("most", "asked", "devices", "each"), [(10, 0, 4, 3), (2, 0, 2, 1), (10, 7, 4, 3), (10, 2, 4, 2)]
)
def test_devices_share_the_tasks(monkeypatch, most, asked, devices, each):
  _, mesh, found = stubbed(
    monkeypatch, most=most, memory=1000, each=asked, devices=jax.devices()[:4]
  )
  assert (mesh.size, found) == (devices, each)


def test_less_memory_than_one_task_needs(monkeypatch):
  with pytest.raises(MemoryError, match="one task needs 0.00 GiB"):
    stubbed(monkeypatch, most=1, memory=99, devices=jax.devices()[:1], fixed=True)


def test_split_weights_need_less_memory_and_devices_that_they_divide():
  adaptation, params, _, episodes, weights = setup()
  needed = lambda shards: placing.bytes_needed(
    adaptation,
    params,
    row(episodes, 0),
    weights,
    batching.task_mesh(jax.devices()[:shards], shards),
  )
  (one, shared), (one_split, shared_split) = needed(1), needed(4)
  assert shared_split < 0.6 * shared  # the stem stays whole
  assert one_split < one - (shared - shared_split) / 2
  place = functools.partial(placing.place, adaptation, params, row(episodes, 0), weights)
  _, mesh, each = place(most=10, shards=4)
  assert (dict(mesh.shape), each) == ({"task": 2, "weights": 4}, 2)
  with pytest.raises(ValueError, match="weight_shards=3: must divide .* 8"):
    place(most=10, shards=3)
