"""Tables as text, Markdown, CSV and LaTeX; whatever a cell holds, it stays one cell.

Names of folders and classes come from anywhere: they must not break a table, run as a formula
in a spreadsheet, or be HTML in a page.
"""

from __future__ import annotations

import csv as csv_module
import html
import io
import math
from collections.abc import Sequence
from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what spreadsheets run


def text(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """For a terminal: the first column to the left, the others to the right."""
  return "\n".join("  ".join(cells).rstrip() for cells in _aligned(header, rows, _line))


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """For a README, and legible in a terminal too."""
  head, *body = _aligned(header, rows, _markdown_cell)
  rule = ["-" * len(head[0]), *("-" * (len(cell) - 1) + ":" for cell in head[1:])]
  return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *body))


def csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """For a spreadsheet: numbers as they are, empty where there is none.

  A text that a spreadsheet would run as a formula gets an apostrophe before it.
  """
  file = io.StringIO()
  writer = csv_module.writer(file, lineterminator="\n")
  writer.writerows([[_csv_cell(cell) for cell in row] for row in (header, *rows)])
  return file.getvalue()


def latex(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """For a paper: a `tabular` with the rules of booktabs."""
  head, *body = (" & ".join(cells) for cells in _aligned(header, rows, _latex_cell))
  lines = [r"\toprule", rf"{head} \\", r"\midrule", *(rf"{row} \\" for row in body), r"\bottomrule"]
  begin = r"\begin{tabular}{l" + "r" * (len(header) - 1) + "}"
  return "\n".join([begin, *(f"  {line}" for line in lines), r"\end{tabular}"])


def _aligned(header, rows, cell) -> list[list[str]]:
  """Cells of equal width, at least three, column by column."""
  table = [[cell(value) for value in row] for row in (header, *rows)]
  widths = [max(3, *map(len, column)) for column in zip(*table, strict=True)]
  return [
    [
      value.ljust(width) if i == 0 else value.rjust(width)
      for i, (value, width) in enumerate(zip(row, widths, strict=True))
    ]
    for row in table
  ]


def _line(value: Any) -> str:
  """A cell in one line, of characters that any stream takes and that move no cursor."""
  value = "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in str(value))
  return " ".join(value.split())


def _markdown_cell(value: Any) -> str:
  return html.escape(_line(value), quote=False).replace("\\", "\\\\").replace("|", "\\|")


_LATEX = {
  "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
  "±": r"$\pm$", "–": "--", **{c: f"\\{c}" for c in "&%$#_{}"},
}  # fmt: skip


def _latex_cell(value: Any) -> str:
  return "".join(_LATEX.get(c, c) for c in _line(value))


def _csv_cell(value: Any) -> Any:
  if value is None or (isinstance(value, float) and math.isnan(value)):
    return ""
  if not isinstance(value, str):
    return value
  cell = _line(value)
  return f"'{cell}" if cell.startswith(_FORMULA) or value.startswith(_FORMULA) else cell
