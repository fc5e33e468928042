"""Which runs a sweep has, and whose its directory is."""

import itertools
from pathlib import Path

import pytest

from configs import comparison, sweep_comparison, sweep_fsl
from mdtrap_jax import checkpoints
from mdtrap_jax import config as settings
from mdtrap_jax.config import loading
from mdtrap_jax.data.releases import RELEASES
from mdtrap_jax.data.sources import make_source
from mdtrap_jax.experiments import all_way, all_way_heads, finetune, heads
from mdtrap_jax.methods.heads import METHODS
from mdtrap_jax.methods.tuning.choices import make_parameterization
from mdtrap_jax.sweep import cells as cell_lists
from mdtrap_jax.sweep import place as places
from tests.sweep.fabricated import heads_sweep


def test_the_papers_one_shot_table():
  cells = cell_lists.load("sweep_paper", [("episodes", "7"), ("adapt.steps", "5")])
  names = [cell.name for cell in cells]
  assert names == [
    f"{backbone}/{target}/1-shot/seed-0/{method}"
    for backbone, target, method in itertools.product(
      ("clip", "pe_core"), ("isic", "eurosat", "cropdisease", "chestx"), ("baseline", "svl_ra")
    )
  ]
  assert cells[-1].arguments == (
    "--config=backbones:pe_core,chestx,svl_ra", "--config.data.shots=1", "--config.seed=0",
    "--config.episodes=7", "--config.adapt.steps=5",
  )  # fmt: skip
  config = cells[0].resolve()
  assert (config.model.name, config.data.name, config.adapt.batch_size) == (
    "clip-vit-b16", "isic", 25,
  )  # fmt: skip
  assert (config.episodes, config.adapt.steps) == (7, 5)


def test_the_other_tables():
  five = cell_lists.load("sweep_paper:five_shot", [("sweep.seeds", "(0,1)")])
  assert len(five) == 2 * len(cell_lists.load("sweep_paper"))
  assert {cell.resolve().adapt.steps for cell in five if cell.method == "svl_ra"} == {1250, 625}
  assert {cell.resolve().seed for cell in five} == {0, 1}
  ablation = cell_lists.load("sweep_paper:ablation")
  assert {(cell.backbone, cell.method) for cell in ablation} == {
    ("clip", method) for method in ("baseline", "svl", "ra", "svl_ra")
  }


def test_parts_share_all_cells():
  cells = cell_lists.load("sweep_paper")
  parts = [cell_lists.part(cells, f"{i}/3") for i in (1, 2, 3)]
  assert sorted(len(part) for part in parts) == [5, 5, 6]
  assert sorted(itertools.chain(*parts)) == sorted(cells)
  for text in ("0/3", "4/3", "1", "a/b", "1/0", "-1/3"):
    with pytest.raises(ValueError, match="I/N"):
      cell_lists.part(cells, text)


def test_every_cell_of_the_comparison_can_run(tmp_path):
  cells = cell_lists.load(f"sweep_comparison:all,{tmp_path}")
  assert len({cell.name for cell in cells}) == len(cells) == 26 * 5 * 2
  model, _ = checkpoints.load("miniature")
  seen = set()
  for cell in cells:
    if cell.shots > 1 and cell.target != "digits":
      continue  # their configs differ in the shots alone
    config, seen = cell.resolve(), seen | {cell.method}
    assert (config.seed, config.seeds, config.episodes, config.data.ways) == (1, 1, 100, 5)
    if cell.method not in comparison.TUNED:
      heads.check(config)
      continue
    finetune.check(finetune.settled(config), settings.variants(config))
    classes = config.data.classes or config.data.class_names
    if cell.target == "satellite":
      classes = make_source(config.data).class_names  # the longest names
    if classes:
      tuned = make_parameterization(config)
      tokens = tuned.token_ids(model, classes, "a photo of a {}.")
      assert len({tuple(row) for row in tokens.tolist()}) == len(classes)
  assert seen == {*sweep_comparison.HEADS, *comparison.TUNED}
  # Whatever classifies pooled features is in it.
  known = {name for name, found in METHODS.items() if found.needs in ("pooled", "unprojected")}
  assert set(sweep_comparison.HEADS) == known


def test_parts_of_the_comparison():
  for part, references in (("heads", ("zero_shot",)), ("tuned", ("lora/vlm",)),
                           ("all", ("zero_shot", "lora/vlm"))):  # fmt: skip
    assert cell_lists.references(f"sweep_comparison:{part}") == references
  with pytest.raises(ValueError, match="'lora/vlm' is no row; name METHOD or METHOD/VARIANT"):
    cell_lists.references("sweep_comparison", [("sweep.methods", "('zero_shot',)")])
  (cell,) = cell_lists.load(
    "sweep_comparison:heads,{odd}",
    [("sweep.methods", "('ncc',)"), ("sweep.targets", "('isic',)"), ("sweep.shots", "(1,)")],
  )
  assert cell.resolve().domains == ("isic={odd}/isic",)
  for config, message in (
    ("sweep_comparison:some", "give PART"),
    ("comparison:lora,mnist", "TARGET"),
  ):
    with pytest.raises(ValueError, match=message):
      loading.load(config)


