"""The study's grid end to end, very small."""

import csv

import pytest

from configs import study as study_config
from mdtrap_jax import config as settings
from mdtrap_jax import experiments
from mdtrap_jax.experiments import study
from mdtrap_jax.report import comparison
from mdtrap_jax.statistics import mean_and_ci
from tests.episodes import small_config


def small_study(**overrides):
  config = study_config.get_config()
  config.update_from_flattened_dict(
    {
      name: value
      for name, value in settings.flatten(
        small_config(
          data__name="world",
          data__images_per_class=6,
          adapt__steps=5,
          lora__position="1",  # the upper block of two: less to compile
          lora__projections=("q",),
          episodes=2,
          experiment="study",
        )
      )
      if name != "variants"
    }
  )
  config.objective.visual.weight = 0.1
  config.study.update({"domains": ("satellite",), "severities": (1.0,), "shots": (1,)} | overrides)
  return config


def test_every_method_runs_on_the_same_episodes(tmp_path):
  table = experiments.run(small_study(), tmp_path)
  assert table.splitlines()[0].split()[9::2] == [
    "vlm",
    "visual",
    "svl",
    "ra",
    "svl_ra",
    "svl_ra_middle",
    "svl_ra_late",
  ]
  assert table.splitlines()[2].split()[1:6:2] == ["satellite", "1", "1"]
  with open(tmp_path / "study.csv", newline="", encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
  assert [row["method"] for row in rows] == [
    "vlm",
    "visual",
    "svl",
    "ra",
    "svl_ra",
    "svl_ra_middle",
    "svl_ra_late",
  ]
  assert {row["episodes"] for row in rows} == {"2"}
  assert (tmp_path / "study.png").stat().st_size > 5000
  cell = tmp_path / "satellite-1" / "1-shot"
  before = {path: path.read_bytes() for path in cell.rglob("episodes.jsonl")}
  assert len(before) == 7
  assert experiments.run(small_study(), tmp_path) == table  # resumed: nothing runs again
  assert before == {path: path.read_bytes() for path in cell.rglob("episodes.jsonl")}

  rows = comparison.compare(comparison.find_runs([cell / "vlm", cell / "svl"]))
  assert [row.name for row in rows] == ["vlm", "svl"]
  assert rows[1].difference.episodes == 2
  assert comparison.format_markdown(rows).count("\n") == 3
  assert comparison.format_csv(rows).startswith("run,episodes,failed,zero_shot_mean")


def test_the_grid():
  config = study_config.get_config()
  cells = list(study.cells(config))
  assert len(cells) == 2 * (4 * 3 + 1)
  assert cells[0].name == "radiograph-0.5/1-shot"
  assert study.Cell("digits", None, 5) in cells
  windows = [run.objective.svl.window for run in study.cell_configs(config, cells[0])]
  assert windows == [(0, 3), (1, 4), (2, 5)]


def test_no_two_severities_share_a_directory():
  near = [study.Cell("satellite", severity, 1).name for severity in (0.3, 0.3000001, 1.0, 0.0)]
  assert near == ["satellite-0.3/1-shot", "satellite-0.3000001/1-shot", "satellite-1/1-shot",
                  "satellite-0/1-shot"]  # fmt: skip


def test_a_mistake_in_any_cell_shows_at_once(tmp_path):
  with pytest.raises(ValueError, match="sattelite"):
    experiments.run(small_study(domains=("satellite", "sattelite")), tmp_path)
  assert not list(tmp_path.iterdir())
  with pytest.raises(ValueError, match="config.study.domains"):
    experiments.run(small_study(domains=()), tmp_path)


def test_one_episode_has_no_interval(tmp_path):
  one = mean_and_ci([0.3])
  row = comparison.Row("vlm", None, 1, 0, one, one, None)
  table = {study.Cell("satellite", 0.5, 1): {"vlm": row, "=svl": row._replace(difference=one)}}
  assert study.format_markdown(table).splitlines()[2].split("|")[-2].strip() == "+30.00 ± –"
  study.write_csv(tmp_path / "study.csv", table)
  with open(tmp_path / "study.csv", newline="", encoding="utf-8") as file:
    first, second = csv.DictReader(file)
  assert (first["difference_mean"], first["accuracy_ci95"]) == ("0.0", "")
  assert (second["method"], second["difference_ci95"]) == ("'=svl", "")
