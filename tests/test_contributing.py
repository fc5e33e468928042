"""What CONTRIBUTING.md prints runs, and what it names exists."""

import re

from mdtrap_jax import objectives
from tests.paths import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_term_is_registered_as_printed():
  (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
  exec(compile(code.replace('"spread"', '"spread_as_printed"'), "term", "exec"), space := {})
  assert objectives.TERMS["spread_as_printed"].make is space["add_spread"]


def test_every_file_it_names_exists():
  for name in set(re.findall(r"`([\w/]+/[\w.]*)`", TEXT)):
    assert (
      (ROOT / name).exists()
      or (ROOT / "mdtrap_jax" / name).exists()
      or (ROOT / "mdtrap_jax" / "models" / name).exists()
    ), name
