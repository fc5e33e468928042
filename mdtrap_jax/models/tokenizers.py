"""Texts to token ids, as each family's original does it."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import string
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mdtrap_jax.models.text_stem import TextConfig

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

  @property
  def end(self) -> int:
    """The id of the end token."""
    return self.vocabulary_size - 1

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """Maps `n` texts to ids `[n, L] int32`, padded with 0."""
    start, end = self.vocabulary_size - 2, self.end
    ids = np.zeros((len(texts), self.context_length), np.int32)
    for row, text in zip(ids, texts, strict=True):
      words = text.lower().split()
      hashed = [1 + zlib.crc32(word.encode()) % (start - 1) for word in words]
      line = [start, *hashed][: self.context_length - 1]
      row[: len(line)] = line
      row[-1 if self.end_last else len(line)] = end
    return ids


class Vocabulary(NamedTuple):
  """A published tokenizer's own part: it adds nothing around the text."""

  encode: Callable[[str], list[int]]
  id_of: Callable[[str], int | None]  # of one token; `None` if there is no such token


class PretrainedTokenizer:
  """A published tokenizer with its family's conventions.

  The tokens around the text are put there by this class: the published files differ in what
  they add by themselves. Those made from the same files are equal, and so are the models that
  have them: what was compiled for one serves the other.

  Attributes:
    end: the id of the end token.
    files: by name, those that lay beside the weights.
  """

  def __init__(
    self,
    vocabulary: Vocabulary,
    conventions: Conventions,
    context_length: int,
    vocabulary_size: int,
    files: Mapping[str, Path],
  ):
    self.files = dict(files)
    self._vocabulary = vocabulary
    self._conventions = conventions
    self._context_length = context_length
    self._vocabulary_size = vocabulary_size
    self._start = [] if conventions.start is None else [self._id(conventions.start)]
    self.end = self._id(conventions.end)
    pad = conventions.pad
    self._pad = pad if isinstance(pad, int) else self._id(pad)
    self._warned = False
    contents = tuple((name, _digest(path)) for name, path in sorted(self.files.items()))
    self._identity = (conventions, context_length, vocabulary_size, contents or id(self))

  def __eq__(self, other: object) -> bool:
    return isinstance(other, PretrainedTokenizer) and self._identity == other._identity

  def __hash__(self) -> int:
    return hash(self._identity)

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """Maps `n` texts to ids `[n, L] int32`.

    A text that is too long loses its end but keeps the end token; the first time this is
    reported by a warning.

    Raises:
      ValueError: a token that the text encoder does not have.
    """
    length = self._context_length
    ids = np.full((len(texts), length), self._pad, np.int64)
    for row, text in zip(ids, texts, strict=True):
      tokens = self._vocabulary.encode(self._clean(text))
      room = length - 1 - len(self._start)
      if len(tokens) > room:
        self._warn(text)
      line = [*self._start, *tokens[:room], self.end]
      row[: len(line)] = line
    if ids.max(initial=0) >= self._vocabulary_size:
      raise ValueError(
        f"the tokenizer gives the id {ids.max()}, but the text encoder has "
        f"{self._vocabulary_size} tokens: they belong to different checkpoints."
      )
    return ids.astype(np.int32)

  def _id(self, token: str) -> int:
    if (number := self._vocabulary.id_of(token)) is None:
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


def _digest(path: Path) -> str:
  """SHA-256 of a file, in hexadecimal digits."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def check_end(token_ids: np.ndarray, text: TextConfig, end: int | None = None) -> None:
  """Refuses ids that the text encoder lacks, or in which it would not find the end of the text.

  Pooling at another token gives embeddings that mean nothing, and accuracy at chance.

  Args:
    token_ids: `[n, L]`, of prompts.
    text: the text encoder.
    end: the tokenizer's end token, where it is known.

  Raises:
    ValueError: the tokenizer and the text encoder do not belong together.
  """
  ids = np.asarray(token_ids)
  if ids.ndim != 2 or ids.shape[1] != text.context_length:
    raise ValueError(f"the tokenizer gives {ids.shape} ids, not rows of {text.context_length}.")
  if ids.size and not 0 <= ids.min() <= ids.max() < text.vocabulary_size:
    raise ValueError(
      f"the tokenizer gives ids from {ids.min()} to {ids.max()}, but the text encoder has "
      f"{text.vocabulary_size} tokens: they belong to different checkpoints."
    )
  if text.pool != "end":
    return
  pooled = ids.max(axis=1) if text.end_token is None else np.full(len(ids), text.end_token)
  missing = ~(ids == pooled[:, None]).any(axis=1)
  if end is not None:
    missing |= pooled != end
  if missing.any():
    raise ValueError(
      f"the text encoder looks for the end of a text at token {pooled[missing][0]} "
      f"({'the largest id' if text.end_token is None else 'eos_token_id in config.json'}), which "
      f"{'does not occur' if end is None else f'is not {end}, where the tokenizer puts it'}: "
      "take tokenizer and config of one checkpoint."
    )
