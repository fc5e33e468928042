"""The notebooks are thin, carry no outputs, run, and end with a model that has adapted."""

import json

import matplotlib as mpl
import pytest

from tests.paths import ROOT

NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, monkeypatch, capsys):
  monkeypatch.setitem(mpl.rcParams, "backend", "agg")
  cells = [
    cell
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
    if cell["cell_type"] == "code"
  ]
  assert 0 < len(cells) <= 25
  space = {}
  for cell in cells:
    assert not cell["outputs"]
    exec(compile("".join(cell["source"]), str(path), "exec"), space)
  assert space["adapted"] > space["zero_shot"]
  assert f"adapted {100 * space['adapted']:.1f} %" in capsys.readouterr().out
