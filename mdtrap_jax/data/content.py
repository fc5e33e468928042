"""What data is, by its content: equal for a copy, another for any image changed.

The content of a source is `{class name: (number of images, hex digest)}`, in the order of the
classes; it can be kept as JSON, and compared with a later one in words.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Content = dict[str, tuple[int, str]]


def digest_of(parts: Iterable[Any]) -> str:
  """Hex SHA-256 of a sequence of what JSON can hold."""
  return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()


def identity_of(class_names: Sequence[str], content: Content, *settings: Any) -> str:
  """Hex digest of a content, the order of its classes, and what else decides the pixels."""
  return digest_of([list(class_names), list(content.items()), *settings])


def describe_changes(
  there: Mapping[str, Sequence[Any]], here: Mapping[str, Sequence[Any]]
) -> list[str]:
  """What differs between two contents, in words.

  Args:
    there: The older content, perhaps read from JSON.
    here: The newer one.

  Returns:
    A clause for each change, none if the contents are equal.

  >>> describe_changes({"cat": (12, "a"), "dog": (3, "b")}, {"cat": (13, "c"), "dog": (3, "d")})
  ["class 'cat': 12 images there, 13 here", "class 'dog': other images"]
  """
  there, here = ({n: tuple(entry) for n, entry in one.items()} for one in (there, here))
  gone = {there[name]: name for name in there.keys() - here.keys()}
  lines = []
  for name in [*there, *(name for name in here if name not in there)]:
    if name not in here:
      if there[name] not in [here[other] for other in here.keys() - there.keys()]:
        lines.append(f"class {name!r}: {there[name][0]} images there, no such class here")
    elif name not in there:
      old = gone.get(here[name])
      lines.append(
        f"class {name!r}: no such class there, {here[name][0]} images here"
        if old is None
        else f"class {name!r}: was called {old!r} there"
      )
    elif there[name][0] != here[name][0]:
      lines.append(f"class {name!r}: {there[name][0]} images there, {here[name][0]} here")
    elif there[name] != here[name]:
      other = next((o for o in there if o != name and there[o] == here[name]), None)
      lines.append(
        f"class {name!r}: other images"
        if other is None
        else f"class {name!r}: the images that class {other!r} had there"
      )
  if not lines and list(there) != list(here):
    lines.append("the classes are in another order")
  return lines
