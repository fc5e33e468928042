"""Text prompts from class names, and the check that the text encoder can tell them apart."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np

DEFAULT_TEMPLATE = "a photo of a {}."
_SHOWN = 5  # groups of names in one message


def make_prompts(
  class_names: Sequence[str], template: str | Sequence[str] = DEFAULT_TEMPLATE
) -> list[str]:
  """Puts every class name into the template, underscores read as spaces.

  Names are taken in Unicode's composed form (NFC): "é" is the same whether a Mac or a PC wrote it.

  Args:
    class_names: `C` names.
    template: text with one or more `{}` where the name goes, or several such texts, `P`. The
      embeddings of several are meant to be normalized, averaged over `P` and normalized again.

  Returns:
    `C·P` prompts, all of the first class before those of the second; `C` for one template.

  Raises:
    ValueError: a template has no `{}`, there is none, or one is repeated.

  >>> make_prompts(["Sea_or_Lake"])
  ['a photo of a Sea or Lake.']
  >>> make_prompts(["cat", "dog"], ["a {}.", "one {}."])
  ['a cat.', 'one cat.', 'a dog.', 'one dog.']
  """
  templates = [template] if isinstance(template, str) else list(template)
  for text in templates:
    if not isinstance(text, str) or "{}" not in text:
      raise ValueError(
        f"The prompt template {text!r} has no {{}} for the class name, so all classes would "
        f"get the same text. Write it like {DEFAULT_TEMPLATE!r}."
      )
  if not templates or len(set(templates)) < len(templates):
    raise ValueError(f"The prompt templates {templates}: give one or more, each once.")
  names = [unicodedata.normalize("NFC", name).replace("_", " ") for name in class_names]
  # Not str.format: other braces, in the template or in a name, are ordinary text.
  return [text.replace("{}", name) for name in names for text in templates]


def check_distinct(token_ids: np.ndarray, class_names: Sequence[str]) -> None:
  """Refuses classes whose prompts are the same to the text encoder.

  A tokenizer may drop case, punctuation and accents, and cuts long prompts; classes that become
  equal cannot be told apart whatever the images are.

  Args:
    token_ids: `[C, L]` of any integer type, or `[C·P, L]` for `P` templates, class by class;
      classes are the same if all of their `P` rows are.
    class_names: `C` names.

  Raises:
    ValueError: names the classes.
  """
  ids, count = np.asarray(token_ids), len(class_names)
  if not count or ids.ndim != 2 or not len(ids) or len(ids) % count:
    raise ValueError(f"{count} class names do not go with token ids of shape {ids.shape}.")
  rows = np.ascontiguousarray(ids.reshape(count, -1))
  groups: dict[bytes, list[str]] = {}
  for row, name in zip(rows, class_names, strict=True):
    groups.setdefault(row.tobytes(), []).append(name)
  same = [names for names in groups.values() if len(names) > 1]
  if same:
    shown = "; ".join(" = ".join(map(repr, names[:_SHOWN])) for names in same[:_SHOWN])
    raise ValueError(
      f"Class names that are the same to the text encoder (after cleaning, unknown words and "
      f"cutting at {ids.shape[1]} tokens): {shown}. Rename them or merge the classes."
    )
