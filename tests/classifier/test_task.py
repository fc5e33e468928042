"""From a method's name and the numbers of images to a config and a method."""

import jax
import numpy as np
import pytest

from mdtrap_jax.classifier import task as own_images
from mdtrap_jax.classifier.choices import head_names, make_config, method_names
from mdtrap_jax.classifier.forecast import forecast, measured_flops
from mdtrap_jax.experiments import finetune

TINY = {"model.random_weights": True, "lora.rank": 2}


@pytest.mark.parametrize(
  ("counts", "steps"),
  [((1, 1), 250), ((5, 6, 7), 1500), ((1, 2), 500), ((60, 60), 4000)],
)
def test_steps_are_the_papers(counts, steps):
  config = make_config("clip-tiny", "svl_ra", counts, fields=TINY)
  assert config.adapt.steps == steps
  assert (config.objective.svl.weight, config.objective.ra.weight) == (0.1, 3.0)
  assert config.data.template == "a photo of a {}."


def test_settings_are_those_of_the_method():
  assert make_config("clip-tiny", "vlm", (1, 1), fields=TINY).objective.ra.weight == 0
  assert make_config("miniature", "svl", (9, 9)).adapt.steps == 20  # the demonstration's
  own = make_config("miniature", "svl", (9, 9), fields={"adapt.steps": 50}, template=["a {}", "{}"])
  assert (own.adapt.steps, own.data.template) == (50, ("a {}", "{}"))
  head = make_config("miniature", "copa", (9, 9), fields={"head.l2": 0.5})
  assert (head.experiment, head.head.l2, head.head.steps) == ("heads", 0.5, None)
  assert {"zero_shot", "ncc", "url", "copa", "vlm", "svl", "svl_ra"} <= set(method_names())


def test_every_method_of_the_registry():
  """Of three classes, one of which has a single image; only built, not run."""
  model = finetune.load_model(make_config("clip-tiny", "vlm", (1, 2, 4), fields=TINY))[0]
  for name in method_names():
    fields = {"model.random_weights": True}
    config = make_config("clip-tiny", name, (1, 2, 4), fields=fields)
    head = name in head_names()
    scale = {"logit_scale": np.float32(2)}
    setting = own_images.Setting(config, name, model, scale, None if head else (), 10.0)
    steps = {"ncc": 0, "url": 40, "copa": 50}.get(name) if head else config.adapt.steps
    assert steps in (None, setting.method(7, 3).steps)


def test_how_long_it_takes():
  config = make_config("clip-tiny", "svl_ra", (5, 5), fields={**TINY, "adapt.steps": 10})
  model, params = finetune.load_model(config)
  setting = own_images.Setting(config, "svl_ra", model, params, (), 10.0)
  found = forecast(setting, 10, 1e9)
  weights = sum(leaf.size for leaf in jax.tree.leaves(params["image"]["blocks"]))
  once = 2 * weights * model.image.tokens * 10 / 1e9
  assert found.encoding == pytest.approx(once)
  # Ten steps of five views, six of them with the clean pass, three times a forward pass; and six
  # evaluations.
  assert found.adapting == pytest.approx(once * (3 * (10 * 5 + 6) + 6))
  assert measured_flops() > 1e8


def test_a_method_has_the_rows_of_the_task():
  config = make_config("clip-tiny", "svl_ra", (3, 1, 4), fields=TINY)
  model, params = finetune.load_model(config)
  setting = own_images.Setting(config, "svl_ra", model, params, (), 30.0)
  method = setting.method(8, 3)
  lora = method.parameterization.config
  factors = jax.eval_shape(lambda: model.init_lora(jax.random.key(0), lora))
  memory = jax.eval_shape(method.tx.init, factors)["ra"].memory
  assert memory.relation.shape == (5 * 8, 8)
  assert setting.method(8, 3) is method  # so that its programs are compiled once
  assert setting.method(9, 3) is not method


def test_the_last_batch_is_filled_up():
  seen = []

  def fn(rows):
    seen.append(rows.tolist())
    return rows * 2.0

  out = own_images.in_batches(fn, np.arange(5)[:, None], 2, 1)
  assert out.ravel().tolist() == [0, 2, 4, 6, 8]
  assert seen[-1] == [[4], [4]]
