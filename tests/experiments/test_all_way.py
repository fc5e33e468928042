"""All classes of a data set at once, on folders of tiny images."""

import json

import jax
import numpy as np
import pytest

from configs import fsl
from mdtrap_jax import config as settings
from mdtrap_jax import experiments
from mdtrap_jax.data import images
from mdtrap_jax.data.array_source import ArraySource
from mdtrap_jax.data.parts import Parts, draw
from mdtrap_jax.data.views import normalize
from mdtrap_jax.experiments import all_way, finetune
from mdtrap_jax.methods.probes.schedules import papers_epochs
from mdtrap_jax.report import all_way as report
from mdtrap_jax.report.classification import wilson
from mdtrap_jax.run import loop
from mdtrap_jax.run.lines import read_episodes
from mdtrap_jax.run.stop import PreemptedError
from tests.data.test_releases import coop_release
from tests.experiments.conftest import NAMES


def make_config(folder, row="svl_ra,folder", **fields):
  config = fsl.get_config(row)
  config.update_from_flattened_dict(
    {
      "data.path": str(folder),
      "data.shots": 2,
      "model.name": "clip-tiny",
      "model.random_weights": True,
      "model.batch_size": 8,
      "adapt.steps": 10,
      "adapt.batch_size": 4,
      "optimizer.learning_rate": 1e-2,
      "objective.svl.weight": 0.1,
      "lora.rank": 2,
      "seeds": 2,
      "episodes_per_device": 1,
    }
    | fields
  )
  return config


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
  """A run of two seeds: its table and its directory."""
  workdir = tmp_path_factory.mktemp("run") / "all"
  return experiments.run(make_config(folder), workdir), workdir


def parts_of(counts=(4, 6), shared=False):
  def make(count):
    labels = np.repeat(np.arange(3), count)
    return ArraySource(np.zeros((3 * count, 2, 2, 3), np.uint8), labels, NAMES[:3])

  train = make(counts[0])
  return Parts(train, train if shared else make(counts[1]), make(5))


@pytest.mark.parametrize("shared", [False, True])
def test_support_and_validation_are_of_every_class_and_apart(shared):
  parts = parts_of(shared=shared)
  support, validation = draw(parts, 2, seed=3, number=0)
  assert support.shape == (3, 2)
  assert validation.shape == (3, 2)  # min(K, 4)
  np.testing.assert_array_equal(parts.train.labels[support], np.arange(3)[:, None].repeat(2, 1))
  np.testing.assert_array_equal(parts.val.labels[validation], np.arange(3)[:, None].repeat(2, 1))
  if shared:
    assert not set(support.flat) & set(validation.flat)
  again, _ = draw(parts, 2, seed=3, number=0)
  np.testing.assert_array_equal(support, again)
  others = [draw(parts, 2, seed=seed, number=0)[0] for seed in range(4, 8)]
  assert any((other != support).any() for other in others)
  assert draw(parts, 4, seed=0, number=0)[1].shape == (3, 0 if shared else 4)


def test_a_line_is_about_the_whole_test_split(finished, folder):
  table, workdir = finished
  lines = read_episodes(workdir)
  assert [line["seed"] for line in lines] == [0, 1]
  config = finetune.settled(make_config(folder))
  parts, _ = all_way.open_parts(config)
  model, params = finetune.load_model(config)
  rows = np.flatnonzero(parts.test.labels >= 0)
  assert len(rows) == 20
  read = [images.resize(parts.test.image(i), model.image.image_size) for i in rows]
  pixels = normalize(np.stack(read), model.image_mean, model.image_std)
  text = finetune.encode_prompts(model, params, NAMES, config.data.template).text
  unit = lambda x: np.asarray(x) / np.linalg.norm(x, axis=-1, keepdims=True)
  cosines = unit(model.encode_image(params, pixels)) @ unit(text).T
  expected = (cosines.argmax(-1) == parts.test.labels[rows]).mean()
  for line in lines:
    assert line["zero_shot_accuracy"] == pytest.approx(expected)
    assert line["tests"]["test"]["images"] == 20
    assert line["tests"]["test"]["accuracy"] == line["accuracy"]
    used = {*np.ravel(line["support"]), *np.ravel(line["query"])}
    assert not used & set(rows)
  accuracies = [line["accuracy"] for line in lines]
  found = json.loads((workdir / "summary.json").read_text())["tests"]["test"]
  assert found["accuracy_mean"] == pytest.approx(np.mean(accuracies))
  assert found["images_ci95"] == list(wilson(round(20 * np.mean(accuracies)), 20)[1:])
  assert f"{100 * expected:.2f}" in table
  assert len({tuple(line["losses"].values()) for line in lines}) == 2  # each seed on its own images


