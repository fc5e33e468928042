"""Names as people type them: compared in one Unicode form, and shown on one line."""

import unicodedata
from collections.abc import Iterable

from mdtrap_jax import files

# Control characters, lone surrogates (bytes that are not UTF-8), line and paragraph separators.
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")


def nfc(name: str) -> str:
  """The composed form: "é" is one character, however a keyboard or a Mac's disk wrote it."""
  return unicodedata.normalize("NFC", name)


def is_printable(name: str) -> bool:
  """Whether a name can stand in a line of UTF-8 text."""
  return all(unicodedata.category(character) not in _UNPRINTABLE for character in name)


def shown(name: object) -> str:
  """A name for messages, whatever a file system allows in it, on one line; a bucket's as its URL.

  >>> shown("two\\nlines")
  'two\\\\nlines'
  """
  return "".join(
    character if is_printable(character) else character.encode("unicode_escape").decode()
    for character in files.typed(name)
  )


def listed(names: Iterable[str], most: int = 8) -> str:
  """Names in a message, the first few of many."""
  names = list(names)
  rest = f", and {len(names) - most} more" if len(names) > most else ""
  return ", ".join(shown(name) for name in names[:most]) + rest
