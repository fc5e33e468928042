import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdtrap_jax.data import sampler

LABELS = (np.arange(84) * 5 // 3 % 7).astype(np.int32)  # Seven classes of twelve.
SIZES = {"ways": 5, "shots": 2, "queries": 4}


@st.composite
def problems(draw):
  shots, queries = draw(st.integers(1, 4)), draw(st.integers(1, 5))
  counts = draw(st.lists(st.integers(shots + queries, 15), min_size=1, max_size=6))
  left_out = draw(st.integers(0, 5))
  labels = np.repeat(np.arange(len(counts)), counts)
  labels = np.concatenate([labels, np.full(left_out, -1)])
  labels = np.random.default_rng(draw(st.integers(0, 99))).permutation(labels)
  ways = draw(st.integers(1, len(counts)))
  key = st.integers(0, 2**64 - 1)
  return labels.astype(np.int32), {
    "seed": draw(key), "episode": draw(key), "ways": ways, "shots": shots, "queries": queries
  }  # fmt: skip


@settings(max_examples=100, deadline=None, derandomize=True)
@given(problems())
def test_an_episode_is_well_formed(problem):
  labels, options = problem
  drawn = sampler.sample_episode(labels, **options)
  ways, shots, queries = options["ways"], options["shots"], options["queries"]
  assert drawn.classes.shape == (ways,)
  assert drawn.classes.dtype == np.int32
  assert len(set(drawn.classes.tolist())) == ways
  assert drawn.support.shape == (ways, shots)
  assert drawn.query.shape == (ways, queries)
  for row, label in enumerate(drawn.classes):
    members = np.concatenate([drawn.support[row], drawn.query[row], drawn.spare[row]])
    assert sorted(members) == np.flatnonzero(labels == label).tolist()
  again = sampler.sample_episode(labels.copy(), **options)
  for first, second in zip(drawn[:3], again[:3], strict=True):
    np.testing.assert_array_equal(first, second)


def test_seed_and_episode_both_matter():
  keys = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2**32), (2**32, 0)]
  drawn = {
    sampler.sample_episode(LABELS, seed=seed, episode=episode, **SIZES).query.tobytes()
    for seed, episode in keys
  }
  assert len(drawn) == len(keys)


def test_fewer_shots_are_a_prefix():
  few = sampler.sample_episode(LABELS, seed=3, episode=4, ways=5, shots=1, queries=4)
  many = sampler.sample_episode(LABELS, seed=3, episode=4, ways=5, shots=5, queries=4)
  np.testing.assert_array_equal(few.classes, many.classes)
  np.testing.assert_array_equal(few.support[:, 0], many.support[:, 0])


def test_every_class_and_image_is_drawn_equally_often():
  classes, images = np.zeros(7), np.zeros(len(LABELS))
  for episode in range(2000):
    drawn = sampler.sample_episode(LABELS, seed=0, episode=episode, **SIZES)
    classes[drawn.classes] += 1
    images[drawn.support] += 1
  # Binomial with p = 5/7 and 5/7·2/12: five standard deviations.
  np.testing.assert_allclose(classes, 2000 * 5 / 7, atol=5 * np.sqrt(2000 * 10 / 49))
  share = 10 / 84
  np.testing.assert_allclose(images, 2000 * share, atol=5 * np.sqrt(2000 * share))


def test_known_episode():
  """Guards the stream itself: a change here would change every published number."""
  drawn = sampler.sample_episode(LABELS, seed=1, episode=2, **SIZES)
  assert drawn.classes.tolist() == KNOWN_CLASSES
  assert drawn.support.tolist() == KNOWN_SUPPORT


KNOWN_CLASSES = [4, 2, 0, 6, 1]
KNOWN_SUPPORT = [[32, 49], [52, 60], [21, 59], [46, 71], [22, 51]]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"ways": 8}, "ways=8 needs as many classes; 7 exist"),
    ({"shots": 9}, r"has 12 images, fewer than shots \+ queries = 9 \+ 4"),
    ({"shots": 0}, "shots=0 must be at least 1"),
    ({"seed": -1}, "seed=-1 must be at least 0"),
    ({"episode": 2**64}, "episode="),
  ],
)
def test_impossible_episodes(change, message):
  options = {"seed": 0, "episode": 0, **SIZES, **change}
  with pytest.raises(ValueError, match=message):
    sampler.sample_episode(LABELS, **options)
