"""Losses against hand-computed values and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from mdtrap_jax.objectives import losses


def test_cosine_cross_entropy_by_hand():
  embeddings = jnp.array([[3.0, 0.0], [0.0, 2.0]])
  prototypes = jnp.array([[5.0, 0.0], [0.0, 0.1]])
  # Cosines are 1 and 0, so each row is log(1 + exp(-s)) when right and that plus s when wrong.
  right = np.log1p(np.exp(-4.0))
  value = losses.cosine_cross_entropy(embeddings, prototypes, jnp.array([0, 0]), 4.0)
  np.testing.assert_allclose(value, (right + right + 4.0) / 2, rtol=1e-6)


def test_class_means_by_hand():
  embeddings = jnp.array([[1.0, 2.0], [3.0, 4.0], [50.0, 60.0]])
  membership = jnp.array([[1.0, 0, 0], [1, 0, 0], [0, 1, 0]])
  expected = [[2.0, 3.0], [50.0, 60.0], [0.0, 0.0]]
  np.testing.assert_allclose(losses.class_means(embeddings, membership), expected)


def test_relations_by_hand():
  image, clean = jnp.array([[2.0, 0.0], [1.0, 1.0]]), jnp.array([[0.0, 3.0]])
  np.testing.assert_allclose(
    losses.visual_relation(image, clean), [[0.0], [np.sqrt(0.5)]], atol=1e-7
  )
  text = jnp.array([[1.0, 0.0], [1.0, 1.0]])
  relation = losses.text_relation(text, jnp.array([0, 1, 1]), jnp.array([1, 0]))
  half = np.sqrt(0.5)
  np.testing.assert_allclose(relation, [[half, 1], [1, half], [1, half]], atol=1e-6)


def test_divergences_vanish_at_the_target_and_softmax_is_never_negative():
  target = jax.random.normal(jax.random.key(0), (4, 3))
  relation = jax.random.normal(jax.random.key(1), (4, 3))
  for divergence in losses.DIVERGENCES.values():
    assert abs(divergence(target, target)) < 1e-6
  assert losses.softmax_divergence(target, relation) > 0
  one, other = jnp.array([[1.0]]), jnp.array([[0.5]])
  np.testing.assert_allclose(losses.cosine_divergence(one, other), np.e * 0.5, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(losses.DIVERGENCES))
def test_softmax_divergence_matches_scipy_free_definition(name):
  target, relation = np.array([[0.3, -0.2]]), np.array([[0.1, 0.4]])
  if name == "softmax":
    p, q = (np.exp(x) / np.exp(x).sum() for x in (relation, target))
    expected = (p * np.log(p / q)).sum()
  else:
    expected = (np.exp(target) * (target - relation)).mean()
  ours = losses.DIVERGENCES[name](jnp.asarray(target), jnp.asarray(relation))
  np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_gradients_by_finite_differences():
  with jax.enable_x64(True):
    keys = jax.random.split(jax.random.key(0), 3)
    image, clean, text = (
      jax.random.normal(key, shape, jnp.float64)
      for key, shape in zip(keys, [(6, 4), (3, 4), (3, 4)], strict=True)
    )
    labels, clean_labels = jnp.array([0, 1, 2, 0, 1, 2]), jnp.arange(3)
    check_grads(
      lambda e, p: losses.cosine_cross_entropy(e, p, labels, 5.0),
      (image, text),
      order=1,
      modes=["rev"],
    )
    for divergence in losses.DIVERGENCES.values():
      check_grads(
        lambda e, c, t, d=divergence: d(
          losses.text_relation(t, labels, clean_labels), losses.visual_relation(e, c)
        ),
        (image, clean, text),
        order=1,
        modes=["rev"],
      )


def test_the_cosine_divergence_has_no_fixed_point():
  """Its gradient on the relation is `-exp(t) / NM`, whatever the relation is."""
  text = jnp.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
  labels = jnp.array([0, 1, 2, 0])
  target = losses.text_relation(text, labels, labels[:3])
  slope = jax.grad(losses.cosine_divergence, argnums=1)
  for relation in (target, jnp.zeros((4, 3)), -jnp.ones((4, 3))):
    np.testing.assert_allclose(slope(target, relation), -np.exp(target) / 12, rtol=1e-6)
  # Descent raises every cosine; that of one class by e, of two by exp(cosine of their texts).
  raised = -12 * slope(target, target)
  np.testing.assert_allclose(raised[0], np.exp([1.0, 0.6, 0.0]), rtol=1e-6)
  assert (raised > 0).all()
  # The divergence of distributions rests where the relation is the target, up to a constant a row.
  soft = jax.grad(losses.softmax_divergence, argnums=1)
  np.testing.assert_allclose(soft(target, target + jnp.ones((4, 1))), 0, atol=1e-7)
  assert jnp.abs(soft(target, jnp.zeros((4, 3)))).max() > 1e-2
