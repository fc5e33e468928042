"""The TPU's kernel, run operation by operation on the CPU, against `jax.nn`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdtrap_jax.models.fused_attention import fits, fused_attention

TOKENS, FILLED, HEADS, WIDTH = 5, 8, 2, 16


def expected(qkv, causal):
  q, k, v = (
    part.reshape(*part.shape[:-1], HEADS, -1) for part in jnp.split(qkv[:, :TOKENS], 3, axis=-1)
  )
  out = jax.nn.dot_product_attention(q, k, v, is_causal=causal)
  return out.reshape(*out.shape[:2], WIDTH)


@pytest.mark.parametrize("causal", [False, True])
def test_value_and_gradient_of_mapped_episodes(causal):
  qkv = jax.random.normal(jax.random.key(0), (2, 3, FILLED, 3 * WIDTH))
  weight = jax.random.normal(jax.random.key(1), (2, 3, TOKENS, WIDTH))
  half = qkv.astype(jnp.bfloat16)

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def ours(qkv):
    attend = lambda one: fused_attention(one, TOKENS, HEADS, causal, interpret=True)
    out = jax.vmap(attend)(qkv)
    return jnp.sum(out[:, :, :TOKENS] * weight), out

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def theirs(qkv):
    out = jax.vmap(functools.partial(expected, causal=causal))(qkv)
    return jnp.sum(out * weight), out

  (_, out), gradient = ours(half)
  (_, out_expected), gradient_expected = theirs(half.astype(jnp.float32))
  assert out.dtype == gradient.dtype == jnp.bfloat16
  np.testing.assert_allclose(out[:, :, :TOKENS], out_expected, atol=0.02)
  np.testing.assert_allclose(gradient, gradient_expected, atol=0.05)
  assert not out[:, :, TOKENS:].any()
  assert not gradient[:, :, TOKENS:].any()


def test_what_fills_up_the_tiles_is_not_seen():
  qkv = jax.random.normal(jax.random.key(0), (1, FILLED, 3 * WIDTH)).astype(jnp.bfloat16)
  attend = jax.jit(lambda x: fused_attention(x, TOKENS, HEADS, False, interpret=True))
  np.testing.assert_array_equal(attend(qkv), attend(qkv.at[:, TOKENS:].set(jnp.nan)))


def test_what_fits():
  assert fits(200, 768)  # ViT-B/16
  assert fits(584, 1024)  # ViT-L/14 at 336 pixels
  assert not fits(4096, 1536)
