"""Tokenizers from the files beside a checkpoint: equal to the originals, or one line."""

import io
import json
import os
import sys
import warnings

import numpy as np
import pytest

from mdtrap_jax.checkpoints import tokenizer_files
from mdtrap_jax.models.text_stem import TextConfig
from mdtrap_jax.models.word_tokenizer import WordTokenizer
from tests.checkpoints.tiny import MERGES, byte_level_vocabulary, write_tokenizer

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
TEXTS = ["a photo of a Sea or Lake.", "Dermatofibroma, it's 3 mm wide!", "x"]


@pytest.fixture
def clip_folder(tmp_path):
  vocabulary = byte_level_vocabulary("<|startoftext|>", "<|endoftext|>")
  transformers.CLIPTokenizer(vocab=vocabulary, merges=MERGES).save_pretrained(tmp_path)
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


def load(folder, family, length, vocabulary_size=10**6, **options):
  pool = "last" if family.startswith("siglip") else "end"
  text = TextConfig(context_length=length, vocabulary_size=vocabulary_size, pool=pool, **options)
  return tokenizer_files.read_tokenizer(folder, family, text)


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


def test_tokenizers_of_the_same_files_are_equal(clip_folder):
  """So are models loaded twice, which share what is compiled for them."""
  first, again = load(clip_folder, "clip", 8), load(clip_folder, "clip", 8)
  assert first == again
  assert hash(first) == hash(again)
  assert first != load(clip_folder, "clip", 9)
  assert first != load(clip_folder, "clip", 8, vocabulary_size=10**5)
  path = next(clip_folder.glob("tokenizer.json"))
  path.write_text(path.read_text() + "\n")
  assert first != load(clip_folder, "clip", 8)


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
  with pytest.raises(ValueError, match="belong to different checkpoints"):
    load(clip_folder, "clip", 77, vocabulary_size=300)


def test_word_tokenizer_folder(tmp_path):
  vocabulary = ("<pad>", "<start>", "<unk>", "a", "of", "photo", "<end>")
  settings = {"vocabulary": vocabulary, "context_length": 8}
  (tmp_path / tokenizer_files.WORDS).write_text(json.dumps(settings))
  tokenize = load(tmp_path, "clip", 8, vocabulary_size=7)
  expected = WordTokenizer(vocabulary, 8)(["a photo"])
  np.testing.assert_array_equal(tokenize(["a photo"]), expected)


@pytest.mark.parametrize("text", [*TEXTS, "É  naïve_name 42's\n日本", ""])
def test_vocabulary_and_merges_agree_with_transformers(tmp_path, text):
  write_tokenizer(tmp_path)
  vocabulary = json.loads((tmp_path / "vocab.json").read_text())
  expected = transformers.CLIPTokenizer(vocab=vocabulary, merges=MERGES)(text)["input_ids"]
  ids = load(tmp_path, "clip", 77)([text])[0]
  assert ids[: len(expected)].tolist() == expected
  assert not ids[len(expected) :].any()


def test_code_of_a_checkpoint_is_never_run(tmp_path, caplog, monkeypatch):
  write_tokenizer(tmp_path)
  (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil:\n  pass\n")
  settings = {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"}
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
  (tmp_path / "config.json").write_text(json.dumps(settings | {"model_type": "evil"}))
  monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
  with pytest.raises(ValueError, match=r"tokenizer_config\.json.*auto_map.*never done"):
    load(tmp_path, "clip", 77)
  vocabulary = json.loads((tmp_path / "vocab.json").read_text())
  fast = transformers.CLIPTokenizer(vocab=vocabulary, merges=MERGES).backend_tokenizer
  fast.save(str(tmp_path / "tokenizer.json"))
  assert load(tmp_path, "clip", 77)(["a photo"])[0, 1] == vocabulary["a</w>"]
  assert [record.getMessage() for record in caplog.records if "auto_map" in record.getMessage()]
  assert sys.stdin.read() == "y\n" * 9  # nobody asked
  assert not (tmp_path / "ran").exists()
  assert "evil" not in sys.modules


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_half_of_the_files(tmp_path, name):
  write_tokenizer(tmp_path)
  (tmp_path / name).unlink()
  with pytest.raises(FileNotFoundError, match=rf"but not {name}"):
    load(tmp_path, "clip", 77)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "merges.txt", "spiece.model"])
