"""Where learned tokens stand in a text: after its start token, before the class's name.

Tokenizers differ in what they put around a text. What they do with an empty one tells all that is
needed here, so that any tokenizer will do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mdtrap_jax.data.prompts import make_prompts
from mdtrap_jax.models.vlm import VisionLanguageModel


def text_start(model: VisionLanguageModel) -> int:
  """How many tokens stand before a text's first: 1 for CLIP's start token, 0 for SigLIP."""
  empty, some = model.tokenize(["", "a"])
  return int(np.argmax(empty != some))


def count_tokens(model: VisionLanguageModel, words: str) -> int:
  """Of words alone, without what the tokenizer puts around them."""
  around, row = model.tokenize(["", words])
  return int((~np.isin(row, around)).sum())


def count_computed(model: VisionLanguageModel, count: int, shape: tuple[int, ...]) -> int:
  """How many tokens of texts `[…, L]` are computed if `count` learned ones are the same in all.

  A causal encoder has those and what stands before them once; see `models.shared_prefix`.
  """
  *texts, length = shape
  shared = text_start(model) + count if model.text.block.causal else 0
  return shared + math.prod(texts) * (length - shared)


def check_words(model: VisionLanguageModel, section: str, words: str, count: int) -> None:
  """Refuses a learned context that the text encoder or the words it starts from cannot hold.

  Args:
    model: whose texts they are.
    section: of the config, for messages.
    words: what the context starts from; "" for a random start.
    count: of learned tokens.

  Raises:
    ValueError: names the field, its value and the remedy.
  """
  length, least = model.text.context_length, text_start(model) + count + 2
  if least > length:
    raise ValueError(
      f"--config.{section}.tokens={count}: with a class name and its marks these are at least "
      f"{least} tokens, and the text encoder of {model.name} reads {length}; learn fewer."
    )
  if words and (found := count_tokens(model, words)) < count:
    raise ValueError(
      f"--config.{section}.tokens={count}: the words {words!r} are {found} tokens; learn at most "
      f"so many, or set --config.{section}.words='' for a random start."
    )


def make_token_ids(
  model: VisionLanguageModel, section: str, class_names: Sequence[str], words: str, count: int
) -> np.ndarray:
  """Token ids of `WORDS NAME.`, or of `NAME.` after room for `count` learned tokens.

  As in CoOp's code the class's name comes last, with a period. What a causal encoder would read
  after the longest text is left out: nothing sees it.

  Args:
    model: whose texts they are.
    section: of the config, for messages.
    class_names: `C` of them.
    words: whose first `count` tokens are learned; "" for a random start.
    count: of learned tokens.

  Returns:
    `[C, L] int32`, `L` at most the context length.

  Raises:
    ValueError: names a class whose name leaves no room.
  """
  ids = model.tokenize(make_prompts(class_names, f"{words} {{}}.".strip()))
  if not words:
    ids = _make_room(model, section, class_names, ids, count)
  return ids[:, : _ends(model, ids).max() + 1] if model.text.cuts else ids


def _make_room(model, section, class_names, ids, count):
  """Moves texts `count` places on; what is pushed out at the end must be padding."""
  start, pad = text_start(model), model.tokenize([""])[0, -2]
  # Where the last position is pooled, it stays what it is.
  last = ids.shape[1] - (model.text.pool == "last")
  pushed = ids[:, last - count : last]
  if model.text.pool == "end":
    fits = _ends(model, ids) + count < ids.shape[1]
  else:
    fits = (pushed == pad).all(1)
  if not fits.all():
    raise ValueError(
      f"the class name {class_names[int(np.argmin(fits))]!r} after {count} learned tokens is "
      f"longer than the {ids.shape[1]} tokens that the text encoder of {model.name} reads: set "
      f"--config.{section}.tokens= lower, or give a shorter name."
    )
  room = np.zeros((len(ids), count), ids.dtype)
  return np.concatenate([ids[:, :start], room, ids[:, start : last - count], ids[:, last:]], axis=1)


def _ends(model, ids):
  """`[C]`, where the end tokens stand at which a text is pooled; see `TextStem.pool`."""
  end = model.text.end_token
  return np.argmax(ids if end is None else ids == end, axis=1)
