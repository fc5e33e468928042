"""What runs that adapt alike share: a method, by whose identity compiled programs are kept."""

import json

import jax
import ml_collections
import numpy as np
import pytest

from configs import fsl
from mdtrap_jax import config as configs
from mdtrap_jax import models
from mdtrap_jax.experiments import all_way, finetune
from mdtrap_jax.methods import extractors, heads
from mdtrap_jax.models.resnet import ResNet18
from mdtrap_jax.objectives import terms
from tests.episodes import small_config, smallest_clip


def make_episodic(scale=30.0, **fields):
  config = small_config(**fields)
  return finetune.make_method(config, config.objective.to_dict(), smallest_clip()[0], scale)


def make_all_way(scale=30.0, **fields):
  config = fsl.get_config("svl_ra,folder")
  config.update_from_flattened_dict(
    {"objective.svl.weight": 0.1, "adapt.steps": 10}
    | {name.replace("__", "."): fields[name] for name in fields}
  )
  return all_way.make_method(config, smallest_clip()[0], scale, images=6, width=32)


@pytest.mark.parametrize("make", [make_episodic, make_all_way])
def test_runs_that_adapt_alike_have_one_method(make, monkeypatch):
  method = make()
  assert make(data__path="elsewhere", seed=3, episodes_per_device=9) is method
  for other in (
    {"optimizer__learning_rate": 0.5},
    {"adapt__steps": 15},
    {"objective__svl__weight": 0.2},
    {"lora__rank": 3},
    {"model__dtype": "float16"},
    {"scale": 31.0},
  ):
    assert make(**other) is not method
  with jax.enable_x64(True):
    assert make() is not method
  # As where a notebook's cell registers a term of one's own anew.
  again = lambda *arguments, **options: terms.add_random_prototypes(*arguments, **options)
  monkeypatch.setitem(terms._TERMS, "svl", terms.TERMS["svl"]._replace(make=again))
  assert make() is not method


def test_a_config_that_was_written_and_read_is_the_same():
  config = small_config()
  again = ml_collections.ConfigDict(json.loads(configs.to_json(config)))
  model = smallest_clip()[0]
  make = lambda one: finetune.make_method(one, one.objective.to_dict(), model, 30.0)
  assert make(config) is make(again)


def test_other_sizes_are_other_methods():
  assert make_episodic(data__ways=2) is not make_episodic(data__ways=3)
  config = fsl.get_config("vlm,folder")
  config.adapt.steps = 10
  make = lambda **changed: all_way.make_method(
    config, smallest_clip()[0], 30.0, **{"images": 6, "width": 32} | changed
  )
  assert make() is make()
  assert make(images=4) is not make()
  assert make(width=16) is not make()


def test_heads_with_the_same_settings_are_one_method():
  make = lambda name="url", ways=3, **known: heads.make_method(name, ways=ways, **known)
  assert make() is make(steps=40)  # the published number
  assert make() is not make(steps=5)
  assert make() is not make("copa")
  assert make() is not make(ways=4)
  method = make()
  with jax.enable_x64(True):
    assert make() is not method


def test_equal_models_compile_once():
  build = lambda: models.build("clip-tiny")
  images = np.zeros((2, 64, 64, 3), np.uint8)

  def load():
    model = build()
    params = models.random_weights(model, jax.random.key(0))
    extractors.make_extractor("clip-tiny", extractors.Backbone(model, params), "pooled").encode(
      images
    )
    return params

  load()
  compiled = []
  event = "/jax/core/compile/backend_compile_duration"
  listen = lambda name, seconds, **_: compiled.append(seconds) if name == event else None
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    load()
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert not compiled
  other = models.random_weights(build(), jax.random.key(1))
  assert not np.array_equal(other["image"]["stem"]["position"], load()["image"]["stem"]["position"])
  assert models.random_weights(ResNet18(16, widths=(4, 4, 4, 8)), jax.random.key(0))