def test_pointers_of_git_lfs(tmp_path, name):
  write_tokenizer(tmp_path)
  (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
  with pytest.raises(ValueError, match=rf"{name} is a pointer of git-lfs"):
    load(tmp_path, "clip", 77)


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("tokenizer.json", "{", r"tokenizer\.json: truncated or damaged"),
    ("tokenizer.json", "{}", r"tokenizer\.json: truncated or damaged"),
    ("tokenizer.json", "[" * 100_000, r"tokenizer\.json: truncated or damaged"),
    ("vocab.json", '{"a": -1}', r"vocab\.json: .*number"),
    ("vocab.json", '{"a": 1, "a": 2}', r"vocab\.json: .*'a' is given twice"),
    ("vocab.json", '["a"]', r"vocab\.json: .*number"),
    ("vocab.json", '{"a": 0}', r"merges\.txt: truncated or damaged"),
    ("merges.txt", "a b c\n", r"merges\.txt: .*no pair"),
    ("tokenizer_config.json", "[", r"tokenizer_config\.json: truncated or damaged"),
    (tokenizer_files.WORDS, "[]", rf"{tokenizer_files.WORDS}: truncated or damaged"),
    (tokenizer_files.WORDS, '{"vocabulary": 3, "context_length": 8}', "no list of words"),
    (tokenizer_files.WORDS, '{"vocabulary": [], "context_length": 1e99}', "context_length=1e"),
    (tokenizer_files.WORDS, '{"vocabulary": [3], "context_length": 8}', "no list of words"),
    (tokenizer_files.WORDS, '{"vocabulary": ["a"], "context_length": 8}', "lacks"),
    (tokenizer_files.HASH, '{"vocabulary_size": 0, "context_length": 8}', "damaged"),
  ],
)
def test_damaged_files(tmp_path, name, content, message):
  write_tokenizer(tmp_path)
  (tmp_path / name).write_text(content)
  with pytest.raises(ValueError, match=message) as caught:
    load(tmp_path, "clip", 77)
  assert "\n" not in str(caught.value)


def test_word_tokenizer_of_another_length(tmp_path):
  settings = {"vocabulary": ["<pad>", "<start>", "<unk>", "<end>"], "context_length": 9}
  (tmp_path / tokenizer_files.WORDS).write_text(json.dumps(settings))
  with pytest.raises(ValueError, match="not rows of 8"):
    load(tmp_path, "clip", 8, vocabulary_size=4)


@pytest.mark.parametrize("end", [0, 5, 516])
def test_end_token_that_the_tokenizer_does_not_put(tmp_path, end):
  write_tokenizer(tmp_path)
  assert load(tmp_path, "clip", 12, 518, end_token=517).end == 517
  with pytest.raises(ValueError, match=rf"end of a text at token {end} \(eos_token_id"):
    load(tmp_path, "clip", 12, 518, end_token=end)


def test_sentencepiece_is_asked_for_by_name(tmp_path, monkeypatch):
  (tmp_path / "spiece.model").write_bytes(b"pieces")
  monkeypatch.setitem(sys.modules, "sentencepiece", None)
  with pytest.raises(ValueError, match=r"spiece\.model needs .*`pip install sentencepiece`"):
    load(tmp_path, "siglip", 64)


def test_sentencepieces(tmp_path):
  sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
  sentences = iter(["a photo of a cat", "a photo of a dog", "the end of it all"] * 50)
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=sentences,
    model_prefix=str(tmp_path / "spiece"),
    vocab_size=18,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
  )
  theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
  ids = load(tmp_path, "siglip", 40)(["A photo of a CAT!"])
  expected = theirs.encode("a photo of a cat")
  assert ids[0, : len(expected) + 1].tolist() == [*expected, 1]
  (tmp_path / "spiece.model").write_bytes(b"pieces")
  with pytest.raises(ValueError, match=r"spiece\.model: truncated or damaged"):
    load(tmp_path, "siglip", 40)


def test_a_pipe_is_not_read(tmp_path):
  os.mkfifo(tmp_path / "tokenizer.json")
  with pytest.raises(ValueError, match=r"tokenizer\.json is a pipe"):
    load(tmp_path, "clip", 77)