def test_every_cell_of_the_eleven_data_sets_can_run(tmp_path):
  cells = cell_lists.load(f"sweep_fsl:all,{tmp_path}")
  assert len({cell.name for cell in cells}) == len(cells) == 11 * 5 * 21
  assert {cell.target for cell in cells} == set(RELEASES)
  for cell in cells:
    if cell.target != "dtd" and cell.method != "vlm,maple" or cell.shots != 4:
      continue  # these differ in the data set and the shots alone
    config = cell.resolve()
    assert (config.seeds, config.data.shots, config.data.domain) == (3, 4, cell.target)
    assert config.data.path == f"{tmp_path}/{cell.target}"
    if cell.method in sweep_fsl.HEADS:
      all_way_heads.check(cell.method, config.model.name, False)
      continue
    all_way.check(finetune.settled(config))
    method, tune = cell.method.split(",")
    assert (config.tune, config.objective.svl.weight > 0) == (tune, method == "svl_ra")
  pooled = {name for name, found in METHODS.items() if found.needs in ("pooled", "unprojected")}
  assert set(sweep_fsl.HEADS) == {name for name in pooled if not METHODS[name].transductive}
  for cell in cell_lists.load("sweep_fsl:base_to_new"):
    if cell.target == "dtd":
      config = cell.resolve()
      assert config.base_to_new
      if cell.method in sweep_fsl.HEADS:
        all_way_heads.check(cell.method, config.model.name, True)
  expected = ("zero_shot", "vlm,lora", "vlm,coop", "vlm,maple")
  assert cell_lists.references("sweep_fsl") == expected
  with pytest.raises(ValueError, match="give TABLE or TABLE,FOLDER"):
    loading.load("sweep_fsl:some")


def test_seeds_count_once():
  load = lambda seeds, *more: cell_lists.load("sweep_fsl:heads", [("sweep.seeds", seeds), *more])
  assert len(load("(1,4)")) == 2 * len(load("(1,)"))
  assert len(load("(1,2)", ("seeds", "1"))) == len(load("(1,4)"))
  with pytest.raises(ValueError, match="of 1 and 3 each run takes 3 seeds.*at least 3 apart"):
    load("(3,1)")


@pytest.mark.parametrize(
  ("config", "fields", "message"),
  [
    ("isic", [], "one run and no sweep"),
    ("sweep_paper:two_shot", [], "no such table"),
    ("sweep_paper", [("sweep.config", "isic:{methods}")], r"may name \{backbone\}"),
    ("sweep_paper", [("sweep.targets", "('a/b',)")], "holds a slash"),
    ("sweep_paper", [("sweep.targets", "('events',)")], "a run keeps files named events"),
    ("sweep_paper", [("sweep.methods", "('vlm','vlm')")], "names one thing twice"),
    ("sweep_paper", [("sweep.target", "('isic',)")], "Did you mean --config.sweep.targets"),
  ],
)
def test_mistakes(config, fields, message):
  with pytest.raises(ValueError, match=message):
    cell_lists.load(config, fields)


def test_a_cell_that_is_no_run_of_episodes(tmp_path):
  cells = cell_lists.load(str(heads_sweep(tmp_path)), [("sweep.config", "study")])
  with pytest.raises(ValueError, match="no such field"):
    cells[0].resolve()
  fields = [("sweep.config", "study"), ("sweep.fields", "('seed=1',)")]
  cells = cell_lists.load("sweep_paper", fields)
  with pytest.raises(ValueError, match="of kind study"):
    cells[0].resolve()


def test_whose_a_directory_is(tmp_path):
  place = places.claimed(tmp_path / "new" / "sweep")
  (Path(place.name) / "clip").mkdir()
  assert places.claimed(place.name) == places.found(place.name) == place  # resumed
  (tmp_path / "theirs").mkdir()
  (tmp_path / "theirs" / "thesis.tex").touch()
  with pytest.raises(ValueError, match="not empty and no sweep"):
    places.claimed(tmp_path / "theirs")
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / ".mdtrap_jax").write_text("mdtrap_jax, layout 1\n")
  for name in ("run", "run/inside"):
    with pytest.raises(ValueError, match="is a run's"):
      places.claimed(tmp_path / name)
  (tmp_path / "file").touch()
  with pytest.raises(OSError, match="no directory"):
    places.claimed(tmp_path / "file")
