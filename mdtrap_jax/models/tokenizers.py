"""Texts to token ids, as each family's original does it."""

from __future__ import annotations

import dataclasses
import json
import string
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

WORD_TOKENIZER_FILE = "word_tokenizer.json"
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")


@dataclasses.dataclass(frozen=True)
class HashTokenizer:
  """Words hashed to ids: deterministic, needs no files, and means nothing.

  Only for models of random weights, whose embeddings mean nothing either.

  Attributes:
    vocabulary_size: the end token is the largest id, the start token the one before.
    context_length: `L`.
    end_last: the end token stands at the last position (pooling there), not after the text.
  """

  vocabulary_size: int
  context_length: int
  end_last: bool = False

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """Maps `n` texts to ids `[n, L] int32`, padded with 0."""
    start, end = self.vocabulary_size - 2, self.vocabulary_size - 1
    ids = np.zeros((len(texts), self.context_length), np.int32)
    for row, text in zip(ids, texts, strict=True):
      words = text.lower().split()
      hashed = [1 + zlib.crc32(word.encode()) % (start - 1) for word in words]
      line = [start, *hashed][:self.context_length - 1]
      row[:len(line)] = line
      row[-1 if self.end_last else len(line)] = end
    return ids


class HubTokenizer:
  """A tokenizer of the `transformers` library with its family's conventions."""

  def __init__(
      self, tokenizer: Any, context_length: int, *, pad_token: int, lower_case: bool = False,
      strip_punctuation: bool = False,
  ):
    self._tokenizer = tokenizer
    self._context_length = context_length
    self._pad_token = pad_token
    self._lower_case = lower_case
    self._strip_punctuation = strip_punctuation
    self._warned = False

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """Maps `n` texts to ids `[n, L] int32`.

    A text that is too long loses its end but keeps the end-of-text token; the first time
    this is reported by a warning.
    """
    length = self._context_length
    ids = np.full((len(texts), length), self._pad_token, np.int32)
    for row, text in zip(ids, texts, strict=True):
      line = self._tokenizer(self._clean(text), verbose=False)["input_ids"]
      if len(line) > length:
        self._warn(text)
        line = [*line[:length - 1], line[-1]]
      row[:len(line)] = line
    return ids

  def _clean(self, text: str) -> str:
    if self._strip_punctuation:
      text = " ".join(text.translate(_WITHOUT_PUNCTUATION).split())
    return text.lower() if self._lower_case else text

  def _warn(self, text: str) -> None:
    if not self._warned:
      self._warned = True
      warnings.warn(
          f"the prompt {text!r} is longer than {self._context_length} tokens; it is cut. "
          "Further long prompts are cut silently.", stacklevel=3)


_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def from_folder(
    folder: Path, family: str, *, context_length: int, vocabulary_size: int
) -> Any:
  """The tokenizer whose files lie in a checkpoint's folder.

  Args:
    folder: of the checkpoint.
    family: of `families.FAMILIES`; decides on padding and cleaning.
    context_length: `L`.
    vocabulary_size: of the text encoder.

  Raises:
    FileNotFoundError: the folder has no tokenizer files.
    ValueError: the tokenizer has more tokens than the text encoder.
  """
  if (folder / WORD_TOKENIZER_FILE).is_file():
    from mdtrap_jax.models.word_tokenizer import WordTokenizer
    settings = json.loads((folder / WORD_TOKENIZER_FILE).read_text())
    return WordTokenizer(tuple(settings["vocabulary"]), settings["context_length"])
  if not any((folder / name).is_file() for name in TOKENIZER_FILES):
    raise FileNotFoundError(
        f"{folder} has no tokenizer: put the checkpoint's tokenizer.json (or vocab.json and "
        "merges.txt, or spiece.model) there.")
  from transformers import AutoTokenizer  # slow to import

  from mdtrap_jax.models.families import FAMILIES
  tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
  if len(tokenizer) > vocabulary_size:
    raise ValueError(
        f"the tokenizer in {folder} has {len(tokenizer)} tokens, the text encoder only "
        f"{vocabulary_size}: they belong to different checkpoints.")
  conventions = FAMILIES[family]
  pad_token = 0 if family == "clip" or family == "pe-core" else tokenizer.pad_token_id
  return HubTokenizer(
      tokenizer, context_length, pad_token=pad_token, lower_case=conventions.lower_case,
      strip_punctuation=conventions.strip_punctuation)
