"""Texts in batches: as each alone, by one program that never sees more rows than it may."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdtrap_jax.models.text_batches import encode_texts
from mdtrap_jax.models.text_stem import TextConfig, TextStem

SHAPES = []  # of the batches that were traced


class Model(NamedTuple):
  """A text encoder of one table."""

  text: TextConfig

  def encode_text(self, params, token_ids):
    SHAPES.append(token_ids.shape)
    return params[token_ids].sum(axis=1)


@pytest.fixture
def model():
  SHAPES.clear()
  return Model(TextConfig(context_length=3, vocabulary_size=50, width=8, heads=2, embed_dim=8))


@pytest.fixture(scope="module")
def params():
  return jnp.asarray(np.random.default_rng(0).standard_normal((50, 8)), jnp.float16)


@pytest.mark.parametrize("count", [1, 4, 7, 8, 9, 20])
def test_rows_equal_those_encoded_alone(model, params, count):
  ids = np.random.default_rng(count).integers(0, 50, (count, 3))
  embeddings = encode_texts(model, params, ids, batch_size=4)
  assert embeddings.shape == (count, 8)
  assert embeddings.dtype == np.float32
  assert all(rows <= 4 for rows, _ in SHAPES)
  alone = [encode_texts(model, params, ids[i : i + 1])[0] for i in range(count)]
  np.testing.assert_array_equal(embeddings, alone)


def test_one_program_for_all_batches(params):
  SHAPES.clear()
  text = TextConfig(context_length=3, vocabulary_size=50, width=16, heads=2, embed_dim=8)
  encode_texts(Model(text), params, np.zeros((11, 3), int), batch_size=5)
  assert SHAPES == [(5, 3)]


def test_no_texts_and_no_batch(model, params):
  assert encode_texts(model, params, np.zeros((0, 3), int)).shape == (0, 8)
  with pytest.raises(ValueError, match="batch_size=0"):
    encode_texts(model, params, np.zeros((2, 3), int), batch_size=0)


def test_rows_without_their_end_token_have_no_embedding():
  """Pooled at the first token instead, they would be scored at chance without a word."""
  config = TextConfig(
    context_length=3, vocabulary_size=9, width=4, heads=2, embed_dim=4, end_token=7
  )
  stem, ids = TextStem(config), jnp.array([[1, 7, 0], [1, 8, 0]])
  shapes = jax.eval_shape(stem.init, jax.random.key(0), ids)
  params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
  embeddings = np.asarray(jax.jit(stem.apply)(params, ids))
  assert np.isfinite(embeddings[0]).all()
  assert np.isnan(embeddings[1]).all()
