"""A prefix that rows share is computed once, and nothing else changes."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdtrap_jax.models import Specification, backend, build, shared_prefix, vlm
from mdtrap_jax.models.families import siglip
from mdtrap_jax.models.image_stem import ImageConfig
from mdtrap_jax.models.text_stem import TextConfig
from mdtrap_jax.models.vlm import Prompts

WIDTH, LENGTH, END = 32, 12, 63
SHAPE = dict(width=WIDTH, depth=2, heads=2, mlp_width=48, embed_dim=16)
CAUSAL = TextConfig(context_length=LENGTH, vocabulary_size=END + 1, **SHAPE)
BOTH_WAYS = siglip.text_config(LENGTH, END + 1, **SHAPE)


@functools.cache
def built(text=CAUSAL):
  """A model, and weights with biases and norms that are not 0 and 1."""
  model = build(Specification("clip", ImageConfig(16, 8, **SHAPE), text))
  rng, shapes = np.random.default_rng(0), jax.eval_shape(model.init, jax.random.key(0))
  return model, jax.tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape), shapes)


def classes(rng, at, context, names):
  """Token ids: `at` and `context` places that are the same, a name of each length, the end."""
  ids = np.zeros((len(names), at + context + max(names) + 1), np.int32)
  ids[:, :at] = rng.integers(1, END, at)
  for row, length in zip(ids, names, strict=True):
    row[at + context :][: length + 1] = [*rng.integers(1, END, length), END]
  return ids


def encode(at, whole, params, ids, prompts):
  """Embeddings; a context for each row, all alike, is what keeps the rows `whole`."""
  model, _ = built()
  if whole:
    first = jnp.broadcast_to(prompts.first[None], (len(ids), *prompts.first.shape))
    prompts = prompts._replace(first=first)
  return model.encode_text(params, ids, prompts=prompts, at=at)


def with_gradient(at, whole, params, ids, prompts, weights):
  """Embeddings, and the gradient of some function of them."""
  embeddings, pull_back = jax.vjp(lambda p: encode(at, whole, params, ids, p), prompts)
  return embeddings, pull_back(jnp.cos(embeddings) * weights)


@functools.partial(jax.jit, static_argnums=0)
def all_ways(at, *arguments):
  """By whole rows and by shared prefix, all together or each row apart; and the last row alone."""
  params, ids, prompts, _ = arguments
  found = [with_gradient(at, True, *arguments), with_gradient(at, False, *arguments)]
  with mock.patch.object(shared_prefix, "TOGETHER", 0):
    found.append(with_gradient(at, False, *arguments))
  return *found, encode(at, False, params, ids[-1:], prompts)


@pytest.mark.parametrize(
  ("at", "context", "deeper", "names"),
  [(0, 1, 0, [3]), (1, 4, 1, [2, 4, 1]), (2, 3, 0, [1, 1])],
)
def test_gives_what_whole_rows_do(at, context, deeper, names):
  rng = np.random.default_rng(0)
  ids = classes(rng, at, context, names)
  with jax.enable_x64(True):
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape))
    prompts = Prompts(draw(context, WIDTH), draw(deeper, context, WIDTH) if deeper else None)
    params = jax.tree.map(jnp.asarray, built()[1])
    expected, together, apart, alone = all_ways(at, params, ids, prompts, draw(len(ids), 16))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-10)
    jax.tree.map(close, together, expected)
    jax.tree.map(close, apart, expected)
    close(alone, expected[0][-1:])


@pytest.mark.parametrize(
  ("dtype", "packed"), [("float32", True), ("bfloat16", True), ("float16", False)]
)
def test_in_any_precision_and_packed(dtype, packed, monkeypatch):
  monkeypatch.setattr(backend, "packs_rows", lambda dtype: packed)
  model, params = built()
  rng = np.random.default_rng(1)
  ids = np.stack([classes(rng, 1, 3, [2, 1, 3]) for _ in range(2)])  # of two episodes
  prompts = Prompts(rng.standard_normal((2, 3, WIDTH)), rng.standard_normal((2, 1, 3, WIDTH)))
  params, prompts = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (params, prompts))
  all_episodes = jax.vmap(functools.partial(all_ways, 1), in_axes=(None, 0, 0, None))
  expected, together, apart, _ = all_episodes(params, ids, prompts, jnp.ones((1, 1), dtype))
  tolerance = 1e-4 if dtype == "float32" else 0.1

  def close(a, b):
    assert a.dtype == dtype
    wide = np.asarray(b, np.float32)
    np.testing.assert_allclose(np.asarray(a, np.float32), wide, atol=tolerance * abs(wide).max())

  jax.tree.map(close, together, expected)
  jax.tree.map(close, apart, expected)


@pytest.mark.parametrize(
  ("text", "per_class", "dropout", "rows"),
  [
    (CAUSAL, False, False, (1, 4 + 5 * 3)),
    (CAUSAL, True, False, (5, 7)),
    (CAUSAL, False, True, (5, 7)),
    (BOTH_WAYS, False, False, (5, LENGTH)),
  ],
)
def test_who_shares_what(text, per_class, dropout, rows, monkeypatch):
  model, params = built(text)
  params = jax.tree.map(np.float32, params)
  seen = []

  def run_blocks(params, tokens, config, **options):
    seen.append((tokens.shape[:2], options["at"]))
    return tokens

  monkeypatch.setattr(vlm, "run_blocks", run_blocks)
  first = np.zeros((5, 3, WIDTH) if per_class else (3, WIDTH), np.float32)
  ids = np.zeros((5, 7 if text.cuts else LENGTH), np.int32)
  key = jax.random.key(0) if dropout else None
  encode = lambda: model.encode_text(params, ids, key=key, prompts=Prompts(first, None), at=1)
  assert jax.eval_shape(encode).shape == (5, 16)
  assert seen == [(rows, 1)]
