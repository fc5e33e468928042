"""Every config file loads, is complete, is read, and refuses what it does not know."""

import ast
import importlib

import jax
import pytest

from configs import backbones, default
from mdtrap_jax import config as settings
from mdtrap_jax import models
from mdtrap_jax.experiments import finetune
from mdtrap_jax.objectives import chain
from tests.episodes import small_config
from tests.paths import ROOT

FINETUNE = ["chestx", "isic", "eurosat", "cropdisease", "folder"]


@pytest.mark.parametrize("method", sorted(default.METHODS))
@pytest.mark.parametrize("name", FINETUNE)
def test_every_file_and_method_builds_its_adaptation(name, method):
  config = settings.resolve(importlib.import_module(f"configs.{name}").get_config(method))
  adaptation = finetune.make_method(
    config, config.objective.to_dict(), models.build("clip-vit-b16"), 100.0
  )
  shapes = jax.eval_shape(
    lambda: adaptation.init(adaptation.model.init_lora(jax.random.key(0), adaptation.lora))
  )
  assert shapes.factors["image"].a.shape == (12, 3, 768, 16)
  assert chain.evaluation_marks(config.adapt.steps)[-1] == config.adapt.steps


@pytest.mark.parametrize(
  ("name", "method", "shots", "steps", "episodes"),
  [
    ("eurosat", "svl_ra", 1, 250, 800),
    ("eurosat", "svl_ra", 5, 1250, 400),
    ("chestx", "svl_ra", 1, 125, 800),
    ("chestx", "svl_ra", 5, 625, 400),
    ("eurosat", "baseline", 5, 250, 400),
    ("chestx", "baseline", 1, 250, 800),
  ],
)
def test_the_papers_schedules(name, method, shots, steps, episodes):
  config = importlib.import_module(f"configs.{name}").get_config(method)
  config.data.shots = shots
  config = settings.resolve(config)
  assert (config.adapt.steps, config.episodes) == (steps, episodes)


def test_every_field_is_read_somewhere():
  """A field whose name is no attribute or keyword anywhere in the package does nothing."""
  names = set()
  for path in [*ROOT.glob("mdtrap_jax/**/*.py"), ROOT / "main.py"]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      if isinstance(node, ast.Attribute):
        names.add(node.attr)
      elif isinstance(node, ast.arg | ast.keyword):
        names.add(node.arg)
  unread = [
    field
    for field, _ in settings.flatten(default.get_config())
    if field.rsplit(".", 1)[-1] not in names and not field.startswith("objective.")
  ]  # read by iteration
  assert not unread


def test_every_field_is_commented():
  lines = (ROOT / "configs" / "default.py").read_text(encoding="utf-8").splitlines()
  fields = [
    text
    for text in lines
    if " = " in text
    and text.startswith("  ")
    and "ConfigDict" not in text
    and "METHODS" not in text
  ]
  obvious = ("weight_decay", ".b1", ".b2", ".eps", ".rank", ".alpha", "lora.dropout")
  bare = [text for text in fields if "#" not in text and not any(o in text for o in obvious)]
  assert not bare


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    ({"model__dtype": "float16"}, r"config.model.dtype='float16': choose one of"),
    ({"data__unreadable": "ignore"}, "config.data.unreadable='ignore'"),
    ({"data__resize": "stretch"}, "config.data.resize='stretch': choose one of"),
    ({"data__shots": 0}, "config.data.shots=0: must be greater than 0"),
    ({"episodes": -1}, "config.episodes=-1"),
  ],
)
def test_wrong_values(overrides, message):
  with pytest.raises(ValueError, match=message):
    settings.resolve(small_config(**overrides))


@pytest.mark.parametrize(
  ("overrides", "template", "resize"),
  [
    ({}, "a photo of a {}.", "squash"),
    ({"data__resize": "family"}, "a photo of a {}.", "crop"),
    ({"data__resize": "family", "model__name": "siglip2-b16-224"}, "a photo of a {}.", "squash"),
    ({"data__resize": "crop", "data__template": "a {}"}, "a {}", "crop"),
  ],
)
def test_the_family_settles_what_is_left_to_it(overrides, template, resize):
  config = finetune.settled(
    small_config(model__random_weights=False, **{"model__name": "clip-vit-b16", **overrides})
  )
  assert (config.data.template, config.data.resize) == (template, resize)
  again = finetune.settled(config)  # as at a resume from what was stored
  assert settings.to_json(again) == settings.to_json(config)


def test_a_family_that_cannot_be_known():
  with pytest.raises(ValueError, match="clip-vit-b16"):
    finetune.settled(small_config(model__name="clip-vit-b61"))


@pytest.mark.parametrize("backbone", sorted(backbones.BACKBONES))
def test_every_backbone_is_adapted_alike(backbone):
  config = settings.resolve(backbones.get_config(f"{backbone},chestx"))
  model = models.build(config.model.name)
  adaptation = finetune.make_method(config, config.objective.to_dict(), model, 100.0)
  factors = jax.eval_shape(lambda: model.init_lora(jax.random.key(0), adaptation.lora))["image"]
  assert factors.a.shape == (12, 3, 768, 16)
  assert config.adapt.steps == 125


@pytest.mark.parametrize("row", ["pe_core", "pe,isic", "pe_core,cifar", "clip,isic,vlm,vlm"])
def test_unknown_rows(row):
  with pytest.raises(ValueError, match="give BACKBONE,TARGET"):
    backbones.get_config(row)


def test_unknown_method():
  with pytest.raises(ValueError, match="'svlra'|svlra: no such method.*svl_ra"):
    default.get_config("svlra")


def test_adaptation_follows_the_config():
  config = settings.resolve(small_config(lora__position="0, 1", lora__projections=("q", "v")))
  lora = finetune.make_lora(config)
  assert (lora.position, lora.projections) == ((0, 1), ("q", "v"))
