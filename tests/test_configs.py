"""The files of `configs/` hold the papers' values, are complete, commented and read."""

import ast
import functools
import importlib

import jax
import pytest

from configs import backbones, copa, default, miniature, study
from mdtrap_jax import config as settings
from mdtrap_jax import models
from mdtrap_jax.config import loading
from mdtrap_jax.config.fields import KINDS
from mdtrap_jax.experiments import finetune
from mdtrap_jax.methods.heads import METHODS as HEADS
from mdtrap_jax.methods.tuning.choices import make_parameterization
from mdtrap_jax.objectives import chain
from tests.episodes import small_config
from tests.paths import ROOT

TARGETS = ["chestx", "isic", "eurosat", "cropdisease"]

# METHOD.md, section 2, by hand: what is published, not what default.py says.
PUBLISHED = {
  "seed": 0,
  "seeds": 1,
  "data.ways": 5,
  "data.shots": 1,
  "data.queries": 15,
  "data.resize": "squash",
  "model.name": "openai/clip-vit-base-patch16",
  "lora.encoder": "vision",
  "lora.position": "all",
  "lora.projections": ("q", "k", "v"),
  "lora.rank": 16,
  "lora.alpha": 8.0,
  "lora.scale": "sqrt",
  "lora.dropout": 0.25,
  "objective.vlm.weight": 1.0,
  "objective.vlm.window": (0, 5),
  "objective.visual.weight": 0.0,
  "objective.visual.window": (0, 3),
  "objective.svl.weight": 0.1,
  "objective.svl.window": (0, 3),
  "objective.ra.weight": 3.0,
  "objective.ra.window": (0, 3),
  "objective.ra.divergence": "cosine",
  "objective.symmetric.weight": 0.0,
  "adapt.views": 5,
  "adapt.batch_size": 0,
  "adapt.chunk": 0,
  "optimizer.learning_rate": 2e-4,
  "optimizer.floor": 1e-6,
  "optimizer.periods": 8.0,
  "optimizer.weight_decay": 1e-2,
  "optimizer.b1": 0.9,
  "optimizer.b2": 0.999,
  "optimizer.eps": 1e-8,
}


BY_NAME = {  # by getattr, or where what was left open is settled
  "data.background", "data.files", "data.max_pixels", "data.window", "adapt.steps_per_shot",
}  # fmt: skip


def get_config(name, *method):
  return importlib.import_module(f"configs.{name}").get_config(*method)


@pytest.mark.parametrize("name", [*TARGETS, "folder"])
def test_every_target_has_the_published_values(name):
  config = settings.resolve(get_config(name))
  assert {field: settings.get(config, field) for field in PUBLISHED} == PUBLISHED
  steps = 125 if name == "chestx" else 250
  assert (config.adapt.steps_per_shot, config.adapt.steps, config.episodes) == (steps, steps, 800)
  assert (config.experiment, config.data.name) == ("finetune", name)


@pytest.mark.parametrize(
  ("method", "weights"),
  [  # of vlm, visual, svl, ra
    ("svl_ra", (1.0, 0.0, 0.1, 3.0)),
    ("svl", (1.0, 0.0, 0.1, 0.0)),
    ("ra", (1.0, 0.0, 0.0, 3.0)),
    ("vlm", (1.0, 0.0, 0.0, 0.0)),
    ("visual", (1.0, 0.1, 0.0, 0.0)),
    ("baseline", (1.0, 0.0, 0.0, 0.0)),
  ],
)
@pytest.mark.parametrize("name", [*TARGETS, "folder"])
def test_every_method_has_its_weights(name, method, weights):
  config = settings.resolve(get_config(name, method))
  assert tuple(config.objective[t].weight for t in ("vlm", "visual", "svl", "ra")) == weights
  assert config.objective.symmetric.weight == 0.0
  assert config.adapt.batch_size == (25 if method == "baseline" else 0)


def test_no_other_methods():
  assert set(default.METHODS) == {"svl_ra", "svl", "ra", "vlm", "visual", "baseline"}
  with pytest.raises(ValueError, match="svlra: no such method.*svl_ra"):
    default.get_config("svlra")


