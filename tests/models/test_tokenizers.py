import numpy as np
import pytest

from mdtrap_jax import checkpoints
from mdtrap_jax.models import build
from mdtrap_jax.models.text_stem import TextConfig
from mdtrap_jax.models.tokenizers import check_end
from mdtrap_jax.models.word_tokenizer import WordTokenizer

TEXTS = ["a photo of a Sea or Lake.", "Dermatofibroma, it's 3 mm wide!", "x"]


def test_hashed_words():
  model = build("clip-vit-b16")
  ids = model.tokenize(TEXTS)
  assert ids.shape == (3, 77)
  np.testing.assert_array_equal(ids, build("clip-vit-b16").tokenize(TEXTS))
  assert (ids.max(axis=1) == 49407).all()
  assert (ids[:, 0] == 49406).all()
  assert len(np.unique(ids, axis=0)) == 3
  long = model.tokenize(["word " * 200])
  assert long[0, -1] == 49407
  last = build("siglip-b16-224").tokenize(TEXTS)
  assert (last[:, -1] == 31999).all()


def text_config(**options):
  return TextConfig(context_length=4, vocabulary_size=10, **options)


@pytest.mark.parametrize(
  ("options", "ids", "end", "message"),
  [
    ({}, [[1, 5, 9, 0]], 9, None),
    ({}, [[1, 5, 9, 0]], None, None),
    ({"end_token": 5}, [[1, 5, 9, 0]], None, None),
    ({"end_token": 5}, [[1, 5, 9, 0]], 9, "at token 5 .*config.json.* is not 9"),
    ({"end_token": 7}, [[1, 5, 9, 0]], None, "at token 7 .*does not occur"),
    ({"end_token": 0}, [[1, 5, 9, 0]], 9, "at token 0"),  # occurs, as padding
    ({}, [[1, 5, 9, 0], [1, 9, 5, 0]], 5, "at token 9 .*largest id"),
    ({"end_token": 7, "pool": "last"}, [[1, 5, 9, 0]], None, None),
    ({}, [[1, 5, 10, 0]], None, "ids from 0 to 10, but .* 10 tokens"),
    ({}, [[1, 5, -1, 0]], None, "ids from -1"),
    ({}, [[1, 5, 9]], None, "not rows of 4"),
  ],
)
def test_end_of_the_text(options, ids, end, message):
  if message is None:
    check_end(np.array(ids), text_config(**options), end)
    return
  with pytest.raises(ValueError, match=message):
    check_end(np.array(ids), text_config(**options), end)


def test_a_miniature_loaded_twice_is_one_model():
  """Methods, and what is compiled for them, are shared by runs whose models are equal."""
  first, again = checkpoints.load("miniature")[0], checkpoints.load("miniature")[0]
  assert first == again
  assert hash(first) == hash(again)
  assert first.tokenize != WordTokenizer(first.tokenize.vocabulary, 3)
