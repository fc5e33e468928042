import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdtrap_jax.models.rope import Rope, rotate


def test_equals_complex_multiplication():
  rope, heads = Rope(grid=3, head_dim=8, class_token=True), 2
  x = jax.random.normal(jax.random.key(0), (2, 10, 16))
  turned = np.asarray(rotate(x, rope)).reshape(2, 10, heads, 4, 2)
  pairs = np.asarray(x).reshape(2, 10, heads, 4, 2)
  frequency = np.array([1.0, 10_000 ** (-2 / 4)])
  for token in range(10):
    row, column = divmod(token - 1, 3)
    angle = np.concatenate([(column + 1) * frequency, (row + 1) * frequency])
    factor = np.exp(1j * angle) if token else np.ones(4)
    expected = (pairs[:, token, :, :, 0] + 1j * pairs[:, token, :, :, 1]) * factor
    np.testing.assert_allclose(turned[:, token, :, :, 0], expected.real, atol=1e-5)
    np.testing.assert_allclose(turned[:, token, :, :, 1], expected.imag, atol=1e-5)


@pytest.mark.parametrize("class_token", [False, True])
def test_products_depend_on_the_distance_alone(class_token):
  rope = Rope(grid=4, head_dim=8, class_token=class_token)
  q, k = (jax.random.normal(jax.random.key(i), (1, 1, 8)) for i in range(2))
  shape = (1, rope.tokens, 8)
  q, k = (rotate(jnp.broadcast_to(t, shape), rope)[0] for t in (q, k))
  products = (q @ k.T)[class_token:, class_token:].reshape(4, 4, 4, 4)
  np.testing.assert_allclose(products[0, 0, 1, 2], products[2, 1, 3, 3], atol=1e-4)
  np.testing.assert_allclose(products[3, 3, 0, 1], products[3, 2, 0, 0], atol=1e-4)


def test_keeps_the_dtype():
  rope = Rope(grid=2, head_dim=8, class_token=False)
  assert rotate(jnp.ones((1, 4, 8), jnp.bfloat16), rope).dtype == jnp.bfloat16
