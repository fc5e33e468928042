"""The gap between prototypes and images: by hand, shifted, bounded, drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdtrap_jax.data.features import FeatureSet
from mdtrap_jax.data.task import Task
from mdtrap_jax.data.tasks import Fixed, sample_task
from mdtrap_jax.methods import gap, ncc
from mdtrap_jax.methods.ncc import Representations
from mdtrap_jax.objectives.losses import symmetric_cross_entropy, unit
from mdtrap_jax.report import figures
from mdtrap_jax.report.diagnosis import diagnose


def make_representations(seed=0, support=6, ways=3, width=5):
  rng = np.random.default_rng(seed)
  rows = lambda *shape: jnp.asarray(rng.standard_normal(shape) + 0.5, jnp.float32)
  labels = jnp.asarray(np.arange(support) % ways, jnp.int32)
  task = Task(rows(support, width), labels, rows(4, width), jnp.array([0, 1, 2, 0]))
  return task, Representations(task.support, task.query, rows(ways, width))


def test_gap_by_hand():
  support = jnp.array([[2.0, 0.0], [0.0, 3.0], [8.0, 8.0]])  # the last row is padding
  prototypes = jnp.array([[5.0, 0.0], [4.0, 0.0], [0.0, 0.0]])  # the last class is absent
  representations = Representations(support, support, prototypes)
  labels = jnp.array([0, 1, -1])
  # Mean unit image (½, ½), mean unit prototype (1, 0), each class once.
  np.testing.assert_allclose(gap.gap_vector(representations, labels), [-0.5, 0.5], atol=1e-6)
  np.testing.assert_allclose(gap.gap(representations, labels), np.sqrt(0.5), atol=1e-6)


def test_a_class_weighs_as_much_in_the_gap_as_it_has_images():
  support = jnp.array([[2.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
  labels = jnp.array([0, 0, 0, 1])
  prototypes = jnp.array([[3.0, 4.0], [0.0, 7.0]])
  # Unit prototypes (.6, .8) three times and (0, 1) once: mean (.45, .85). Images: (.5, .5).
  vector = gap.gap_vector(Representations(support, support, prototypes), labels)
  np.testing.assert_allclose(vector, [0.05, -0.35], atol=1e-6)
  length = gap.gap(Representations(support, support, prototypes), labels)
  np.testing.assert_allclose(length, np.hypot(0.05, 0.35), atol=1e-6)


def test_one_image_a_class_has_no_gap_and_none_to_shift():
  task, _ = make_representations(support=3)
  own = Representations(task.support, task.query, task.support)
  assert gap.gap(own, task.support_labels) == 0.0
  noisy = own._replace(prototypes=own.prototypes * (1 + 1e-7))
  assert gap.gap(noisy, task.support_labels) == 0.0
  curve = gap.shift_gap(noisy, task, jnp.array([0.0, 1.0]), 7.0)
  assert curve.loss[0] == curve.loss[1]


def test_the_gap_as_it_is_leaves_loss_and_accuracy_as_they_are():
  task, representations = make_representations()
  own = gap.gap(representations, task.support_labels)
  curve = gap.shift_gap(representations, task, jnp.array([own, own + 1.0]), 7.0)
  loss = symmetric_cross_entropy(
    representations.query, representations.prototypes, task.query_labels, 7.0
  )
  predicted = ncc.predict(
    representations.query, representations.prototypes, task.support_labels, task.query_labels
  )
  np.testing.assert_allclose(curve.loss[0], loss, rtol=1e-5)
  assert curve.accuracy[0] == predicted.accuracy
  assert abs(curve.loss[1] - loss) > 1e-3


def test_the_bound_holds_and_is_reached():
  task, representations = make_representations(seed=3)
  delta = gap.gap_vector(representations, task.support_labels)
  rows = Representations(*map(unit, representations))
  frequency = jnp.bincount(task.support_labels, length=3) / len(task.support_labels)
  for seed in range(20):
    weight = jax.random.normal(jax.random.key(seed), (5, 5))
    after = (rows.support @ weight).mean(0) - frequency @ (rows.prototypes @ weight)
    scale = gap.bound_scale(weight, delta)
    ratio = gap.gap_ratio(weight, delta)
    np.testing.assert_allclose(jnp.linalg.norm(after), ratio * jnp.linalg.norm(delta), rtol=1e-5)
    assert ratio <= scale * (1 + 1e-5)
  # All columns along the gap: the bound is exact.
  weight = jnp.outer(delta, jnp.array([1.0, -2.0, 3.0, 0.5, 1.0]))
  np.testing.assert_allclose(
    jnp.linalg.norm(delta @ weight),
    gap.bound_scale(weight, delta) * jnp.linalg.norm(delta),
    rtol=1e-5,
  )


@pytest.fixture(scope="module")
def toy():
  """Features, and three tasks of them."""
  rng = np.random.default_rng(0)
  labels = np.repeat(np.arange(4), 12).astype(np.int32)
  features = np.maximum(
    rng.standard_normal((4, 16))[labels] + 1.5 * rng.standard_normal((48, 16)), 0
  ).astype(np.float32)
  found = FeatureSet("toy", features, labels, tuple("abcd"))
  drawn = [sample_task(labels, seed=1, number=n, rule=Fixed(3, 4, 5)) for n in range(3)]
  return found, drawn


@pytest.fixture(scope="module")
def diagnosis(toy):
  return diagnose(*toy, np.linspace(-1, 1, 5))


def test_diagnosis_has_every_number(diagnosis):
  assert diagnosis["tasks"] == 3
  assert set(diagnosis["gap"]) == set(diagnosis["shift"]) == {"ncc", "url", "copa"}
  assert all(0 <= value <= 2 for value in diagnosis["gap"].values())
  for curve in diagnosis["shift"].values():
    assert len(curve["loss"]) == len(curve["accuracy"]) == len(diagnosis["distances"]) == 5
  assert len(diagnosis["bound_scale"]) == 41  # before each of URL's steps and after the last
  assert len(diagnosis["gap_ratio"]) == 41
  assert diagnosis["gap_ratio"][0] == 1.0


def test_url_learns_ten_times_slower_on_a_domain_that_its_backbone_has_seen(toy, diagnosis):
  found, drawn = toy
  seen = diagnose(found, drawn, np.zeros(1), seen=True)
  assert seen["gap"]["ncc"] == diagnosis["gap"]["ncc"]
  assert seen["gap"]["copa"] == diagnosis["gap"]["copa"]
  first = lambda result: result["bound_scale"][1] - result["bound_scale"][0]
  assert first(seen) == pytest.approx(0.1 * first(diagnosis), rel=0.1)


def test_the_figure_is_written(diagnosis, tmp_path):
  figures.plot_gap(tmp_path / "toy.png", "toy", diagnosis)
  assert (tmp_path / "toy.png").stat().st_size > 10_000
