"""The TPU's kernels of layer norm and adapter, run on the CPU, against their plain forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdtrap_jax.keys import row_keys
from mdtrap_jax.models import fused_norm
from mdtrap_jax.models.fused_norm import Form, norm_and_input, norm_with_low, norm_with_low_plain
from mdtrap_jax.models.layers import normalize
from mdtrap_jax.models.lora import LoraConfig, init_factors, side_by_side

WIDTH, TOKENS, IMAGES, EPISODES, EPSILON = 24, 8, 3, 2, 1e-5


def agree(ours, theirs, tolerance=0.02):
  """Up to the rounding of bfloat16, by the largest of each array."""
  for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
    np.testing.assert_allclose(one, other, atol=tolerance * np.abs(other).max())


def arrays():
  """Of each episode `x`, factors `a` side by side; of the model scale and bias."""
  keys = jax.random.split(jax.random.key(0), 4)
  x = 2 + jax.random.normal(keys[0], (EPISODES, IMAGES, TOKENS, WIDTH))
  scale, bias = 1 + jax.random.normal(keys[1], (2, WIDTH)) / 4
  config = LoraConfig(rank=2)
  factors = jax.vmap(lambda key: init_factors(key, config, 1, WIDTH))(
    jax.random.split(keys[2], EPISODES)
  )
  factors = jax.tree.map(lambda leaf: leaf[:, 0], factors)
  a = jax.vmap(lambda own: side_by_side(own, config, jnp.bfloat16, range(3), 3, 128)[0])(factors)
  half = lambda leaf: leaf.astype(jnp.bfloat16)
  return half(x), half(scale), half(bias), half(a)


@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_norm_with_low_of_mapped_episodes(rate):
  x, scale, bias, a = arrays()
  keys = jax.vmap(lambda key: row_keys(key, IMAGES))(jax.random.split(jax.random.key(1), EPISODES))
  weight = jax.random.normal(jax.random.key(2), (1, 1, 1, WIDTH + a.shape[-1]))
  form = Form(EPSILON, rate, interpret=True)

  def loss(fn, dtype, x, scale, bias, a):
    x, scale, bias, a = (leaf.astype(dtype) for leaf in (x, scale, bias, a))
    over = jax.vmap(lambda x, a, keys: fn(form, x, scale, bias, a, keys))
    joined, direct = over(x, a, keys)
    return jnp.sum(jnp.sin(joined.astype(jnp.float32) * weight)) + jnp.sum(direct[..., 0]), joined

  plain = lambda form, x, *others: (norm_with_low_plain(form, x, *others), x)
  both = [
    jax.jit(jax.value_and_grad(functools.partial(loss, fn, dtype), range(4), has_aux=True))
    for fn, dtype in ((norm_with_low, jnp.bfloat16), (plain, jnp.float32))
  ]
  ((_, joined), gradients), ((_, expected), gradients_expected) = (
    one(x, scale, bias, a) for one in both
  )
  assert joined.dtype == gradients[0].dtype == jnp.bfloat16
  agree(joined, expected)
  # What is next to the factors is zero in any case: nobody asks for its gradient.
  shown = (a != 0).astype(jnp.float32)
  agree(
    (*gradients[:3], gradients[3] * shown), (*gradients_expected[:3], gradients_expected[3] * shown)
  )
  assert (joined[..., -1] == 1).all()


def test_a_row_has_its_own_masks_whatever_is_beside_it():
  x, scale, bias, a = arrays()
  keys = row_keys(jax.random.key(1), IMAGES)
  form = Form(EPSILON, 0.25, interpret=True)
  whole, _ = norm_with_low(form, x[0], scale, bias, a[0], keys)
  alone, _ = norm_with_low(form, x[0, 1:2], scale, bias, a[0], keys[1:2])
  np.testing.assert_array_equal(whole[1:2], alone)
  other, _ = norm_with_low(form, x[0, 1:2], scale, bias, a[0], keys[:1])
  assert (alone != other).any()


def test_norm_and_input(monkeypatch):
  monkeypatch.setattr(fused_norm, "ROWS", 16)  # the last tile is not full
  x, scale, bias, _ = arrays()
  rows = x.reshape(-1, WIDTH)
  form = Form(EPSILON, 0.0, interpret=True)

  def loss(fn, *arguments):
    normal, direct = fn(*arguments)
    return jnp.sum(jnp.sin(normal.astype(jnp.float32))) + jnp.sum(direct.astype(jnp.float32) ** 2)

  plain = lambda x, *weights: (normalize(EPSILON, x, *weights), x)
  gradient = lambda fn: jax.jit(jax.grad(functools.partial(loss, fn), range(3)))
  ours = gradient(functools.partial(norm_and_input, form))(rows, scale, bias)
  theirs = gradient(plain)(*(leaf.astype(jnp.float32) for leaf in (rows, scale, bias)))
  agree(ours, theirs)


def test_what_fits():
  assert fused_norm.fits(200, 768)  # ViT-B/16
  assert fused_norm.fits(1032, 1536)  # PE-Core G14 at 448 pixels
  assert not fused_norm.fits(4096, 1536)
