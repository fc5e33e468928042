"""Which form is traced, and that the forms agree."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from mdtrap_jax.keys import row_keys
from mdtrap_jax.models import backend, cudnn_attention, fused_attention
from mdtrap_jax.models.attention import Attention, attention
from mdtrap_jax.models.lora import LoraConfig, init_factors
from mdtrap_jax.models.rope import Rope
from mdtrap_jax.models.transformer import Block, BlockConfig, Rows, init_blocks, run_blocks

WIDTH, ROWS = 16, Rows(tokens=5, filled=8)


def test_platform_is_that_of_the_mesh():
  assert backend.platform() == jax.default_backend()
  chip = AbstractDevice("TPU v5 lite", num_cores=1, platform="tpu")
  with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=chip)):
    assert backend.platform() == "tpu"
    assert backend.packs_rows(jnp.float32)
    assert backend.attention_form(jnp.float32, 64) == "library"


def test_forms_on_a_cpu():
  assert not any(backend.packs_rows(dtype) for dtype in (jnp.float32, jnp.bfloat16))
  dtypes = ("float32", "bfloat16", "float16")
  forms = {dtype: backend.attention_form(jnp.dtype(dtype), 64) for dtype in dtypes}
  assert forms == {"float32": "heads", "bfloat16": "library", "float16": "heads"}


def test_a_gpu_fuses_attention_where_its_cudnn_can(monkeypatch):
  card = AbstractDevice("NVIDIA H200", num_cores=None, platform="gpu")
  form = lambda dtype: backend.attention_form(jnp.dtype(dtype), 64)
  with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=card)):
    assert form("bfloat16") == "library"  # compiled for a card that is not here
    monkeypatch.setattr(cudnn_attention, "works", lambda head_dim, dtype: True)
    forms = [form(dtype) for dtype in ("float64", "float32", "bfloat16", "float16")]
    packed = [backend.packs_rows(jnp.dtype(dtype)) for dtype in ("float32", "bfloat16")]
  assert forms == ["heads", "library", "cudnn", "cudnn"]
  assert packed == [False, True]


def test_a_gpu_without_cudnn_attends_by_the_library(monkeypatch):
  monkeypatch.setattr(fused_attention, "fused_attention", None)  # the kernel for TPUs
  card = AbstractDevice("NVIDIA H200", num_cores=None, platform="gpu")
  layer = Attention(BlockConfig(WIDTH, 2, 24), rows=ROWS)
  qkv = jax.ShapeDtypeStruct((3 * ROWS.filled, 3 * WIDTH), jnp.bfloat16)
  attend = lambda qkv: layer.apply({}, qkv, method="attend")
  with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=card)):
    assert jax.eval_shape(attend, qkv).shape == (3 * ROWS.filled, WIDTH)


def test_without_cudnn_one_line_says_so(monkeypatch, caplog):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  cudnn_attention.works.cache_clear()
  assert not any(cudnn_attention.works(64, jnp.dtype(jnp.bfloat16)) for _ in range(3))
  assert caplog.text.count("attention is not fused") == 1
  cudnn_attention.works.cache_clear()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("tokens", [4, 5])  # cuDNN takes odd ones filled up by one
def test_what_cudnn_is_asked_for_is_attention(tokens, causal, monkeypatch):
  monkeypatch.setattr(cudnn_attention, "IMPLEMENTATION", "xla")
  arrays = jax.random.normal(jax.random.key(0), (4, 2, 3, tokens, WIDTH))  # two tasks

  def gradients(attend):
    loss = lambda arrays: jnp.sum(jnp.sin(attend(*arrays[:3]) * arrays[3]))
    return jax.jit(jax.vmap(jax.value_and_grad(loss), in_axes=1))(arrays)

  fused = gradients(lambda q, k, v: cudnn_attention.cudnn_attention(q, k, v, 2, causal, tokens))
  plain = gradients(lambda q, k, v: attention(q, k, v, 2, causal))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), fused, plain)


def test_fewer_queries_than_keys_are_not_for_cudnn(monkeypatch):
  """Such as an attention pool's one query, on any GPU."""
  q, k = jnp.ones((2, 1, WIDTH)), jnp.ones((2, 5, WIDTH))
  expected = attention(q, k, k, 2)
  monkeypatch.setattr(backend, "attention_form", lambda dtype, head_dim: "cudnn")
  monkeypatch.setattr(cudnn_attention, "IMPLEMENTATION", "xla")
  np.testing.assert_allclose(attention(q, k, k, 2), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
  ("projections", "device"), [(("q", "k", "v"), "gpu"), (("q", "v", "out"), "tpu")]
)
def test_packed_rows_give_what_images_do(projections, device, dtype, monkeypatch):
  if device == "gpu":
    monkeypatch.setattr(cudnn_attention, "IMPLEMENTATION", "xla")
    monkeypatch.setattr(Attention, "form", lambda self, dtype: "cudnn")
  config = BlockConfig(WIDTH, 2, 24, rope=Rope(grid=2, head_dim=8, class_token=True))
  lora = LoraConfig(rank=2, projections=projections)
  params = jax.tree.map(lambda x: x[0], init_blocks(jax.random.key(0), config, 1))
  factors = jax.tree.map(lambda x: x[0], init_factors(jax.random.key(1), lora, 1, WIDTH))
  factors = factors._replace(b=factors.b + 0.1)
  params = jax.tree.map(lambda x: x.astype(dtype), params)
  x = jax.random.normal(jax.random.key(2), (3, ROWS.tokens, WIDTH)).astype(dtype)
  keys = row_keys(jax.random.key(3), 3)

  def loss(factors, x, rows):
    block = Block(config, lora, frugal=rows is not None, rows=rows)
    packed = x if rows is None else rows.pack(x)
    out = block.apply({"params": params}, packed, factors, keys)
    out = out if rows is None else rows.unpack(out)
    return jnp.sum(jnp.sin(out.astype(jnp.float32))), out

  gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), static_argnums=2)
  ((_, out), gradients), ((_, packed), packed_gradients) = (
    gradient(factors, x, rows) for rows in (None, ROWS)
  )
  tolerance = 1e-4 if dtype == "float32" else 0.1
  np.testing.assert_allclose(packed, out, atol=tolerance)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=10 * tolerance, rtol=tolerance),
    packed_gradients,
    gradients,
  )


@pytest.mark.parametrize("packed", [False, True])
def test_tokens_that_nobody_wants_are_left_out_of_the_last_block(packed, monkeypatch):
  monkeypatch.setattr(backend, "packs_rows", lambda dtype: packed)
  config = BlockConfig(WIDTH, 2, 24)
  lora = LoraConfig(rank=2, projections=("q", "v", "out", "fc2"))
  params = init_blocks(jax.random.key(0), config, 2)
  factors = init_factors(jax.random.key(1), lora, 2, WIDTH, 24)
  factors = jax.tree.map(lambda leaf: leaf + 0.1, factors)
  x = jax.random.normal(jax.random.key(2), (3, ROWS.tokens, WIDTH))

  @functools.partial(jax.jit, static_argnums=1)
  def gradient(factors, first):
    def loss(factors):
      out = run_blocks(
        params, x, config, lora=lora, factors=factors, key=jax.random.key(3), first=first
      )[:, :2]
      return jnp.sum(jnp.sin(out)), out

    return jax.grad(loss, has_aux=True)(factors)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
    gradient(factors, 2),
    gradient(factors, None),
  )