def test_a_run_stopped_while_it_is_tested_goes_on_there(finished, folder, tmp_path, monkeypatch):
  measure, ran = all_way._measure, []

  def stopped(*arguments):
    measure(*arguments[:-1], lambda note: None)
    raise PreemptedError("asked to stop")

  monkeypatch.setattr(all_way, "_measure", stopped)
  config = make_config(folder, seeds=1)
  with pytest.raises(PreemptedError):
    experiments.run(config, tmp_path / "run")
  monkeypatch.setattr(all_way, "_measure", measure)
  step = loop.Lengths.of
  monkeypatch.setattr(loop.Lengths, "of", lambda self, clean: ran.append(1) or step(self, clean))
  experiments.run(config, tmp_path / "run")
  assert not ran  # no step again
  # Two seeds ran on two devices there: losses differ by rounding.
  same = lambda line: {k: v for k, v in line.items() if k not in ("losses", "terms")}
  assert same(read_episodes(tmp_path / "run")[0]) == same(read_episodes(finished[1])[0])


def test_base_classes_are_adapted_and_new_ones_and_other_data_tested_too(folder, tmp_path):
  fields = {"adapt.augmentation": "views", "adapt.batch_size": 4, "base_to_new": True}
  fields["transfer"] = (f"dtd={coop_release(tmp_path / 'dtd', 'dtd')}",)
  # Two images of three classes, five views of each, are 7 batches.
  fields |= {"adapt.steps": None, "adapt.epochs": 2, "optimizer.warmup_steps": 1}
  config = make_config(folder, "vlm,lora,folder", **fields)
  table = experiments.run(config, tmp_path / "run")
  for line in read_episodes(tmp_path / "run"):
    assert tuple(line["tests"]) == report.examinations(config)
    assert line["class_names"] == list(NAMES[:3])
    images = {name: test["images"] for name, test in line["tests"].items()}
    assert images == {"base": 12, "new": 8, "dtd": 4}
    assert not {*np.ravel(line["support"])} & {*np.ravel(line["query"])}
  assert "harmonic mean" in table
  kept = json.loads((tmp_path / "run" / "config.json").read_text())
  assert (kept["adapt"]["epochs"], kept["adapt"]["steps"]) == (2, 14)
  assert kept["optimizer"]["warmup_steps"] == 7
  assert experiments.run(config, tmp_path / "run") == table  # the same run, and done
  config.adapt.epochs = 3
  with pytest.raises(settings.ConfigMismatchError, match="adapt.epochs"):
    experiments.run(config, tmp_path / "run")
  tests = json.loads((tmp_path / "run" / "summary.json").read_text())["tests"]
  base, new = tests["base"]["accuracy_mean"], tests["new"]["accuracy_mean"]
  expected = 2 * base * new / (base + new) if base + new else 0
  assert tests["harmonic_mean"] == pytest.approx(expected)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"data.shots": 5}, "fewer than shots"),
    ({"data.shots": 4}, "fewer than shots"),  # none is left to validate on
    ({"data.small_classes": "drop"}, "data.small_classes=drop: all classes take part"),
    ({"data.unreadable": "skip"}, "data.unreadable=skip: the whole test split"),
    ({"predictions": True}, "predictions=True: it would be of the validation images"),
    ({"variants": {"one": {"svl": 0.0}}}, "config.variants: runs on all classes have none"),
    ({"objective.visual.weight": 0.1}, "visual compares all views"),
    ({"transfer": ("pets=x",)}, "data.domain=pets: choose one of"),
    ({"adapt.augmentation": "none"}, "adapt.augmentation=none"),
  ],
)
def test_what_cannot_be_is_one_line_before_a_model_is_loaded(fields, message, folder, tmp_path):
  with pytest.raises(ValueError, match=message):
    experiments.run(make_config(folder, **fields), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_episodes_have_other_fields():
  config = fsl.get_config("svl_ra,dtd")
  assert "ways" not in config.data
  config = settings.resolve(config)
  assert (config.adapt.steps, config.adapt.batch_size, config.episodes) == (500, 32, 1)


@pytest.mark.parametrize(
  ("row", "shots", "steps", "warmup"),  # of 47 classes
  [
    ("vlm,lora,dtd", 4, 2000, 0),
    ("vlm,coop,dtd", 1, 50 * 1, 1),
    ("coop,dtd", 4, 100 * 5, 5),  # 188 images are 5 whole batches of 32
    ("baseline,coop,dtd,coop", 4, 100 * 5, 5),
    ("svl_ra,coop,dtd,coop", 7, 200 * 10, 10),
    ("vlm,coop,dtd", 16, 200 * 23, 23),
    ("vlm,coop,imagenet", 16, 50 * 23, 23),
    ("svl_ra,maple,dtd", 16, 5 * 188, 188),
  ],
)
def test_steps_are_the_epochs_of_what_is_trained(row, shots, steps, warmup):
  config = fsl.get_config(row)
  config.data.shots = shots
  config = all_way.with_steps(settings.resolve(config), 47 * shots)
  assert (config.adapt.steps, config.optimizer.warmup_steps) == (steps, warmup)
  given = fsl.get_config(row)
  given.adapt.steps = 60
  given = settings.resolve(given)
  assert all_way.with_steps(given, 47 * shots) == given  # the steps alone say it


def test_epochs_of_views_and_what_cannot_be():
  config = fsl.get_config("maple,dtd")
  config.adapt.augmentation = "views"
  found = all_way.with_steps(settings.resolve(config), 9)
  assert found.adapt.steps == 5 * (5 * 9 // 4)
  config.adapt.epochs = 2**31 - 1
  with pytest.raises(ValueError, match="adapt.epochs=2147483647: these are 23622320117 steps"):
    all_way.with_steps(settings.resolve(config), 9)
  config.adapt.epochs, config.adapt.batch_size = 3, 0
  with pytest.raises(ValueError, match="adapt.epochs=3: of 10 images in batches of 10 these are 3"):
    all_way.with_steps(settings.resolve(config), 2)
  config.adapt.epochs = 1  # its warm-up would be all
  with pytest.raises(ValueError, match="warmup_steps=1: must be below config.adapt.epochs=1"):
    settings.resolve(config)
  for wrong in (0, (), (8, 200), ((2, 5),), ((1, 5), (1, 6)), ((1, 5, 6),), "many"):
    config.adapt.epochs = wrong
    with pytest.raises(
      ValueError, match="adapt.epochs=.*: must be a whole number from 1, or pairs"
    ):
      settings.resolve(config)


def test_heads_take_coops_epochs_too():
  """Of papers that say so: the same as CoOp's own."""
  config = fsl.get_config("coop,dtd")
  for shots in range(1, 17):
    config.data.shots = shots
    assert settings.resolve(config).adapt.epochs == papers_epochs(shots)


def test_numbers_do_not_depend_on_how_many_seeds_run_at_once(finished, folder, tmp_path):
  experiments.run(make_config(folder, episodes_per_device=2), tmp_path / "run")
  assert jax.device_count() > 1
  for here, there in zip(read_episodes(tmp_path / "run"), read_episodes(finished[1]), strict=True):
    assert here["accuracy"] == there["accuracy"]
