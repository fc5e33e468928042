"""The public list: its page names all of it, and what the page prints is what comes out."""

import doctest
import re

import mdtrap_jax
from tests.paths import ROOT

PAGE = ROOT / "docs" / "api.md"


def test_the_page_imports_every_public_name():
  lines = re.findall(r">>> from mdtrap_jax import (.*)", PAGE.read_text(encoding="utf-8"))
  imported = [name.strip() for line in lines for name in line.split(",")]
  assert sorted(["__version__", *imported]) == sorted(mdtrap_jax.__all__)


def test_what_the_page_prints_comes_out(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  text = PAGE.read_text(encoding="utf-8")
  examples = doctest.DocTestParser().get_doctest(text, {}, PAGE.name, str(PAGE), 0)
  failures = []
  doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(examples, out=failures.append)
  assert examples.examples
  assert not failures, "".join(failures)
