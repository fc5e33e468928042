"""`mdtrap analyze` on tiny runs: what the run did, done again, and everything written."""

import json

import numpy as np
import pytest
from PIL import Image

from mdtrap_jax.__main__ import main
from mdtrap_jax.analysis.summary import band
from mdtrap_jax.run.lines import read_episodes
from tests.episodes import run_finetune, small_config

FIGURES = ("shift", "measures", "gradients", "attention", "map")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """Two variants of a run on three classes of tinted noise."""
  root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
  for name in ("crow", "gull", "wren"):
    (root / name).mkdir()
    tint = rng.integers(0, 120, 3)
    for i in range(6):
      pixels = (rng.integers(0, 130, (24, 24, 3)) + tint).astype(np.uint8)
      Image.fromarray(pixels).save(root / name / f"{i}.png")
  workdir = tmp_path_factory.mktemp("run") / "run"
  config = small_config(
    data__path=str(root),
    adapt__steps=5,
    adapt__diagnose=True,
    adapt__evaluate_at=(5,),
    optimizer__learning_rate=1e-3,  # so that no rounding grows to another answer
    episodes=3,
  )
  config.variants = {"vlm": {"svl": 0.0, "ra": 0.0}, "svl_ra": {}}
  run_finetune(config, workdir, devices=1)
  return workdir


def test_every_instrument_of_every_variant(finished, tmp_path, capsys):
  out = tmp_path / "analysis"
  assert main(["analyze", str(finished), f"--out={out}", "--episodes=2"]) == 0
  text = capsys.readouterr()
  assert "another accuracy" not in text.err
  assert [line.split()[:2] for line in text.out.splitlines()[1:3]] == [
    ["svl_ra", "accuracy"],
    ["svl_ra", "ncc_accuracy"],
  ]
  for variant, terms in (("vlm", ["vlm"]), ("svl_ra", ["vlm", "svl", "ra"])):
    found = json.loads((out / variant / "analysis.json").read_text())
    lines = read_episodes(finished / variant)[:2]
    assert set(lines[0]["accuracy_at"]) == {"5"}
    assert found["episodes"] == found["episodes_with_the_run's_accuracy"] == 2
    # The run's own diagnosis of the same episodes.
    for name in ("gap", "ncc_accuracy", "accuracy"):
      after = np.mean([line["accuracy" if name == "accuracy" else f"{name}_after"]
                       for line in lines])  # fmt: skip
      assert found["measures"][name]["after"]["mean"] == pytest.approx(after, abs=3e-3)
    zero_shot = np.mean([line["zero_shot_accuracy"] for line in lines])
    assert found["measures"]["accuracy"]["before"]["mean"] == pytest.approx(zero_shot, abs=1e-6)
    assert found["gradients"]["terms"] == terms
    norms = np.array(found["gradients"]["norm"]["mean"])
    assert norms.shape == (5, len(terms))
    assert (norms[:, 0] > 0).all()
    assert (norms[3:, 1:] == 0).all()  # the others' window is over
    for figure in FIGURES:
      assert (out / variant / f"{figure}.png").stat().st_size > 5000
      assert "<svg" in (out / variant / f"{figure}.svg").read_text()


def test_what_cannot_be_analyzed_says_so(finished, tmp_path, capsys):
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "notes.txt").write_text("keep")
  assert main(["analyze", str(finished), f"--out={tmp_path / 'mine'}"]) == 1
  assert "is not empty; give another folder, or --force" in capsys.readouterr().err
  assert main(["analyze", str(tmp_path / "mine"), f"--out={tmp_path / 'new'}"]) == 1
  assert "holds no episodes.jsonl" in capsys.readouterr().err
  assert main(["analyze", str(finished), f"--out={tmp_path / 'new'}", "--episodes=0"]) == 1
  assert "--episodes=0: must be at least 1" in capsys.readouterr().err
  assert not (tmp_path / "new").exists()


def test_bands_leave_out_what_is_not_known():
  found = band([[1.0, np.nan, np.nan], [3.0, 5.0, np.nan]])
  np.testing.assert_allclose(found.mean, [2, 5, np.nan])
  np.testing.assert_allclose(found.ci95, [1.96 / 2**0.5, np.nan, np.nan], rtol=1e-6)
