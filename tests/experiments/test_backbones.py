"""Whole runs with backbones other than CLIP: LoRA, SVL + RA, evaluation and configs alike."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from mdtrap_jax import models
from mdtrap_jax.models import Specification
from mdtrap_jax.run.lines import read_episodes
from tests.episodes import run_finetune, small_config
from tests.models.test_models import VARIANTS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Three classes of wide images."""
  root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
  for name in ("crow", "gull", "wren"):
    (root / name).mkdir()
    for i in range(6):
      pixels = rng.integers(0, 256, (40, 70, 3), np.uint8)
      Image.fromarray(pixels).save(root / name / f"{i}.png")
  return root


@pytest.mark.parametrize(("family", "resize"), [("siglip", "crop"), ("pe-core", "family")])
def test_a_run(folder, tmp_path, monkeypatch, family, resize):
  image, text = (dataclasses.replace(config, depth=1) for config in VARIANTS[family])
  monkeypatch.setitem(models.MODELS, "tiny", Specification(family, image, text))
  config = small_config(
    model__name="tiny",
    data__path=str(folder),
    data__resize=resize,
    episodes=2,
    episodes_per_device=2,
    adapt__steps=5,
    objective__ra__window=(0, 5),  # one program for all steps
    lora__encoder="both",
  )
  summary = run_finetune(config, tmp_path, devices=1)[""]
  assert (summary["episodes"], summary["failed"]) == (2, 0)
  lines = read_episodes(tmp_path)
  assert all(np.isfinite(list(line["losses"].values())).all() for line in lines)
  assert {len(line["losses"]) for line in lines} == {3}
  data = json.loads((tmp_path / "config.json").read_text())["data"]
  assert data["resize"] == {"crop": "crop", "family": "squash"}[resize]
  assert data["template"] == "a photo of a {}."
  run_finetune(config, tmp_path, devices=1)  # what was left to the family does not stop a resume
  assert read_episodes(tmp_path) == lines
  config.data.resize = "squash" if resize == "crop" else "crop"
  with pytest.raises(ValueError, match=r"another config.*data\.resize"):
    run_finetune(config, tmp_path, devices=1)
