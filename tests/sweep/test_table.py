"""The papers' tables from fabricated runs, by hand."""

import csv
import io
import math
from pathlib import Path

import pytest

from mdtrap_jax.sweep import cells as cell_lists
from mdtrap_jax.sweep import place as places
from mdtrap_jax.sweep import table
from tests.sweep.fabricated import fabricate

# 400 times these two episodes: the interval is 1.96 / √800 times half their distance.
BASELINE = {"isic": (36, 36.8), "eurosat": (80, 84), "cropdisease": (84, 86), "chestx": (20, 22)}
SVL_RA = {"isic": (38, 38), "eurosat": (90, 92), "cropdisease": (86, 88), "chestx": (22, 24)}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
  """The whole table of CLIP; PE-Core has not been run but for an episode."""
  workdir = tmp_path_factory.mktemp("sweep")
  cells = cell_lists.load("sweep_paper")
  for cell in cells:
    if cell.backbone == "clip":
      two = (BASELINE if cell.method == "baseline" else SVL_RA)[cell.target]
      fabricate(workdir, cell, two * 400)
  (half,) = [c for c in cells if c.name == "pe_core/isic/1-shot/seed-0/baseline"]
  fabricate(workdir, half, [41.0], complete=False)
  return workdir, cells


def test_markdown(sweep):
  lines = table.format_markdown(table.entries(*sweep)).splitlines()
  assert lines[0] == "1-shot accuracy in %"
  cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
  assert cells[0][:2] == ["backbone", "method"]
  assert cells[0][3:] == ["isic", "eurosat", "cropdisease", "chestx", "average"]
  assert cells[2:] == [
    ["clip", "baseline", "measured", "36.40 ± 0.03", "82.00 ± 0.14", "85.00 ± 0.07", "21.00 ± 0.07",
     "56.10 ± 0.04"],
    ["clip", "baseline", "paper", "36.40 agrees", "81.72 agrees", "84.62 agrees", "21.86 differs",
     "56.07 agrees"],
    ["clip", "svl_ra", "measured", "38.00 ± 0.00", "91.00 ± 0.07", "87.00 ± 0.07", "23.00 ± 0.07",
     "59.75 ± 0.03"],
    ["clip", "svl_ra", "paper", "38.12 agrees", "85.02 differs", "87.20 agrees", "22.68 agrees",
     "58.26 differs"],
    ["clip", "svl_ra", "minus baseline", "+1.60 ± 0.03", "+9.00 ± 0.07", "+2.00 ± 0.00",
     "+2.00 ± 0.00", "+3.65 ± 0.02"],
    ["pe_core", "baseline", "measured", "41.00 ± – (1/800)", "–", "–", "–", "– (1/3200)"],
    ["pe_core", "baseline", "paper", "40.89", "84.49", "91.75", "22.02", "59.78"],
    ["pe_core", "svl_ra", "measured", *["–"] * 5],
    ["pe_core", "svl_ra", "paper", "45.01", "86.83", "93.03", "23.66", "62.14"],
    ["pe_core", "svl_ra", "minus baseline", *["–"] * 5],
  ]  # fmt: skip


def test_csv(sweep):
  rows = list(csv.DictReader(io.StringIO(table.format_csv(table.entries(*sweep)))))
  assert len(rows) == 2 * 2 * 5
  row = next(r for r in rows if (r["method"], r["target"]) == ("svl_ra", "eurosat"))
  assert (row["shots"], row["backbone"], row["episodes"], row["failed"]) == (
    "1",
    "clip",
    "800",
    "0",
  )
  numbers = {name: float(row[name]) for name in (
    "accuracy_mean", "accuracy_ci95", "zero_shot_mean", "difference_mean", "paper", "tolerance",
  )}  # fmt: skip
  assert numbers == pytest.approx({
    "accuracy_mean": 0.91, "accuracy_ci95": 1.96 * 0.01 / math.sqrt(800), "zero_shot_mean": 0.2,
    "difference_mean": 0.09, "paper": 0.8502, "tolerance": 0.01,
  })  # fmt: skip
  assert (row["common_episodes"], row["agrees"]) == ("800", "no")
  half = next(r for r in rows if (r["backbone"], r["target"]) == ("pe_core", "isic"))
  assert (half["episodes"], half["wanted"], half["agrees"], half["accuracy_ci95"]) == (
    "1", "800", "", "",
  )  # fmt: skip


def test_latex(sweep):
  lines = table.format_latex(table.entries(*sweep)).splitlines()
  assert lines[1:4] == [r"\begin{tabular}{lrrrrrrr}", r"  \toprule", lines[3]]
  assert [line for line in lines if "measured" in line and r"pe\_core" in line]
  lines = [" ".join(line.split()) for line in lines]
  (row,) = [line for line in lines if line.startswith("clip & baseline & measured")]
  assert row == (
    r"clip & baseline & measured & 36.40 $\pm$ 0.03 & 82.00 $\pm$ 0.14 & 85.00 $\pm$ 0.07 & "
    r"21.00 $\pm$ 0.07 & 56.10 $\pm$ 0.04 \\"
  )
  body = "\n".join(lines)
  assert not set("±–") & set(body)
  assert body.count("&") == 7 * 11  # ten rows and the head


def test_seeds_are_taken_together(tmp_path):
  fields = [("episodes", "2"), ("sweep.seeds", "(0,1)"), ("sweep.targets", "('isic',)")]
  cells = cell_lists.load("sweep_paper:ablation", fields)
  for cell in cells:
    if cell.method == "baseline":
      fabricate(tmp_path, cell, (30, 40) if cell.seed else (50, 60))
  found = table.entries(tmp_path, cells)
  assert [entry.target for entry in found] == ["isic"] * 4  # of one target there is no average
  assert (found[0].episodes, found[0].wanted) == (4, 4)
  assert found[0].accuracy.mean == pytest.approx(0.45)


def test_the_files(sweep, tmp_path):
  found = table.entries(*sweep)
  place = places.claimed(tmp_path / "sweep")
  assert table.write(place, found) == f"{place.name}/tables"
  names = {path.name for path in Path(place.name, "tables").iterdir()}
  assert names == {".mdtrap_jax", "table.md", "table.csv", "table.tex"}
  theirs = places.claimed(tmp_path / "theirs")
  Path(theirs.name, "tables").mkdir()
  Path(theirs.name, "tables", "table.md").write_text("mine")
  with pytest.raises(ValueError, match="not empty"):
    table.write(theirs, found)
  assert Path(theirs.name, "tables", "table.md").read_text() == "mine"


@pytest.mark.parametrize(
  ("field", "value", "episodes"),
  [("episodes", "2", 2), ("adapt.steps", "5", 800), ("model.random_weights", "true", 800)],
)
def test_a_trial_is_no_reproduction(tmp_path, field, value, episodes):
  fields = [("sweep.targets", "('isic',)"), ("sweep.backbones", "('clip',)"), (field, value)]
  cells = cell_lists.load("sweep_paper", fields)
  for cell in cells:
    fabricate(tmp_path, cell, [38.12] * episodes)
  for entry in table.entries(tmp_path, cells):
    assert (entry.episodes, entry.wanted) == (episodes, episodes)
    assert entry.published.value in (36.40, 38.12)
    assert entry.agrees is None