@pytest.mark.parametrize(
  ("name", "method", "shots", "steps", "episodes"),
  [
    ("eurosat", "svl_ra", 1, 250, 800),
    ("isic", "svl_ra", 5, 1250, 400),
    ("chestx", "svl_ra", 1, 125, 800),
    ("chestx", "svl_ra", 5, 625, 400),
    ("eurosat", "baseline", 1, 250, 800),
    ("eurosat", "baseline", 5, 250, 400),
    ("chestx", "baseline", 1, 125, 800),
    ("chestx", "baseline", 5, 125, 400),
  ],
)
def test_the_papers_schedules(name, method, shots, steps, episodes):
  config = get_config(name, method)
  config.data.shots = shots
  config = settings.resolve(config)
  assert (config.adapt.steps, config.episodes) == (steps, episodes)
  assert chain.evaluation_marks(steps)[-1] == steps


@pytest.mark.parametrize(("encoder", "weight"), [("vision", 0.1), ("text", 0.001), ("both", 0.1)])
def test_svl_is_weaker_where_the_text_encoder_alone_is_tuned(encoder, weight):
  config = default.get_config()
  config.lora.encoder = encoder
  assert settings.resolve(config).objective.svl.weight == weight


# The papers' own values, by hand: of their text or of their published code.
ADAMW = {"optimizer.name": "adamw", "optimizer.warmup_steps": 0}
# Dassl's momentum and decay, a cosine to 0 after an epoch at 1e-5; here an epoch is a step.
SGD = {
  "optimizer.name": "sgd", "optimizer.momentum": 0.9, "optimizer.weight_decay": 5e-4,
  "optimizer.floor": 0.0, "optimizer.periods": 1.0,
  "optimizer.warmup_steps": 1, "optimizer.warmup_rate": 1e-5,
}  # fmt: skip
TUNED = {
  "lora": {**ADAMW, "tune": "lora", "lora.dora": False, "lora.start": "zero"},
  # DoRA, ICML 2024: LoRA's own settings, and the columns' lengths.
  "dora": {**ADAMW, "tune": "lora", "lora.dora": True, "lora.rank": 16, "lora.start": "zero"},
  # PiSSA, NeurIPS 2024: alpha = r, a scale of alpha / r = 1, no dropout.
  "pissa": {
    **ADAMW, "tune": "lora", "lora.dora": False, "lora.start": "pissa", "lora.rank": 16,
    "lora.alpha": 16.0, "lora.scale": "linear", "lora.dropout": 0.0,
  },
  # CoOp, IJCV 2022: M=16, class token at the end, a unified context drawn from N(0, 0.02²); SGD at
  # 0.002; 50 epochs at 1 shot.
  "coop": {
    **SGD, "tune": "coop", "coop.tokens": 16, "coop.words": "", "coop.per_class": False,
    "optimizer.learning_rate": 2e-3, "adapt.steps": 50,
    "objective.svl.weight": 0.001,  # of the text branch: CVPR 2026
  },
  # MaPLe, CVPR 2023: depth 9, 2 tokens, "a photo of a"; SGD at 0.0035.
  "maple": {
    **SGD, "tune": "maple", "maple.depth": 9, "maple.tokens": 2, "maple.words": "a photo of a",
    "optimizer.learning_rate": 3.5e-3, "objective.svl.weight": 0.1,
  },
  # Tent, ICLR 2021, and BitFit, ACL 2022: Adam, 1e-3 (the upper end of BitFit's range).
  "layernorm": {
    **ADAMW, "tune": "layernorm", "layernorm.encoder": "vision", "layernorm.position": "all",
    "optimizer.learning_rate": 1e-3, "optimizer.weight_decay": 0.0,
  },
  "bias": {
    **ADAMW, "tune": "bias", "bias.encoder": "vision", "bias.position": "all",
    "optimizer.learning_rate": 1e-3, "optimizer.weight_decay": 0.0,
  },
}  # fmt: skip


@pytest.mark.parametrize("tune", default.TUNES)
@pytest.mark.parametrize("name", TARGETS)
def test_what_is_trained_has_the_hyper_parameters_of_its_paper(name, tune):
  for row in (tune, f"svl_ra,{tune}", f"{tune},svl_ra"):
    config = settings.resolve(get_config(name, row))
    assert {field: settings.get(config, field) for field in TUNED[tune]} == TUNED[tune]
    assert (config.objective.ra.weight, config.data.name) == (3.0, name)


