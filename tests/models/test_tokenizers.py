import json
import warnings

import numpy as np
import pytest

from mdtrap_jax.models import build, tokenizers

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
TEXTS = ["a photo of a Sea or Lake.", "Dermatofibroma, it's 3 mm wide!", "x"]


def byte_level_vocabulary(*special):
  from tokenizers.pre_tokenizers import ByteLevel

  letters = sorted(ByteLevel.alphabet())
  tokens = [
    *letters,
    *(letter + "</w>" for letter in letters),
    "ph",
    "pho",
    "phot",
    "photo</w>",
    *special,
  ]
  return {token: i for i, token in enumerate(tokens)}


@pytest.fixture
def clip_folder(tmp_path):
  vocabulary = byte_level_vocabulary("<|startoftext|>", "<|endoftext|>")
  merges = [("p", "h"), ("ph", "o"), ("pho", "t"), ("phot", "o</w>")]
  transformers.CLIPTokenizer(vocab=vocabulary, merges=merges).save_pretrained(tmp_path)
  return tmp_path


def gemma_vocabulary():
  pieces = [
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<mask>",
    "▁",
    *(chr(i) for i in range(33, 127)),
    "ph",
    "pho",
  ]
  return {piece: i for i, piece in enumerate(pieces)}


def load(folder, family, length, vocabulary_size=10**6):
  return tokenizers.from_folder(
    folder, family, context_length=length, vocabulary_size=vocabulary_size
  )


@pytest.mark.parametrize(("family", "length"), [("clip", 77), ("pe-core", 32)])
def test_clip_agrees_with_transformers(clip_folder, family, length):
  ids = load(clip_folder, family, length)(TEXTS)
  theirs = transformers.CLIPTokenizer.from_pretrained(clip_folder)
  assert ids.shape == (3, length)
  assert ids.dtype == np.int32
  for row, text in zip(ids, TEXTS, strict=True):
    expected = theirs(text)["input_ids"]
    assert row[: len(expected)].tolist() == expected
    assert not row[len(expected) :].any()  # OpenAI's padding
    assert row.argmax() == len(expected) - 1


def test_too_long_text_keeps_the_end_token_and_warns_once(clip_folder):
  tokenize = load(clip_folder, "clip", 8)
  with pytest.warns(UserWarning, match="longer than 8 tokens"):
    ids = tokenize([TEXTS[0]])
  assert ids[0, -1] == ids.max()
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    np.testing.assert_array_equal(tokenize([TEXTS[0]]), ids)


def test_siglip2_agrees_with_transformers(tmp_path):
  theirs = transformers.Siglip2Tokenizer(vocab=gemma_vocabulary(), merges=[("p", "h"), ("ph", "o")])
  theirs.save_pretrained(tmp_path)
  ids = load(tmp_path, "siglip2", 64)(TEXTS)
  for row, text in zip(ids, TEXTS, strict=True):
    expected = [*theirs(text, add_special_tokens=False)["input_ids"], 1]
    assert row[: len(expected)].tolist() == expected
    assert not row[len(expected) :].any()


def test_siglip_cleans_the_text_and_pads_with_the_end(tmp_path):
  from tokenizers import Tokenizer, models, pre_tokenizers

  words = ["</s>", "<unk>", "dermatofibroma", "its", "3", "mm", "wide"]
  vocabulary = {word: i for i, word in enumerate(words)}
  tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
  tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  tokenizer.save(str(tmp_path / "tokenizer.json"))
  ids = load(tmp_path, "siglip", 9)([TEXTS[1]])
  assert ids.tolist() == [[2, 3, 4, 5, 6, 0, 0, 0, 0]]


def test_missing_files_are_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"tokenizer\.json.*openai/clip"):
    load(tmp_path, "clip", 77)


def test_tokenizer_of_another_family(clip_folder):
  with pytest.raises(ValueError, match=r"no token '</s>'.*google/siglip"):
    load(clip_folder, "siglip", 64)


def test_tokenizer_of_a_larger_vocabulary(clip_folder):
  tokenize = load(clip_folder, "clip", 77, vocabulary_size=300)
  with pytest.raises(ValueError, match="belong to different checkpoints"):
    tokenize(TEXTS)


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


def test_word_tokenizer_folder(tmp_path):
  word_tokenizer = pytest.importorskip(
    "mdtrap_jax.models.word_tokenizer", reason="this build has no word tokenizer"
  )
  vocabulary = ("<pad>", "<start>", "<unk>", "a", "of", "photo", "<end>")
  settings = {"vocabulary": vocabulary, "context_length": 8}
  (tmp_path / tokenizers.WORD_TOKENIZER_FILE).write_text(json.dumps(settings))
  tokenize = load(tmp_path, "clip", 8)
  expected = word_tokenizer.WordTokenizer(vocabulary, 8)(["a photo"])
  np.testing.assert_array_equal(tokenize(["a photo"]), expected)
