"""What every method of the registry keeps, whatever it is: one test, driven by `METHODS`.

All but those that compile a whole ResNet-18 with adapters: `test_tsa.py` is about these.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load, save

from mdtrap_jax.data.task import Task
from mdtrap_jax.methods.heads import METHODS, Domain, make_method
from mdtrap_jax.objectives.term import TermState
from mdtrap_jax.run.snapshots import Snapshot, SnapshotDirectory

WIDTH, WAYS = 16, 4
STEPS = 3
COUNTS = ((3, 1, 4), (2, 2, 2, 2), (5, 6))  # images of the classes of three tasks
ROWS, QUERIES = 12, 9  # that all are padded to
PROJECTION = {"projection": {"kernel": np.linspace(-1, 1, WIDTH * WIDTH).reshape(WIDTH, WIDTH)}}


def shape_of(name):
  return (2, 2, WIDTH) if METHODS[name].needs == "map" else (WIDTH,)


def make_task(name, counts, seed):
  """A task without padding; texts are near the classes, not at them."""
  rng, shape = np.random.default_rng(seed), shape_of(name)
  labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
  query_labels = np.repeat(np.arange(len(counts), dtype=np.int32), 2)
  centers = rng.standard_normal((len(counts), *shape))
  rows = lambda own: np.float32(centers[own] + 0.7 * rng.standard_normal((len(own), *shape)))
  text = None
  if METHODS[name].text:
    text = np.float32(centers + rng.standard_normal(centers.shape))
  return Task(rows(labels), labels, rows(query_labels), query_labels, np.int32(5), np.int32(seed),
              text=text)  # fmt: skip


def pad(task):
  """The same task in a larger shape, filled with rows on which nothing may depend."""

  def rows(values, labels, size):
    extra = size - len(labels)
    junk = np.full((extra, *values.shape[1:]), 7.0, np.float32)
    return np.concatenate([values, junk]), np.pad(labels, (0, extra), constant_values=-1)

  support, query = rows(*task[:2], ROWS), rows(*task[2:4], QUERIES)
  text = task.text
  if text is not None:
    text = np.pad(text, ((0, WAYS - len(text)), (0, 0)))
  return task._replace(
    support=support[0], support_labels=support[1], query=query[0], query_labels=query[1], text=text
  )


def params_of(name):
  """Weights of the frozen model, for the methods that train some."""
  return {"image": {"stem": jax.tree.map(jnp.float32, PROJECTION)}}


def make(name, ways):
  steps = STEPS if METHODS[name].settings(Domain()).steps else None
  return make_method(name, ways=ways, steps=steps)


class Programs:
  """What a run does with a task, or mapped with a batch of them, compiled as a run compiles it."""

  def __init__(self, method, params, mapped):
    self.steps, params = method.steps, method.needed(params)
    over = lambda fn, *axes: jax.jit(jax.vmap(fn, in_axes=axes) if mapped else fn)

    def start(task):
      prepared, state = method.prepare(params, task)
      return prepared, state, method.baseline(params, prepared, state)

    self.start = over(start, 0)
    self.run = over(functools.partial(method.run, params, clean=False), 0, 0, None, None)
    self.evaluate = over(functools.partial(method.evaluate, params), 0, 0)

  def __call__(self, task, stop=None, pause=None):
    """Baseline, state and evaluation after `stop` steps, or all.

    Args:
      task: one, or a batch.
      stop: steps; all if not given.
      pause: `state -> state`, called after the first step: what a kill leaves.
    """
    prepared, state, before = self.start(task)
    stop, step = self.steps if stop is None else stop, 0
    if pause:
      step, state = 1, pause(self.run(prepared, state, 0, 1))
    state = self.run(prepared, state, step, stop)
    return before, state, self.evaluate(prepared, state)


def stored(arrays):
  """Named arrays after they were written to a file and read."""
  return load(save({name: np.ascontiguousarray(leaf) for name, leaf in arrays.items()}))


def killed(state, folder):
  """A state as another process finds it."""
  rows = (0, 1, 2)
  leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
  config = {"": {"seed": 0}}
  SnapshotDirectory(folder, config).save(Snapshot("all", rows, 1, leaves, {}))
  kept, _ = SnapshotDirectory(folder, config).restore("all").rows(rows, len(rows), state)
  return kept


@pytest.mark.parametrize("name", sorted(n for n in METHODS if METHODS[n].needs != "image"))
def test_every_method_keeps_the_contract(name, tmp_path):
  tasks = [make_task(name, counts, seed) for seed, counts in enumerate(COUNTS)]
  params, method = params_of(name), make(name, WAYS)
  batch = jax.tree.map(lambda *leaves: np.stack(leaves), *map(pad, tasks))
  run = Programs(method, params, mapped=True)
  before, state, after = run(batch)

  # Shapes, and numbers that are numbers: with absent classes, single images and padding.
  assert after.cosines.shape == (3, QUERIES, WAYS)
  assert after.accuracy.shape == (3,)
  for leaf in jax.tree.leaves(state.params):
    assert leaf.dtype == jnp.float32
    assert jnp.isfinite(leaf).all()
  absent = np.isin(np.arange(WAYS)[None], batch.support_labels[2]).ravel()
  assert np.isfinite(after.cosines[2][:, absent]).all()
  assert (after.cosines[2][:, ~absent] == -np.inf).all()

  # Trained or solved, and the last loss is shown.
  trained = getattr(method, "trained", method.steps)
  _, start, at_start = run(batch, stop=0)
  moved = [
    not np.array_equal(a, b)
    for a, b in zip(jax.tree.leaves(start.params), jax.tree.leaves(state.params), strict=True)
  ]
  assert any(moved) == bool(trained)
  if not trained:
    np.testing.assert_array_equal(at_start.cosines, after.cosines)
  losses = [term for term in state.opt_state.values() if isinstance(term, TermState)]
  assert len(losses) == bool(trained)
  assert all(np.isfinite(term.value).all() for term in losses)

  # Killed after its first step and gone on from the snapshot, it ends with the same bits.
  if trained:
    _, resumed, then = run(batch, pause=functools.partial(killed, folder=tmp_path / "snapshots"))
    for one, other in zip(jax.tree.leaves(resumed), jax.tree.leaves(state), strict=True):
      np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(then.cosines, after.cosines)

  # A row of the padded batch is the task alone.
  alone = Programs(make(name, len(COUNTS[0])), params, mapped=False)
  small_before, _, small = alone(tasks[0])
  queries, ways = len(tasks[0].query_labels), len(COUNTS[0])
  tolerance = dict(rtol=2e-4, atol=2e-4)
  np.testing.assert_allclose(after.cosines[0, :queries, :ways], small.cosines, **tolerance)
  np.testing.assert_allclose(before.cosines[0, :queries, :ways], small_before.cosines, **tolerance)
  assert after.accuracy[0] == small.accuracy

  # What a classifier keeps says the same of the same rows; none has feature maps.
  if not METHODS[name].transductive and METHODS[name].needs != "map":
    kept = method.needed(params)
    task, own = jax.tree.map(lambda leaf: leaf[0], (batch, state.params))
    anchors, memory = method.remember(kept, task, own)
    assert anchors.shape[0] == WAYS
    own, memory = stored(own), stored(memory)
    found = method.classify(own, anchors, memory, task.query)
    np.testing.assert_allclose(
      found[:queries, :ways], after.cosines[0, :queries, :ways], rtol=1e-5, atol=1e-5
    )
