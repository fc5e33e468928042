"""Published numbers as data: their page, their configs, and which runs reproduce them."""

import json

import pytest

from mdtrap_jax import config as settings
from mdtrap_jax.__main__ import main
from mdtrap_jax.config import loading
from mdtrap_jax.report import agreement, published
from mdtrap_jax.sweep import cells as sweep_cells
from tests.paths import ROOT


def test_the_page_is_what_the_data_says():
  page = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")
  _, _, rest = page.partition(published.BEGIN)
  own, _, _ = rest.partition(published.END)
  assert published.BEGIN + own + published.END == published.page(), "write it again"


def test_every_number_of_the_papers_is_there():
  """By hand, from METHOD's sources: the count of each table and its corners."""
  rows = list(published.published())
  count = lambda measure: sum(row.measure == measure for row in rows)
  assert [count(m) for m in (published.ACCURACY, published.SHIFT, published.GAP)] == [24, 16, 2]
  value = lambda *setting: published.accuracy(*setting).value
  assert value("clip", "isic", "baseline", 1) == 36.40
  assert value("clip", "average", "svl_ra", 1) == 58.26
  assert value("pe_core", "chestx", "svl_ra", 1) == 23.66
  assert value("pe_core", "average", "svl_ra", 5) == 70.29
  assert value("clip", "average", "ra", 1) == 57.17
  assert published.accuracy("pe_core", "isic", "svl_ra", 5) is None
  shift = {(r.target, r.method): r.value for r in rows if r.measure == published.SHIFT}
  assert (shift["cropdisease", "baseline"], shift["chestx", "visual"]) == (0.014, 0.742)
  for row in rows:  # averages are of their rows; CLIP's baseline, as printed, misses by 0.08
    if row.measure == published.ACCURACY and row.target == "average":
      own = [published.accuracy(row.backbone, t, row.method, row.shots) for t in published.TARGETS]
      if all(own):
        assert sum(r.value for r in own) / 4 == pytest.approx(row.value, abs=0.09)


@pytest.mark.parametrize("row", list(published.published()), ids=str)
def test_every_command_is_a_config(row):
  config = loading.load(row.config.replace("TARGET", "isic"), row.fields)
  config = settings.resolve(config)
  assert config.get("method", row.method) == row.method
  if row.target != published.AVERAGE:
    assert row.command.startswith(f"mdtrap run --config={row.config}")
    return
  cells = sweep_cells.load(row.command.split()[-1])
  own = [
    c for c in cells if (c.backbone, c.method, c.shots) == (row.backbone, row.method, row.shots)
  ]
  assert tuple(cell.target for cell in own) == published.TARGETS
  assert settings.to_json(own[0].resolve()) == settings.to_json(config)


@pytest.mark.parametrize(
  ("target", "shots", "tolerance"),
  [("isic", 1, 0.98), ("chestx", 1, 0.588), ("isic", 5, 1.386), ("average", 1, 0.4493)],
)
def test_tolerances(target, shots, tolerance):
  """1.96 σ √(2/E), by hand."""
  table = next(published.published()).table
  row = published.Published(table, published.ACCURACY, "clip", target, "svl_ra", shots, 50.0)
  assert row.tolerance == round(tolerance, 1)
  assert published.agrees(row, 50.0 + row.tolerance - 0.01)
  assert not published.agrees(row, 50.0 - row.tolerance - 0.01)
  assert published.agrees(row, float("nan")) is None
  assert published.agrees(None, 50.0) is None


def run_of(path, config, fields=(), episodes=800, accuracy=0.38):
  """A fabricated run."""
  path.mkdir(parents=True)
  config = settings.resolve(loading.load(config, fields))
  (path / "config.json").write_text(settings.to_json(config))
  line = {"status": "ok", "accuracy": accuracy, "zero_shot_accuracy": 0.2}
  lines = (json.dumps({"episode": i, **line}) for i in range(episodes))
  (path / "episodes.jsonl").write_text("".join(f"{line}\n" for line in lines))


def test_compare_says_which_runs_agree(tmp_path, capsys):
  run_of(tmp_path / "good", "isic")
  run_of(tmp_path / "bad", "isic:baseline")
  run_of(tmp_path / "short", "backbones:pe_core,isic", episodes=3)
  run_of(tmp_path / "seeds", "isic", [("seed", "7"), ("data.data_dir", "elsewhere")])
  for name, fields in {
    "steps": [("adapt.steps", "5")], "weight": [("objective.ra.weight", "1")],
    "random": [("model.random_weights", "true"), ("model.name", "clip-vit-b16")],
    "other": [("model.name", "clip-vit-b32")], "gone": [("model.name", "/nowhere/clip")],
  }.items():  # fmt: skip
    run_of(tmp_path / "none" / name, "isic", fields, episodes=1)
  found = {v.run.rpartition("/")[2]: v for v in agreement.verdicts(sorted(tmp_path.iterdir()))}
  assert {name: verdict.agrees for name, verdict in found.items()} == {
    "good": True, "bad": False, "short": None, "seeds": True,
  }  # fmt: skip
  assert found["short"].published.value == 45.01
  assert agreement.verdicts(sorted((tmp_path / "none").iterdir())) == []
  assert main(["compare", str(tmp_path / "good"), str(tmp_path / "bad")]) == 0
  said = capsys.readouterr().out
  assert "38.00 ± 0.00      38.12      ± 1.0     yes" in said
  assert "36.40" in said
  assert main(["compare", "--format=csv", str(tmp_path / "good")]) == 0
  assert "38.12" not in capsys.readouterr().out
