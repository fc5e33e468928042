"""The notebooks are thin, carry no outputs, run, and end with a model that has adapted."""

import importlib.util
import json
import subprocess
import sys
import zipfile

import matplotlib as mpl
import pytest

from tests.paths import ROOT

NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
# What a test sets instead of the cell tagged "parameters", so that it takes seconds.
SMALL = {
  "your_photos": dict(
    METHOD="vlm",
    FOLDS=2,
    SETTINGS={
      "steps": 5,
      "learning_rate": 1e-2,
      "config": {"adapt.views": 1, "lora.rank": 2, "lora.position": "3"},
    },
  )
}


def cells_of(path):
  cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
  return [cell for cell in cells if cell["cell_type"] == "code"]


def execute(cell, path, space):
  exec(compile("".join(cell["source"]), str(path), "exec"), space)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, monkeypatch, capsys):
  monkeypatch.setitem(mpl.rcParams, "backend", "agg")
  cells, space = cells_of(path), {}
  assert 0 < len(cells) <= 25
  for cell in cells:
    assert not cell["outputs"]
    execute(cell, path, space)
    if "parameters" in cell["metadata"].get("tags", ()):
      space |= SMALL[path.stem]
  said = capsys.readouterr().out
  assert space["adapted"] > space["zero_shot"]
  assert f"adapted {100 * space['adapted']:.1f} %" in said
  if path.stem == "your_photos":
    check_what_is_taken_home(space["work"], space["results"])


def check_what_is_taken_home(work, results):
  assert len((work / "predictions.csv").read_text().splitlines()) == 1 + 2 * 5
  with zipfile.ZipFile(work / "model.zip") as model, zipfile.ZipFile(work / "adapter.zip") as own:
    assert {"classifier.json", "crossval.csv"} <= set(model.namelist())
    assert {"adapter_config.json", "classes.json"} <= set(own.namelist())
  assert {str(path) for path in results} == {
    str(work / name)
    for name in ("predictions.csv", "report/report.html", "model.zip", "adapter.zip")
  }


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_fresh_runtime_installs(path, monkeypatch):
  text = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
  assert (
    f"https://colab.research.google.com/github/OWNER/mdtrap_jax/blob/main/colab/{path.name}" in text
  )
  cell, calls = cells_of(path)[0], []
  monkeypatch.setattr(subprocess, "run", lambda command, check: calls.append(command))
  execute(cell, path, {})
  assert not calls  # it is here
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  address = "https://example.org/mdtrap_jax"
  given = {**cell, "source": [line.replace('REPOSITORY = ""', f'REPOSITORY = "{address}"')
                              for line in cell["source"]]}  # fmt: skip
  execute(given, path, {})
  assert calls == [[sys.executable, "-m", "pip", "install", "-q", f"git+{address}"]]
