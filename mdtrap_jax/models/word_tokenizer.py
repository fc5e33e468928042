"""A tokenizer of whole words over a small fixed vocabulary."""

import collections
import difflib
import re

import numpy as np
from absl import logging

_WORD = re.compile(r"[^\W_]+")


class WordTokenizer:
  """Texts to word ids `[n, L]`: start, words, end, padding.

  Text is lower-cased and punctuation is a space. A word outside the vocabulary becomes `<unk>`,
  so that any class names can be run; the log names each such word once, with its near matches.

  Attributes:
    vocabulary: the words; an id is a word's index.
    context_length: `L`.
    end: the id of the end token.
  """

  def __init__(self, vocabulary: tuple[str, ...], context_length: int):
    """Makes the tokenizer.

    Args:
      vocabulary: words, among them "<pad>" (first), "<start>", "<unk>" and "<end>" (last: the
        text tower pools where the id is largest).
      context_length: number of ids in a row, at least 3.

    Raises:
      ValueError: If the vocabulary has no such marks or repeats a word, or L is below 3.
    """
    vocabulary = tuple(vocabulary)
    marks = {"<pad>", "<start>", "<unk>", "<end>"}
    if missing := marks - set(vocabulary):
      raise ValueError(f"The vocabulary lacks {sorted(missing)}; add them.")
    if vocabulary[0] != "<pad>" or vocabulary[-1] != "<end>":
      raise ValueError(
        f"The vocabulary must begin with <pad> and end with <end>, not with {vocabulary[0]!r} "
        f"and {vocabulary[-1]!r}; reorder it."
      )
    if len(set(vocabulary)) != len(vocabulary):
      counts = collections.Counter(vocabulary)
      repeated = sorted(word for word, count in counts.items() if count > 1)
      raise ValueError(f"The vocabulary repeats {repeated[:8]}; list each word once.")
    if context_length < 3:
      raise ValueError(f"{context_length=} leaves no room for a word; use at least 3.")
    self.vocabulary = vocabulary
    self.context_length = context_length
    self._ids = {word: index for index, word in enumerate(vocabulary)}
    self.end = self._ids["<end>"]
    self._reported: set[str] = set()

  def __eq__(self, other: object) -> bool:
    """Models loaded twice are equal, so that runs of both share what is compiled."""
    if not isinstance(other, WordTokenizer):
      return NotImplemented
    return (self.vocabulary, self.context_length) == (other.vocabulary, other.context_length)

  def __hash__(self) -> int:
    return hash((self.vocabulary, self.context_length))

  def __call__(self, texts: list[str] | str) -> np.ndarray:
    """Encodes texts; words that do not fit are cut off, as CLIP's tokenizer cuts.

    Args:
      texts: `n` texts, or one.

    Returns:
      [n, L] int32.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    rows = np.full((len(texts), self.context_length), self._ids["<pad>"], np.int32)
    for row, text in zip(rows, texts, strict=True):
      words = [self._id(word) for word in _WORD.findall(text.lower())]
      words = [self._ids["<start>"], *words[: self.context_length - 2], self._ids["<end>"]]
      row[: len(words)] = words
    return rows

  def _id(self, word: str) -> int:
    if word not in self._ids and word not in self._reported:
      self._reported.add(word)
      near = difflib.get_close_matches(word, self.vocabulary) or "none"
      logging.warning("Word %r is not in the vocabulary (near: %s): <unk>.", word, near)
    return self._ids.get(word, self._ids["<unk>"])
