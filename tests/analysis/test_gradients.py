"""Gradients of single terms: their sum is the chain's, norms and cosines by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from mdtrap_jax.analysis import gradients
from mdtrap_jax.objectives.pull_back import zero_cotangents
from tests.episodes import row, small_adaptation, small_config, small_episodes


def test_norms_and_cosines_by_hand():
  found = gradients.compare(jnp.array([[3.0, 4.0], [4.0, 3.0], [0.0, 0.0]]))
  np.testing.assert_allclose(found.norm, [5, 5, 0])
  np.testing.assert_allclose(found.cosine[:2, :2], [[1, 0.96], [0.96, 1]], rtol=1e-6)
  assert np.isnan(found.cosine[2]).all()
  assert np.isnan(found.cosine[:, 2]).all()


def test_terms_add_up():
  method, params = small_adaptation(
    small_config(adapt__steps=5, adapt__views=2, objective__ra__window=(0, 5))
  )
  prepared, state = jax.jit(method.prepare)(params, row(small_episodes(method.model, 1), 0))
  assert list(method.terms) == ["vlm", "svl", "ra"]

  @jax.jit
  def follow(state):
    last, found = gradients.run(method, params, prepared, state, 0, 3, clean=True)
    rows = gradients.of_terms(method, params, prepared, last, 3, clean=True)
    forward = method.forward(params, prepared, last, 3, clean=True)
    # All terms one after the other, as the chain has them, and one pull-back.
    cotangent = zero_cotangents(forward["features"])
    for name, term in method.terms.items():
      cotangent, _ = term.update(cotangent, last.opt_state[name], last.params, **forward)
    (summed,) = forward["features_vjp"](cotangent)
    return found, rows, jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(summed)])

  found, rows, summed = follow(state)
  np.testing.assert_allclose(rows.sum(0), summed, rtol=1e-3, atol=1e-5 * np.abs(summed).max())
  assert found.norm.shape == (3, 3)
  assert (found.norm[0] > 0).tolist() == [True, True, False]  # RA starts after the first step
  assert np.isnan(found.cosine[0, 0, 2])
  assert (found.norm[1:] > 0).all()
