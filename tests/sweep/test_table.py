"""The papers' tables from fabricated runs, by hand."""

import csv
import io
import math
import shutil
from pathlib import Path

import pytest

from mdtrap_jax.sweep import cells as cell_lists
from mdtrap_jax.sweep import place as places
from mdtrap_jax.sweep import state, table
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
  accuracies, differences = parsed(table.format_markdown(table.entries(*sweep)))
  title, head, *cells = accuracies
  assert (title, head) == (
    "1-shot accuracy in %",
    ["backbone", "method", "", "isic", "eurosat", "cropdisease", "chestx", "average"],
  )
  assert cells == [
    ["clip", "baseline", "measured", "36.40 ± 0.03", "82.00 ± 0.14", "85.00 ± 0.07", "21.00 ± 0.07",
     "56.10 ± 0.04"],
    ["clip", "baseline", "paper", "36.40 agrees", "81.72 agrees", "84.62 agrees", "21.86 differs",
     "56.07 agrees"],
    ["clip", "svl_ra", "measured", "38.00 ± 0.00", "91.00 ± 0.07", "87.00 ± 0.07", "23.00 ± 0.07",
     "59.75 ± 0.03"],
    ["clip", "svl_ra", "paper", "38.12 agrees", "85.02 differs", "87.20 agrees", "22.68 agrees",
     "58.26 differs"],
    ["pe_core", "baseline", "measured", "41.00 ± – (1/800)", "–", "–", "–", "– (1/3200)"],
    ["pe_core", "baseline", "paper", "40.89", "84.49", "91.75", "22.02", "59.78"],
    ["pe_core", "svl_ra", "measured", *["–"] * 5],
    ["pe_core", "svl_ra", "paper", "45.01", "86.83", "93.03", "23.66", "62.14"],
  ]  # fmt: skip
  title, head, *cells = differences
  assert title == "1-shot accuracy minus that of baseline on the same episodes, in points"
  assert head == ["backbone", "method", "isic", "eurosat", "cropdisease", "chestx", "average"]
  assert cells == [
    ["clip", "svl_ra", "+1.60 ± 0.03", "+9.00 ± 0.07", "+2.00 ± 0.00", "+2.00 ± 0.00",
     "+3.65 ± 0.02"],
  ]  # fmt: skip


def parsed(text):
  """Title and rows of each table, without the rule."""
  parts = []
  for line in filter(None, text.splitlines()):
    if not line.startswith("|"):
      parts.append([line])
    elif not line.startswith("| -"):
      parts[-1].append([cell.strip() for cell in line.strip("|").split("|")])
  return parts


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
    "accuracy_mean", "accuracy_ci95", "zero_shot_mean", "minus_baseline_mean", "paper", "tolerance",
  )}  # fmt: skip
  assert numbers == pytest.approx({
    "accuracy_mean": 0.91, "accuracy_ci95": 1.96 * 0.01 / math.sqrt(800), "zero_shot_mean": 0.2,
    "minus_baseline_mean": 0.09, "paper": 0.8502, "tolerance": 0.01,
  })  # fmt: skip
  assert (row["minus_baseline_episodes"], row["agrees"]) == ("800", "no")
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
  assert body.count("&") == 7 * 9 + 6 * 2  # eight rows and one, with their heads
  assert body.count(r"\begin{tabular}") == 2


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


VARIANTS = """
from configs import comparison, sweep_paper
def get_config(row=""):
  if row:
    return comparison.get_config(row)
  config = sweep_paper.get_config()
  config.sweep.config, config.sweep.references = "FILE:{method},{target}", ("ncc", "lora/vlm")
  config.sweep.backbones, config.sweep.targets = ("toy",), ("digits",)
  config.sweep.methods = ("ncc", "tim", "lora")
  return config
"""


def test_a_row_for_each_variant_and_differences_to_named_rows(tmp_path):
  path = tmp_path / "sweep.py"
  path.write_text(VARIANTS.replace("FILE", str(path)))
  cells = cell_lists.load(str(path), [("episodes", "2")])
  ncc, tim, lora = cells
  fabricate(tmp_path, ncc, (50, 60))
  fabricate(tmp_path, tim, (60, 90))
  for variant, accuracies in (("vlm", (40, 44)), ("svl_ra", (50, 46))):
    fabricate(tmp_path, lora, accuracies, variant=variant)
  references = cell_lists.references(str(path))
  accuracies, first, second = parsed(
    table.format_markdown(table.entries(tmp_path, cells, references))
  )
  assert accuracies[1:] == [
    ["method", "digits"],  # of one backbone
    ["ncc", "55.00 ± 6.93"],
    ["tim (transductive)", "75.00 ± 20.79"],
    ["lora/vlm", "42.00 ± 2.77"],
    ["lora/svl_ra", "48.00 ± 2.77"],
  ]
  assert first[2:] == [
    ["tim (transductive)", "+20.00 ± 13.86"],
    ["lora/vlm", "-13.00 ± 4.16"],
    ["lora/svl_ra", "-7.00 ± 9.70"],
  ]
  assert second[2:] == [
    ["ncc", "+13.00 ± 4.16"],
    ["tim (transductive)", "+33.00 ± 18.02"],
    ["lora/svl_ra", "+6.00 ± 5.54"],
  ]
  rows = csv.DictReader(io.StringIO(table.format_csv(table.entries(tmp_path, cells, references))))
  row = list(rows)[-1]
  assert (row["method"], row["minus_lora/vlm_episodes"]) == ("lora/svl_ra", "2")
  assert float(row["minus_ncc_mean"]) == pytest.approx(-0.07)