def test_a_context_of_words_has_a_token_for_each():
  config = default.get_config("coop")
  config.coop.words = "a photo of a"
  assert settings.resolve(config).coop.tokens == 4
  with pytest.raises(ValueError, match="vlm,svl: no such method.*coop.*METHOD,TUNE"):
    default.get_config("vlm,svl")


@pytest.mark.parametrize("method", sorted(HEADS))
def test_heads_have_the_published_protocol(method):
  config = copa.get_config(method)
  config.model.random_weights = True
  config = settings.resolve(config)
  assert (config.experiment, config.method) == ("heads", method)
  assert (config.seed, config.seeds, config.episodes) == (41, 5, 600)
  assert config.domains == ("isic", "cropdisease", "eurosat", "chestx")
  data = config.data
  assert (data.protocol, data.ways, data.shots, data.queries) == ("fixed", 5, 5, 15)
  assert config.model.name == "resnet18"
  assert set(config.head.values()) == {None}  # as the method and the domain have it


def test_the_other_experiments():
  assert settings.resolve(miniature.get_config()).experiment == "pretrain"
  config = settings.resolve(study.get_config())
  assert config.adapt.steps is None  # follows from the shots of each cell
  assert (config.objective.visual.weight, config.study.shots) == (0.1, (1, 5))


@pytest.mark.parametrize(
  ("backbone", "model"),
  [
    ("clip", "clip-vit-b16"),
    ("siglip", "siglip-b16-224"),
    ("siglip2", "siglip2-b16-224"),
    ("pe_core", "pe-core-b16-224"),
  ],
)
def test_every_backbone_is_adapted_alike(backbone, model):
  config = settings.resolve(backbones.get_config(f"{backbone},chestx,svl"))
  assert (config.model.name, config.data.name, config.adapt.steps) == (model, "chestx", 125)
  assert config.objective.ra.weight == 0.0
  model = models.build(config.model.name)
  adaptation = finetune.make_method(config, config.objective.to_dict(), model, 100.0)
  lora = adaptation.parameterization.config
  factors = jax.eval_shape(lambda: model.init_lora(jax.random.key(0), lora))["image"]
  assert factors.a.shape == (12, 3, 768, 16)


@pytest.mark.parametrize("row", ["pe_core", "pe,isic", "pe_core,cifar", "clip,isic,vlm,vlm"])
def test_unknown_rows(row):
  with pytest.raises(ValueError, match="give BACKBONE,TARGET"):
    backbones.get_config(row)


@pytest.mark.parametrize("name", [*sorted(loading.packaged()), "fsl:tip_adapter_f,folder"])
def test_every_field_has_a_rule_and_a_comment(name):
  config = loading.load(name)
  fields = {field for field, _ in settings.flatten(config) if not field.startswith("variants.")}
  known = {field for field in KINDS[config.experiment] if not field.startswith("objective.")}
  assert {field for field in fields if not field.startswith("objective.")} == known
  assert [field for field, _, comment in loading.fields(name) if not comment] == []


@functools.cache
def names_in_the_package():
  """All attributes, arguments and keywords of the code."""
  names = set()
  for path in ROOT.glob("mdtrap_jax/**/*.py"):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      if isinstance(node, ast.Attribute):
        names.add(node.attr)
      elif isinstance(node, ast.arg | ast.keyword):
        names.add(node.arg)
  return names


@pytest.mark.parametrize("name", ["default", "copa", "study", "miniature", "fsl:ridge,folder"])
def test_every_field_is_read_somewhere(name):
  """A field whose name is no attribute or keyword anywhere in the package does nothing."""
  unread = [
    field
    for field, _ in settings.flatten(loading.load(name))
    if field.rsplit(".", 1)[-1] not in names_in_the_package() and not field.startswith("objective.")
  ]  # read by iteration
  assert set(unread) <= BY_NAME


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


def test_adaptation_follows_the_config():
  config = settings.resolve(small_config(lora__position="0, 1", lora__projections=("q", "v")))
  lora = make_parameterization(config).config
  assert (lora.position, lora.projections) == ((0, 1), ("q", "v"))
