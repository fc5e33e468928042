"""Texts to token ids, as each family's original does it."""

from __future__ import annotations

import dataclasses
import json
import re
import string
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

WORD_TOKENIZER_FILE = "word_tokenizer.json"
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Conventions(NamedTuple):
  """What a family puts around the tokens of a text."""

  start: str | None
  end: str
  pad: str | int  # a token or an id
  lower_case: bool = False
  strip_punctuation: bool = False
  source: str = ""  # a hub repository that has the tokenizer


_CLIP = Conventions("<|startoftext|>", "<|endoftext|>", 0, source="openai/clip-vit-base-patch16")
CONVENTIONS = {
  "clip": _CLIP,  # its tokenizer lower-cases by itself
  "pe-core": _CLIP,
  "siglip": Conventions(
    None,
    "</s>",
    "</s>",
    lower_case=True,
    strip_punctuation=True,
    source="google/siglip-base-patch16-224",
  ),
  "siglip2": Conventions(
    None, "<eos>", "<pad>", lower_case=True, source="google/siglip2-base-patch16-224"
  ),
}


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
      line = [start, *hashed][: self.context_length - 1]
      row[: len(line)] = line
      row[-1 if self.end_last else len(line)] = end
    return ids


class PretrainedTokenizer:
  """A published tokenizer, run by the `transformers` library, with its family's conventions.

  The tokens around the text are put there by this class: the published files differ in what
  they add by themselves.
  """

  def __init__(
    self, tokenizer: Any, conventions: Conventions, context_length: int, vocabulary_size: int
  ):
    self._tokenizer = tokenizer
    self._conventions = conventions
    self._context_length = context_length
    self._vocabulary_size = vocabulary_size
    self._start = [] if conventions.start is None else [self._id(conventions.start)]
    self._end = self._id(conventions.end)
    pad = conventions.pad
    self._pad = pad if isinstance(pad, int) else self._id(pad)
    self._warned = False

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """Maps `n` texts to ids `[n, L] int32`.

    A text that is too long loses its end but keeps the end token; the first time this is
    reported by a warning.

    Raises:
      ValueError: a token that the text encoder does not have.
    """
    length = self._context_length
    ids = np.full((len(texts), length), self._pad, np.int32)
    for row, text in zip(ids, texts, strict=True):
      tokens = self._tokenizer(self._clean(text), add_special_tokens=False, verbose=False)[
        "input_ids"
      ]
      room = length - 1 - len(self._start)
      if len(tokens) > room:
        self._warn(text)
      line = [*self._start, *tokens[:room], self._end]
      row[: len(line)] = line
    if ids.max(initial=0) >= self._vocabulary_size:
      raise ValueError(
        f"the tokenizer gives the id {ids.max()}, but the text encoder has "
        f"{self._vocabulary_size} tokens: they belong to different checkpoints."
      )
    return ids

  def _id(self, token: str) -> int:
    number = self._tokenizer.convert_tokens_to_ids(token)
    if number is None or self._tokenizer.convert_ids_to_tokens(number) != token:
      raise ValueError(
        f"the tokenizer has no token {token!r}; take the tokenizer files of "
        f"{self._conventions.source}."
      )
    return number

  def _clean(self, text: str) -> str:
    if self._conventions.strip_punctuation:
      text = re.sub(r"\s+", " ", text.translate(_WITHOUT_PUNCTUATION)).strip()
    return text.lower() if self._conventions.lower_case else text

  def _warn(self, text: str) -> None:
    if not self._warned:
      self._warned = True
      warnings.warn(
        f"the prompt {text!r} is longer than {self._context_length} tokens; it is cut. "
        "Further long prompts are cut without a warning.",
        stacklevel=3,
      )


def from_folder(folder: Path, family: str, *, context_length: int, vocabulary_size: int) -> Any:
  """The tokenizer whose files lie in a checkpoint's folder.

  Args:
    folder: of the checkpoint.
    family: of `families.FAMILIES`.
    context_length: `L`.
    vocabulary_size: of the text encoder.

  Raises:
    FileNotFoundError: the folder has no tokenizer files.
    ValueError: the tokenizer is of another family.
  """
  if (folder / WORD_TOKENIZER_FILE).is_file():
    from mdtrap_jax.models.word_tokenizer import WordTokenizer

    settings = json.loads((folder / WORD_TOKENIZER_FILE).read_text())
    return WordTokenizer(tuple(settings["vocabulary"]), settings["context_length"])
  conventions = CONVENTIONS[family]
  if not any((folder / name).is_file() for name in TOKENIZER_FILES):
    raise FileNotFoundError(
      f"{folder} has no tokenizer: put tokenizer.json (or vocab.json and merges.txt, or "
      f"spiece.model) beside the weights, for example that of {conventions.source} on the "
      "Hugging Face hub."
    )
  import transformers  # slow to import

  if (folder / "tokenizer.json").is_file():
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
  else:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
  return PretrainedTokenizer(tokenizer, conventions, context_length, vocabulary_size)
