"""The checker: what is refused, what is settled, and that nothing given is changed."""

import math
from pathlib import Path

import ml_collections
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import copa, default, fsl, miniature, study, sweep_paper
from mdtrap_jax import config as checker
from mdtrap_jax.config.fields import KINDS

NAN, INFINITE = math.nan, math.inf


def heads(**fields):
  config = copa.get_config()
  config.model.random_weights = True
  return changed(config, fields)


def changed(config, fields):
  for field, value in fields.items():
    checker.put(config, field, value)
  return config


def refused(config, **fields):
  with pytest.raises(ValueError, match=r"^(--)?config\.\S.* \S.*") as caught:
    checker.resolve(changed(config, fields))
  assert "\n" not in str(caught.value)
  return str(caught.value)


@pytest.mark.parametrize(
  ("field", "values", "must"),
  [
    (
      "experiment",
      ["tune", None, 5],
      "choose one of all_way, all_way_heads, finetune, heads",
    ),
    ("seed", [-1, 2**31, 2**40, 2**63, 0.5, "a", True, None], "a whole number from 0"),
    ("seeds", [0, -1, 1.5], "a whole number from 1"),
    ("episodes", [0, -1, 2**31, NAN, "five"], "a whole number from 1"),
    ("episodes_per_device", [-1, 1.0], "a whole number from 0"),
    ("weight_shards", [0, -2, None], "a whole number from 1"),
    ("data.ways", [1, 0, -5, 2.0], "a whole number from 2"),
    ("data.shots", [0, -1, "1", (1,)], "a whole number from 1"),
    ("data.queries", [0], "a whole number from 1"),
    ("data.threads", [0, 10**6], "a whole number from 1 to 1024"),
    ("data.severity", [-0.1, 1.5, NAN], "a finite number from 0 and up to 1"),
    ("data.classes", ["MEL,NV"], "as in \"('MEL','NV')\""),
    ("data.classes", ["(MEL,)", "MEL,"], "as in \"('MEL',)\""),
    ("data.classes", [("MEL", "MEL")], "twice"),
    ("data.classes", [(1, 2)], "must be text"),
    ("data.template", ["a photo", (), ("a {}", "b"), 5, (3,)], "{}"),
    ("data.background", [(0, 0), (0, 0, 256), 255, (0.0, 0, 0)], ""),
    ("data.window", [(1,), (1, 2, 3), (5, 5), (9, 1), (0, INFINITE), "0,1"], ""),
    ("data.max_pixels", [-1, 1.5], "a whole number from 0"),
    ("data.resize", ["stretch", None], "choose one of family, squash, crop"),
    ("data.unreadable", ["ignore"], "choose one of error, skip"),
    ("data.small_classes", ["keep"], "choose one of error, drop"),
    ("data.path", [5, None], "must be text"),
    ("data.images_per_class", [0, 2**31 - 1], "a whole number from 1 to 100000"),
    ("episodes", [2**31 - 1], "2147483647 tasks; a run has 10000000 at most"),
    ("model.dtype", ["float64"], "choose one of auto, float32, bfloat16, float16"),
    ("model.random_weights", ["yes", 1, None], "true or false"),
    ("model.batch_size", [0], "a whole number from 1"),
    ("lora.encoder", ["image"], "choose one of vision, text, both"),
    ("lora.projections", [("q", "x"), (), "qkv", ("q", "q")], ""),
    ("lora.position", ["middle", "", ",", "1,x"], "choose one of all, bottom"),
    ("lora.rank", [0], "a whole number from 1"),
    ("lora.dropout", [1, 1.0, -0.1, NAN], "from 0 and below 1"),
    ("lora.alpha", [INFINITE, NAN, "8"], "a finite number"),
    ("objective.ra.weight", [NAN, INFINITE, None, "3"], "a finite number"),
    ("objective.ra.window", [(3, 0), (0, 6), (0,), (0.0, 3.0), 3], ""),
    ("objective.ra.divergence", ["kl"], "choose one of cosine, softmax"),
    ("adapt.steps", [0, 4, -1], ""),
    ("adapt.views", [0], "a whole number from 1"),
    ("adapt.batch_size", [-1], "a whole number from 0"),
    ("optimizer.learning_rate", [0, -1.0, NAN, INFINITE], "greater than 0"),
    ("optimizer.floor", [NAN, -1e-9], "a finite number from 0"),
    ("optimizer.periods", [0, NAN], "greater than 0"),
    ("optimizer.weight_decay", [-1, INFINITE], "a finite number from 0"),
    ("optimizer.b1", [1, -0.1, NAN], "from 0 and below 1"),
    ("optimizer.b2", [2, 1.0], "from 0 and below 1"),
    ("optimizer.eps", [0, NAN], "greater than 0"),
  ],
)
def test_what_cannot_be_right_is_named_as_typed(field, values, must):
  for value in values:
    message = refused(default.get_config(), **{field: value})
    assert message.startswith(f"--config.{field}="), value
    assert must in message, value


