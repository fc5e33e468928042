"""Task sizes against Meta-Dataset's published rule, and padding."""

import numpy as np
import pytest

from mdtrap_jax.data import tasks
from mdtrap_jax.data.sampler import sample_episode
from mdtrap_jax.data.tasks import RULES, Fixed, Rule, Sizes

COUNTS = np.array([40, 25, 300, 12, 60, 33, 18, 90])
LABELS = np.repeat(np.arange(8), COUNTS).astype(np.int32)


def test_number_of_queries_by_hand():
  assert tasks.num_queries(np.array([20, 30, 7]), Rule()) == 3  # half of the smallest class
  assert tasks.num_queries(np.array([50, 60]), Rule()) == 10
  assert tasks.num_queries(np.array([12, 60]), Rule(shots=5)) == 7
  with pytest.raises(ValueError, match="1 images"):
    tasks.num_queries(np.array([1, 30]), Rule())


def test_number_of_shots_by_hand():
  # |S| = ⌈.5·15⌉ + ⌈.5·25⌉ + ⌈.5·5⌉ = 8 + 13 + 3; shares 20, 30 and 10 of 60 of the 21 left.
  shots = tasks.num_shots(np.array([20, 30, 10]), 5, Rule(), beta=0.5, weights=np.full(3, 0.5))
  np.testing.assert_array_equal(shots, [8, 11, 4])


def test_shots_are_capped_by_class_and_by_task():
  counts = np.array([1000, 1000, 12])
  all_of_it = tasks.num_shots(counts, 6, Rule(), beta=1 - 1e-9, weights=np.array([1, 1, 0.0]))
  assert all_of_it.sum() <= 100 + 100 + 6  # what a class adds is capped, not its own shots
  assert all_of_it[0] > 100 - 10
  capped = tasks.num_shots(counts, 6, Rule(max_support=30), beta=0.99, weights=np.zeros(3))
  assert capped.sum() <= 30
  # The random factor goes from one half to two.
  low = tasks.num_shots(np.array([100, 100]), 10, Rule(), beta=0.5, weights=np.array([0.0, 1]))
  np.testing.assert_array_equal(low, [1 + int(90 * 0.2), 1 + int(90 * 0.8)])


def test_drawn_tasks_keep_the_rule():
  ways, sizes = set(), set()
  for number in range(200):
    task = tasks.sample_task(LABELS, seed=41, number=number, rule=RULES["vary_way_vary_shot"])
    ways.add(len(task.classes))
    sizes.add(len(task.support))
    shots = np.bincount(task.support_labels)
    queries = np.bincount(task.query_labels)
    smallest = COUNTS[task.classes].min()
    assert (queries == min(10, smallest // 2)).all()
    assert shots.min() >= 1
    assert (shots + queries <= COUNTS[task.classes]).all()
    assert len(set(task.support) | set(task.query)) == len(task.support) + len(task.query)
    assert (LABELS[task.support] == task.classes[task.support_labels]).all()
    assert (LABELS[task.query] == task.classes[task.query_labels]).all()
  assert ways == {5, 6, 7, 8}
  assert len(sizes) > 50


@pytest.mark.parametrize(
  ("name", "ways", "shots"), [("vary_way_5_shot", {5, 6, 7, 8}, {5}), ("5_way_1_shot", {5}, {1})]
)
def test_the_other_protocols(name, ways, shots):
  drawn = [tasks.sample_task(LABELS, seed=0, number=n, rule=RULES[name]) for n in range(60)]
  assert {len(task.classes) for task in drawn} == ways
  assert {k for task in drawn for k in np.bincount(task.support_labels)} == shots


def test_a_task_depends_on_nothing_but_its_identity():
  draw = lambda seed, number: tasks.sample_task(LABELS, seed=seed, number=number, rule=Rule())
  for a, b in zip(draw(1, 5), draw(1, 5), strict=True):
    np.testing.assert_array_equal(a, b)
  assert not np.array_equal(draw(1, 5).support, draw(2, 5).support)
  assert not np.array_equal(draw(1, 5).support, draw(1, 6).support)


def test_fixed_tasks_are_the_episodes_of_the_sampler():
  episode = sample_episode(LABELS, seed=3, episode=9, ways=5, shots=2, queries=4)
  task = tasks.sample_task(LABELS, seed=3, number=9, rule=Fixed(5, 2, 4))
  np.testing.assert_array_equal(task.classes, episode.classes)
  np.testing.assert_array_equal(task.support.reshape(5, 2), episode.support)
  np.testing.assert_array_equal(task.query_labels, np.repeat(np.arange(5), 4))


def test_images_without_a_label_are_never_drawn():
  labels = LABELS.copy()
  labels[::2] = -1
  task = tasks.sample_task(labels, seed=0, number=0, rule=Rule())
  assert (labels[task.support] >= 0).all()


def test_gather_pads_with_rows_that_do_not_count():
  features = np.arange(len(LABELS), dtype=np.float32)[:, None]
  drawn = [tasks.sample_task(LABELS, seed=0, number=n, rule=Rule()) for n in range(3)]
  sizes = tasks.common_sizes(drawn)
  assert sizes == Sizes(*(max(len(t[i]) for t in drawn) for i in (0, 1, 3)))
  batch = tasks.gather(features, drawn, sizes)
  assert batch.support.shape == (3, sizes.support, 1)
  for row, task in enumerate(drawn):
    count = len(task.support)
    np.testing.assert_array_equal(batch.support[row, :count, 0], task.support)
    np.testing.assert_array_equal(batch.support_labels[row, count:], -1)
    assert (batch.query_labels[row] >= 0).sum() == len(task.query)


@pytest.mark.parametrize(
  ("rule", "labels", "message"),
  [
    (Fixed(9, 1, 1), LABELS, "at least 9 classes, but only 8"),
    (Fixed(5, 5, 15), LABELS, r"d \(12\), g \(18\)"),
    (Fixed(1, 1, 1), LABELS, "nothing to tell apart"),
    (Rule(), np.zeros(30, np.int32), "only 1"),
    (Rule(), np.append(LABELS[LABELS != 3], 3).astype(np.int32), r"d \(1\)"),
    (RULES["vary_way_5_shot"], np.arange(60, dtype=np.int32) % 8, None),
  ],
)
def test_domains_that_cannot_fill_tasks_are_named(rule, labels, message):
  if message is None:
    tasks.check_rule("x", labels, "abcdefgh", rule)
    return
  with pytest.raises(ValueError, match=message):
    tasks.check_rule("x", labels, "abcdefgh", rule)
