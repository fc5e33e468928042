"""The TPU's kernel, run operation by operation on the CPU, against `jax.nn`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdtrap_jax.models import attention_kernel
from mdtrap_jax.models.fused_attention import fits, fused_attention
from mdtrap_jax.models.rope import Rope, rotate

TOKENS, FILLED, HEADS, WIDTH = 5, 8, 2, 16
ROPE = Rope(grid=2, head_dim=8, class_token=True)


def expected(qkv, heads, causal, rope):
  q, k, v = jnp.split(qkv[:, :TOKENS], 3, axis=-1)
  q, k = (t if rope is None else rotate(t, rope) for t in (q, k))
  q, k, v = (part.reshape(*part.shape[:-1], heads, -1) for part in (q, k, v))
  out = jax.nn.dot_product_attention(q, k, v, is_causal=causal)
  return out.reshape(*out.shape[:2], -1)


def agrees(dtype, tolerance, causal, rope, heads=HEADS, width=WIDTH):
  """Value and gradient of two episodes' images against `jax.nn` in float32."""
  qkv = jax.random.normal(jax.random.key(0), (2, 3, FILLED, 3 * width)).astype(dtype)
  weight = jax.random.normal(jax.random.key(1), (2, 3, TOKENS, width))

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def ours(qkv):
    attend = lambda one: fused_attention(one, TOKENS, heads, causal, rope, interpret=True)
    out = jax.vmap(attend)(qkv)
    return jnp.sum(out[:, :, :TOKENS] * weight), out

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def theirs(qkv):
    out = jax.vmap(functools.partial(expected, heads=heads, causal=causal, rope=rope))(qkv)
    return jnp.sum(out * weight), out

  (_, out), gradient = ours(qkv)
  (_, out_expected), gradient_expected = theirs(qkv.astype(jnp.float32))
  assert out.dtype == gradient.dtype == dtype
  np.testing.assert_allclose(out[:, :, :TOKENS], out_expected, atol=tolerance)
  np.testing.assert_allclose(gradient, gradient_expected, atol=2.5 * tolerance)
  assert not out[:, :, TOKENS:].any()
  assert not gradient[:, :, TOKENS:].any()


@pytest.mark.parametrize("rope", [None, ROPE])
@pytest.mark.parametrize("causal", [False, True])
def test_value_and_gradient_of_mapped_episodes(causal, rope):
  agrees(jnp.bfloat16, 0.02, causal, rope)


@pytest.mark.parametrize("rope", [None, ROPE])
def test_to_all_digits_of_float32(rope):
  agrees(jnp.float32, 1e-5, False, rope)


@pytest.mark.parametrize(
  ("head_dim", "heads", "causal"),
  [(64, 6, False), (64, 2, True), (32, 4, True), (96, 3, False), (64, 3, False)],
)
def test_heads_that_share_registers_fill_them_or_lie_across(head_dim, heads, causal):
  rope = Rope(grid=2, head_dim=head_dim, class_token=True)
  agrees(jnp.float32, 1e-5, causal, rope, heads=heads, width=heads * head_dim)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("tile", [1, 2])  # which divide the tokens or leave a rest
def test_many_queries_come_by_tiles(tile, causal, monkeypatch):
  monkeypatch.setattr(attention_kernel, "WHOLE", 4)
  monkeypatch.setattr(attention_kernel, "TILE", tile)
  agrees(jnp.float32, 1e-5, causal, ROPE)


def test_what_fills_up_the_tiles_is_not_seen():
  qkv = jax.random.normal(jax.random.key(0), (1, FILLED, 3 * WIDTH)).astype(jnp.bfloat16)
  attend = jax.jit(lambda x: fused_attention(x, TOKENS, HEADS, False, ROPE, interpret=True))
  np.testing.assert_array_equal(attend(qkv), attend(qkv.at[:, TOKENS:].set(jnp.nan)))


def test_what_fits():
  assert fits(200, 768)  # ViT-B/16
  assert fits(584, 1024)  # ViT-L/14 at 336 pixels
  assert fits(1024, 1536, Rope(32, 96, class_token=False))  # PE-Core G14 at 448 pixels
  assert not fits(4096, 1536)
