"""HTML that cannot be broken by a name: whatever is no `Markup` yet is escaped."""

from __future__ import annotations

import base64
import html
import re
import string
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

from mdtrap_jax.data.names import is_printable

_VOID = {"img", "br"}  # elements without an end
_TURNING = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # of what follows


class Markup(str):
  """Text that is HTML already."""


def escape(value: Any) -> Markup:
  """Text as HTML shows it; on one line, and of characters that UTF-8 has.

  >>> escape("<b> & co")
  '&lt;b&gt; &amp; co'
  """
  if isinstance(value, Markup):
    return value
  shown = lambda c: is_printable(c) and c not in _TURNING
  plain = "".join(c if shown(c) else " " if c.isspace() else "�" for c in str(value))
  return Markup(html.escape(plain))


def tag(name: str, *children: Any, **attributes: Any) -> Markup:
  """One element.

  Args:
    name: of the element.
    children: texts, which are escaped, or `Markup`.
    attributes: `class_` is `class`, other underscores are dashes; `None` leaves one out.
  """
  named = [
    f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
    for key, value in attributes.items()
    if value is not None
  ]
  head = f"<{name}{''.join(named)}>"
  return Markup(head if name in _VOID else f"{head}{join(children)}</{name}>")


def breakable(name: Any) -> Markup:
  """A name that may go on in the next line after `_`, `/` and `-`."""
  return Markup(re.sub(r"([_/-]+)(?=.)", r"\1<wbr>", escape(name)))


def join(parts: Iterable[Any]) -> Markup:
  """Parts one after the other."""
  return Markup("".join(map(escape, parts)))


def table(caption: str, header: Sequence[Any], rows: Iterable[Sequence[Any]], **options) -> Markup:
  """A table whose first column names the rows, in a box that scrolls by keyboard too.

  Args:
    caption: what it is of, for everyone.
    header: of the columns; a `Markup` of a `th` is taken as it is.
    rows: of cells; a `Markup` of a `td` is taken as it is.
    options: attributes of the table.
  """
  made = lambda value, name: isinstance(value, Markup) and value.startswith(f"<{name}")
  cell = lambda value: value if made(value, "td") else tag("td", value)
  name = lambda value: value if made(value, "th") else tag("th", value, scope="col")
  body = [tag("tr", tag("th", row[0], scope="row"), *map(cell, row[1:])) for row in rows]
  head = tag("tr", *map(name, header))
  whole = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body), **options)
  return tag("div", whole, class_="scroll", role="region", aria_label=caption, tabindex="0")


def section(name: str, title: str, *children: Any) -> Markup:
  """A part of the page with a heading of its own."""
  heading = tag("h2", title, id=f"{name}-title")
  return tag("section", heading, *children, id=name, aria_labelledby=f"{name}-title")


def data_uri(content: bytes, kind: str) -> str:
  """A file inside the page."""
  return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def page(title: str, body: Markup) -> bytes:
  """The whole page, by the template `page.html` beside this file; UTF-8."""
  template = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
  filled = string.Template(template).substitute(title=escape(title), body=body)
  return filled.encode(errors="replace")
