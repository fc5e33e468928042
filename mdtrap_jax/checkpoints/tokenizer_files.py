"""The tokenizer whose files lie beside a checkpoint's weights, and its files when it is saved.

Tokenizers are made here from their data alone: a published folder may name classes of its own
(`auto_map` in `tokenizer_config.json`), and no code from a checkpoint is ever run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from mdtrap_jax.checkpoints.formats.arrays import (
  UnusableFileError,
  check_content,
  read_json,
  reading,
)
from mdtrap_jax.models.text_stem import TextConfig
from mdtrap_jax.models.tokenizers import (
  CONVENTIONS,
  HashTokenizer,
  PretrainedTokenizer,
  Vocabulary,
  check_end,
)
from mdtrap_jax.models.word_tokenizer import WordTokenizer

WORDS, HASH = "word_tokenizer.json", "hash_tokenizer.json"  # of this library
SETTINGS = "tokenizer_config.json"
_SENTENCE_PIECES = ("spiece.model", "tokenizer.model")
_PUBLISHED = ("tokenizer.json", "vocab.json", "merges.txt", *_SENTENCE_PIECES)
TOKENIZER_FILES = (WORDS, HASH, *_PUBLISHED, SETTINGS, "special_tokens_map.json")

Tokenize = Callable[[Sequence[str]], np.ndarray]  # n texts to ids [n, L] int32


def read_tokenizer(folder: Path, family: str, text: TextConfig) -> Tokenize:
  """The tokenizer of a folder, tried on one prompt.

  Args:
    folder: of the checkpoint.
    family: of `families.FAMILIES`.
    text: the text encoder, whose end token and vocabulary must be the tokenizer's.

  Raises:
    FileNotFoundError: the folder has no tokenizer files, or only half of them.
    ValueError: the files are damaged, of another family or of another checkpoint, or need a
      package that is not installed.
  """
  names = [name for name in TOKENIZER_FILES if (folder / name).exists()]
  for name in names:
    check_content(folder / name)
  _refuse_code(folder, names)
  if WORDS in names or HASH in names:
    path = folder / (WORDS if WORDS in names else HASH)
    tokenize, probe = _own(path), ""  # its words are its own
  else:
    path, vocabulary = _published(folder, names, family)
    probe = "a cat"
    kept = {name: folder / name for name in names}  # transformers may need others than we do
    with reading(path):
      tokenize = PretrainedTokenizer(
        vocabulary, CONVENTIONS[family], text.context_length, text.vocabulary_size, kept
      )
  try:
    check_end(tokenize([probe]), text, getattr(tokenize, "end", None))
  except ValueError as error:
    raise UnusableFileError(f"{path}: {error}") from error
  return tokenize


def tokenizer_contents(tokenize: Tokenize | None) -> dict[str, bytes]:
  """What `read_tokenizer` needs to make this tokenizer again, by the files' names.

  Raises:
    OSError: the files that it was read from are gone.
    ValueError: it is a function of the user's own.
  """
  if tokenize is None:
    return {}
  if isinstance(tokenize, PretrainedTokenizer):
    return {name: path.read_bytes() for name, path in tokenize.files.items()}
  others: dict[str, bytes] = {}
  if isinstance(tokenize, WordTokenizer):
    name, others = WORDS, _for_transformers(tokenize)
    fields = {
      "vocabulary": list(tokenize.vocabulary),
      "context_length": tokenize.context_length,
    }
  elif isinstance(tokenize, HashTokenizer):
    name = HASH
    fields = {
      "vocabulary_size": tokenize.vocabulary_size,
      "context_length": tokenize.context_length,
      "end_last": tokenize.end_last,
    }
  else:
    raise ValueError(
      f"the tokenizer {tokenize!r:.100} is a function of your own, which no file can hold. Save "
      "`dataclasses.replace(model, tokenize=None)`, and give `tokenize=` to `load` again."
    )
  return {name: (json.dumps(fields, indent=2) + "\n").encode(), **others}


def _for_transformers(tokenize: WordTokenizer) -> dict[str, bytes]:
  """The same tokenizer for transformers, padding and cutting included; not read by us."""
  from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

  ids = {word: number for number, word in enumerate(tokenize.vocabulary)}
  start, end, pad, unknown = "<start>", "<end>", "<pad>", "<unk>"
  tokenizer = Tokenizer(models.WordLevel(ids, unk_token=unknown))
  tokenizer.normalizer = normalizers.Lowercase()
  words = Regex(r"[^\W_]+")
  tokenizer.pre_tokenizer = pre_tokenizers.Split(words, behavior="removed", invert=True)
  marks = [(mark, ids[mark]) for mark in (start, end)]
  tokenizer.post_processor = processors.TemplateProcessing(f"{start} $A {end}", None, marks)
  tokenizer.enable_truncation(tokenize.context_length)
  tokenizer.enable_padding(pad_id=ids[pad], pad_token=pad, length=tokenize.context_length)
  settings = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": tokenize.context_length,
    "bos_token": start,
    "eos_token": end,
    "pad_token": pad,
    "unk_token": unknown,
  }
  return {
    "tokenizer.json": tokenizer.to_str(pretty=True).encode(),
    SETTINGS: (json.dumps(settings, indent=2) + "\n").encode(),
  }


def _refuse_code(folder: Path, names: list[str]) -> None:
  """Says that classes which a folder brings along are not used; stops where they are needed."""
  settings = read_json(folder / SETTINGS) if SETTINGS in names else {}
  if not isinstance(settings, dict) or "auto_map" not in settings:
    return
  if "tokenizer.json" not in names:
    raise UnusableFileError(
      f"{folder / SETTINGS} wants code of the checkpoint to be run (auto_map), which is never "
      "done. Put the tokenizer.json of the same tokenizer beside it."
    )
  logging.warning(
    "%s wants code of the checkpoint to be run (auto_map), which is never done; tokenizer.json "
    "alone is used.",
    folder / SETTINGS,
  )


def _own(path: Path) -> Tokenize:
  """A tokenizer of this library from its settings."""
  settings = read_json(path)
  with reading(path):
    # Beyond any text encoder's numbers a row of ids would not fit into memory.
    length = settings["context_length"]
    if type(length) is not int or not 0 < length <= 2**16:
      raise ValueError(f"context_length={length!r:.40}")
    if path.name == HASH:
      size, end_last = settings["vocabulary_size"], settings["end_last"]
      if type(size) is not int or not 4 <= size < 2**31 or type(end_last) is not bool:
        raise ValueError(f"vocabulary_size={size!r:.40}, end_last={end_last!r:.40}")
      return HashTokenizer(size, length, end_last)
    words = settings["vocabulary"]
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
      raise ValueError("vocabulary is no list of words")
    return WordTokenizer(tuple(words), length)


def _published(folder: Path, names: list[str], family: str) -> tuple[Path, Vocabulary]:
  """The file, and what it holds."""
  if "tokenizer.json" in names:
    path = folder / "tokenizer.json"
    return path, _rust(path)
  pieces = [name for name in _SENTENCE_PIECES if name in names]
  if pieces:
    path = folder / pieces[0]
    return path, _sentence_pieces(path)
  if "vocab.json" in names and "merges.txt" in names:
    path = folder / "merges.txt"
    return path, _byte_pairs(folder / "vocab.json", path)
  source = CONVENTIONS[family].source
  for there, missing in (("vocab.json", "merges.txt"), ("merges.txt", "vocab.json")):
    if there in names:
      raise FileNotFoundError(
        f"{folder} has {there} but not {missing}, which belongs to it: put both there, or "
        f"tokenizer.json instead (for example that of {source} on the Hugging Face hub, if its "
        "vocabulary is the model's)."
      )
  raise FileNotFoundError(
    f"{folder} has no tokenizer: put the tokenizer.json that the model was trained with (or "
    "vocab.json and merges.txt, or spiece.model) beside the weights, or give `tokenize=` to "
    f"`load`; published models of this family have that of {source} on the Hugging Face hub."
  )


def _rust(path: Path) -> Vocabulary:
  from tokenizers import Tokenizer

  read_json(path)  # for messages that say where; Tokenizer's name a line of its own code
  tokenizer = _guarded(path, lambda: Tokenizer.from_file(str(path)))
  return _vocabulary(path, tokenizer)


def _byte_pairs(vocabulary_path: Path, merges_path: Path) -> Vocabulary:
  """CLIP's byte-pair encoding from its two files, as `transformers.CLIPTokenizer` builds it."""
  from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

  ids = read_json(vocabulary_path)
  with reading(vocabulary_path):
    if not isinstance(ids, dict) or not all(
      type(number) is int and 0 <= number < 2**31 for number in ids.values()
    ):
      raise ValueError("it does not give every token a number")
  with reading(merges_path):
    lines = merges_path.read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in merges):
      raise ValueError("a line that is no pair")

  def build() -> Tokenizer:
    end = CONVENTIONS["clip"].end
    model = models.BPE(vocab=ids, merges=merges, end_of_word_suffix="</w>", unk_token=end)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
      [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(
      r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|"
      r"[^\s\p{L}\p{N}]+"
    )
    split = pre_tokenizers.Split(words, behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
      [split, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer

  return _vocabulary(merges_path, _guarded(merges_path, build))


def _vocabulary(path: Path, tokenizer: Any) -> Vocabulary:
  tokenizer.no_padding()
  tokenizer.no_truncation()

  def encode(text: str) -> list[int]:
    return _guarded(path, lambda: tokenizer.encode(text, add_special_tokens=False).ids)

  return Vocabulary(encode, tokenizer.token_to_id)


def _guarded(path: Path, call: Callable[[], Any]) -> Any:
  """A call into Rust; its panics are no `Exception`, and would pass every handler."""
  with reading(path):
    try:
      return call()
    except BaseException as error:
      if type(error).__name__ != "PanicException":
        raise
      raise ValueError(str(error)) from None


def _sentence_pieces(path: Path) -> Vocabulary:
  try:
    import sentencepiece
  except ImportError as error:
    raise UnusableFileError(
      f"{path} needs the package sentencepiece: `pip install sentencepiece`, or put the "
      "tokenizer.json of the same tokenizer beside it."
    ) from error
  with reading(path):
    processor = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())

  def id_of(token: str) -> int | None:
    number = processor.piece_to_id(token)
    return number if processor.id_to_piece(number) == token else None

  return Vocabulary(processor.encode, id_of)