def test_base_and_new_classes_have_rows_and_a_harmonic_mean(tmp_path):
  fields = [("sweep.methods", "('vlm,lora','svl_ra,lora')"), ("sweep.targets", "('dtd','eurosat')")]
  cells = cell_lists.load("sweep_fsl:base_to_new", [*fields, ("sweep.backbones", "('clip',)")])
  accuracies = {  # of three seeds each
    "clip/dtd/16-shot/seed-1/vlm,lora": {"base": (70, 80, 90), "new": (50, 60, 70)},
    "clip/dtd/16-shot/seed-1/svl_ra,lora": {"base": (72, 84, 90), "new": (50, 60, 79)},
    "clip/eurosat/16-shot/seed-1/vlm,lora": {"base": (60, 60, 60), "new": (20, 20, 20)},
  }
  for cell in cells:
    if cell.name in accuracies:
      own = accuracies[cell.name]
      tests = [
        {
          name: {"images": 10, "accuracy": own[name][seed] / 100, "zero_shot_accuracy": 0.3}
          for name in own
        }
        for seed in range(3)
      ]
      fabricate(tmp_path, cell, own["base"], tests=tests)
  found = table.entries(tmp_path, cells)
  values, differences = parsed(table.format_markdown(found))
  assert values == [
    "16-shot accuracy in %",
    ["method", "dtd", "eurosat", "average"],
    ["vlm,lora (base)", "80.00 ± 24.84", "60.00 ± 0.00", "70.00 ± 12.42"],
    ["vlm,lora (new)", "60.00 ± 24.84", "20.00 ± 0.00", "40.00 ± 12.42"],
    # 2·80·60/140, 2·60·20/80, 2·70·40/110
    ["vlm,lora (harmonic mean)", "68.57 ± –", "30.00 ± –", "50.91 ± –"],
    ["svl_ra,lora (base)", "82.00 ± 22.77", "–", "– (3/6)"],
    ["svl_ra,lora (new)", "63.00 ± 36.59", "–", "– (3/6)"],
    ["svl_ra,lora (harmonic mean)", "71.26 ± –", "–", "– (3/6)"],
  ]
  assert differences[2:] == [
    ["svl_ra,lora (base)", "+2.00 ± 4.97", "–", "–"],
    ["svl_ra,lora (new)", "+3.00 ± 12.91", "–", "–"],
  ]
  assert {entry.zero_shot.mean for entry in found[:2]} == {0.3}


def test_what_runs_were_not_tested_on_has_no_numbers(tmp_path):
  """Base classes are not all classes, though the runs lie in the folders of those."""
  fields = [
    ("sweep.methods", "('vlm,lora',)"), ("sweep.targets", "('dtd',)"), ("sweep.references", "()"),
  ]  # fmt: skip
  whole, halves = (
    cell_lists.load(f"sweep_fsl:{name}", [*fields, ("sweep.shots", "(16,)")])
    for name in ("tuned", "base_to_new")
  )
  more = cell_lists.load(
    "sweep_fsl:tuned", [*fields, ("sweep.shots", "(16,)"), ("transfer", "('food101=x',)")]
  )
  assert len({cells[0].name for cells in (whole, halves, more)}) == 1
  place = places.claimed(tmp_path / "sweep")
  exam = {"images": 10, "accuracy": 0.6, "zero_shot_accuracy": 0.3}
  for cells, others, names in (
    (whole, (halves, more), ("test",)), (halves, (whole, more), ("base", "new")),
  ):  # fmt: skip
    (cell,) = cells
    fabricate(tmp_path / "sweep", cell, [60] * 3, tests=[dict.fromkeys(names, exam)] * 3)
    assert state.state_of(place, cell).name == "done"
    for other in others:
      assert state.state_of(place, other[0]) == ("open", 0, 3, "")
    values = {entry.method: entry.accuracy.mean for entry in table.entries(place.runs(), cells)}
    assert set(values.values()) == {0.6}
    assert set(values) == ({"vlm,lora"} if names == ("test",) else {
      "vlm,lora (base)", "vlm,lora (new)", "vlm,lora (harmonic mean)"
    })  # fmt: skip
    found = table.entries(place.runs(), halves if cells is whole else whole)
    assert {entry.episodes for entry in found} == {0}
    assert all(math.isnan(entry.accuracy.mean) for entry in found)
    shutil.rmtree(tmp_path / "sweep" / cell.backbone)


def test_what_papers_have_of_five_classes_is_not_beside_all_classes(tmp_path):
  names = "('isic','eurosat','cropdisease','chestx')"
  fields = [
    ("sweep.config", "fsl:{method},folder"), ("sweep.targets", names), ("sweep.shots", "(1,)"),
    ("sweep.backbones", "('clip',)"), ("sweep.methods", "('vlm','svl_ra')"),
    ("sweep.references", "()"),
  ]  # fmt: skip
  for name in ("tuned", "base_to_new"):
    found = table.entries(tmp_path, cell_lists.load(f"sweep_fsl:{name}", fields))
    assert len(found) == (10 if name == "tuned" else 30)
    assert not any(entry.published for entry in found)


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