@pytest.mark.parametrize(
  ("field", "values"),
  [
    ("seed", [-1, 2**40, 2**31 - 3]),  # the last one is one of five
    ("episodes_per_device", [-1]),
    ("method", ["capo"]),
    ("domains", [(), "isic", ("../x=/x",), ("=/x",)]),
    ("data.protocol", ["any"]),
    ("data.records_split", ["all"]),
    ("head.steps", [-1, 1.5]),
    ("head.learning_rate", [0, NAN]),
    ("head.l2", [-1, NAN]),
    ("diagnosis.tasks", [-1]),
    ("diagnosis.distances", [(1, 0, 5), (0, 1), (0, 1, 1), (0, 1, 2.5), (NAN, 1, 5)]),
  ],
)
def test_heads_refuse_alike(field, values):
  for value in values:
    assert field in refused(heads(), **{field: value})


def test_what_is_too_much_together():
  message = refused(default.get_config(), **{"adapt.steps_per_shot": 2**30, "data.shots": 2})
  assert "of config.data.shots=2 these are more than 2147483647 steps" in message
  message = refused(default.get_config(), seed=2**31 - 3, seeds=4)
  assert message.startswith("--config.seed=2147483645: of config.seeds=4 the last is 2147483648")
  message = refused(heads(), seeds=2, episodes=2 * 10**6)
  assert "these are 16000000 tasks" in message


def test_other_kinds_refuse_alike():
  assert "whole number from 1" in refused(miniature.get_config(), batch_size=0)
  assert "below config.steps=20" in refused(miniature.get_config(), steps=20, warmup_steps=20)
  assert "model.activation" in refused(miniature.get_config(), **{"model.activation": "relu6"})
  assert "study.shots" in refused(study.get_config(), **{"study.shots": (0,)})
  assert "twice" in refused(study.get_config(), **{"study.severities": (0.5, 0.5)})


@pytest.mark.parametrize(
  ("variants", "message"),
  [
    ({"snapshots": {}}, "config.variants.snapshots"),
    ({"Events": {}}, "config.variants.Events"),
    ({"process-3": {}}, "process-3"),
    ({"a/b": {}}, "slash"),
    ({"a": {}, "A": {}}, "one folder"),
    ({"vlm": {"foo": 1}}, "--config.variants.vlm.foo=1: the objective has no such term"),
    ({"vlm": {"slv": 1}}, "did you mean svl"),
    ({"vlm": {"ra": NAN}}, "--config.variants.vlm.ra=nan: must be a finite number"),
    ({"vlm": 3}, "weights of terms"),
  ],
)
def test_variants_are_folders_of_weights(variants, message):
  config = default.get_config()
  config.variants = ml_collections.ConfigDict(variants)
  assert message in refused(config)


def test_unknown_missing_and_renamed_fields():
  config = default.get_config()
  with config.unlocked():
    config.data.shot = 5
  assert "Did you mean --config.data.shots?" in refused(config)
  config = copa.get_config()
  with config.unlocked():
    config.tasks = ml_collections.ConfigDict({"ways": 5})
  assert refused(config) == "config.tasks.ways is now config.data.ways."
  assert "is now how many" in refused(heads(), seeds=(41, 42))
  config = default.get_config()
  del config.optimizer.b1
  assert "config.optimizer.b1 is absent" in refused(config)


def test_a_term_of_ones_own_may_have_options():
  config = default.get_config()
  config.objective.spread = ml_collections.ConfigDict(
    {"weight": 1, "window": [0, 3], "margin": "wide"}
  )
  spread = checker.resolve(config).objective.spread
  assert spread.to_dict() == {"weight": 1.0, "window": (0, 3), "margin": "wide"}
  del config.objective.spread.weight
  assert "objective.spread.weight is absent" in refused(config)


