"""Tables whose cells hold anything stay tables."""

import csv
import io
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdtrap_jax.report import tables


def test_text_and_markdown():
  rows = [("a", 1), ("long", "2 ± 3")]
  assert tables.text(("run", "n"), rows) == "run       n\na         1\nlong  2 ± 3"
  assert tables.markdown(("run", "n"), rows) == (
    "| run  |     n |\n| ---- | ----: |\n| a    |     1 |\n| long | 2 ± 3 |"
  )


def test_csv_keeps_numbers_and_leaves_out_what_there_is_not():
  text = tables.csv(("run", "a", "b", "c"), [("x,y", -0.25, math.nan, None)])
  assert text == 'run,a,b,c\n"x,y",-0.25,,\n'


@pytest.mark.parametrize("name", ["=1+1", "+x", "-x", "@x", "\t=x", "\r=x", " =x", "\n=x"])
def test_a_name_is_no_formula(name):
  (cell,) = list(csv.reader(io.StringIO(tables.csv(("run",), [(name,)]))))[1]
  assert cell.startswith("'")


def test_a_name_is_no_html_and_no_column():
  table = tables.markdown(("run", "n"), [("<b>a|b\n| c</b> & \\|", 1)])
  row = table.splitlines()[2]
  assert row == "| &lt;b&gt;a\\|b \\| c&lt;/b&gt; &amp; \\\\\\| | 1 |".replace("| 1 |", "|   1 |")


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), max_size=3))
def test_any_text_stays_in_its_cell(rows):
  rows = [tuple(row) for row in rows]
  for write in (tables.text, tables.markdown, tables.csv):
    written = write(("a", "b"), rows)
    written.encode()
    if write is not tables.csv:
      written += "\n"
    lines = (written[:-1] + "|").splitlines()
    assert len(lines) == len(rows) + (2 if write is tables.markdown else 1)
  read = list(csv.reader(io.StringIO(tables.csv(("a", "b"), rows))))
  assert [len(row) for row in read] == [2] * (len(rows) + 1)
  assert not [cell for row in read for cell in row if cell.startswith(("=", "+", "-", "@"))]