def test_what_is_settled(monkeypatch):
  monkeypatch.setenv("HOME", "/home/somebody")
  fields = {
    "data.path": "~/photos", "data.cache_dir": "~/cache", "model.name": "~/clip",
    "data.classes": ["MEL", "NV"], "data.shots": np.int64(5), "lora.alpha": 8,
    "lora.projections": ("v", "q"), "data.template": ["a {}", "the {}"],
  }  # fmt: skip
  given = changed(default.get_config(), fields)
  before = given.to_dict()
  config = checker.resolve(given)
  assert given.to_dict() == before
  data = config.data
  assert (data.path, data.cache_dir) == ("/home/somebody/photos", "/home/somebody/cache")
  assert config.model.name == "/home/somebody/clip"
  assert (data.classes, data.template) == (("MEL", "NV"), ("a {}", "the {}"))
  assert (type(data.shots), config.adapt.steps, config.episodes) == (int, 1250, 400)
  assert type(config.lora.alpha) is float
  assert config.lora.projections == ("q", "v")
  assert config.is_locked
  assert checker.resolve(config) == config
  domains = checker.resolve(heads(domains=("a=~/a", "world/satellite"))).domains
  assert domains == ("a=/home/somebody/a", "world/satellite")


def test_replacing_makes_another_config():
  config = checker.resolve(default.get_config())
  other = checker.replace(config, {"model.dtype": "float32", "data.template": "a {}"})
  assert (config.model.dtype, other.model.dtype) == ("auto", "float32")
  assert checker.differences(other.to_dict(), config.to_dict()) == [
    "data.template: None there, a {} here",
    "model.dtype: auto there, float32 here",
  ]
  free = {field: 7 for field in checker.RUNTIME_FIELDS if field in KINDS["finetune"]}
  assert checker.differences(checker.replace(config, free).to_dict(), config.to_dict()) == []


def test_variants_are_runs_of_their_own():
  config = default.get_config()
  assert list(checker.variants(checker.resolve(config))) == [""]
  config.variants = ml_collections.ConfigDict({"all": {}, "vlm": {"svl": 0, "ra": 0}})
  config = checker.resolve(config)
  runs = checker.variants(config)
  assert list(runs) == ["vlm", "all"]
  assert (runs["vlm"].objective.svl.weight, runs["all"].objective.svl.weight) == (0.0, 0.1)
  assert all(run.is_locked and not run.variants for run in runs.values())
  assert len(config.variants) == 2


VALUES = st.one_of(
  st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
  st.lists(st.one_of(st.integers(), st.floats(), st.text(max_size=3), st.none()), max_size=4),
  st.lists(st.lists(st.integers(), max_size=1), max_size=2), st.binary(max_size=3),
)  # fmt: skip
TEMPLATES = {
  "all_way": fsl.get_config,
  "all_way_heads": lambda: fsl.get_config("ridge,folder"),
  "finetune": default.get_config,
  "heads": copa.get_config,
  "study": study.get_config,
  "pretrain": miniature.get_config,
  "sweep": sweep_paper.get_config,
}
FIELDS = sorted(
  (kind, field) for kind, rules in KINDS.items() for field in rules if "*" not in field
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(FIELDS), VALUES)
def test_any_value_is_kept_or_refused_in_one_line(field, value):
  kind, field = field
  config = changed(TEMPLATES[kind](), {field: value})
  if kind == "heads" and field != "model.random_weights":
    config.model.random_weights = True
  complaint = ""
  try:
    config = checker.resolve(config)
  except ValueError as error:
    complaint = str(error)
  if complaint:
    assert "config." in complaint
    assert len(complaint.splitlines()) == 1
  else:
    assert checker.to_json(checker.resolve(config)) == checker.to_json(config)


def test_the_packages_that_choices_need_are_not_imported_early():
  folder = Path(checker.__file__).parent
  package = [folder.parent / "__init__.py", folder.parent / "__main__.py"]
  for path in (*package, *folder.glob("*.py")):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert not [
      line for line in lines if line.startswith(("import jax", "from jax", "import flax"))
    ]
