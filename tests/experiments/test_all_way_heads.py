"""All classes of a data set by methods on frozen features, on folders of tiny images."""

import json

import jax
import numpy as np
import pytest

from configs import fsl
from mdtrap_jax import config as settings
from mdtrap_jax import experiments
from mdtrap_jax.data import images
from mdtrap_jax.data.parts import draw
from mdtrap_jax.data.task import Task
from mdtrap_jax.data.views import normalize
from mdtrap_jax.experiments import all_way_heads, finetune
from mdtrap_jax.experiments.examination import open_parts
from mdtrap_jax.methods.heads import METHODS
from mdtrap_jax.run.lines import read_episodes


def make_config(folder, method, **fields):
  config = fsl.get_config(f"{method},folder")
  config.update_from_flattened_dict(
    {
      "data.path": str(folder),
      "data.shots": 3,
      "model.name": "clip-tiny",
      "model.random_weights": True,
      "model.batch_size": 8,
      "seeds": 2,
    }
    | fields
  )
  return config


def unit(rows):
  return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


class ByHand:
  """One seed after the other, without the loop, its programs and its cache."""

  def __init__(self, config):
    self.config = config = finetune.settled(config)
    self.parts, self.exams = open_parts(config)
    self.model, self.params = finetune.load_model(config)
    self.encode = jax.jit(self.model.encode_image)

  def features(self, source, rows):
    size = self.model.image.image_size
    pixels = np.stack([images.resize(source.image(int(row)), size) for row in rows])
    pixels = normalize(pixels, self.model.image_mean, self.model.image_std)
    return np.concatenate([self.encode(self.params, image[None]) for image in pixels])

  def text(self, source):
    template = self.config.data.template
    return finetune.encode_prompts(self.model, self.params, source.class_names, template).text

  def accuracies(self, seed):
    """By examination: adapted, and zero-shot."""
    support, validation = draw(self.parts, self.config.data.shots, seed, 0)
    labels = np.repeat(np.arange(len(support), dtype=np.int32), support.shape[1])
    scale = float(self.model.logit_scale(self.params))
    method = all_way_heads.make_method(
      self.config, ways=len(support), images=support.size, logit_scale=scale
    )
    query = self.features(self.parts.val, validation.ravel())
    task = Task(
      self.features(self.parts.train, support.ravel()), labels, query,
      np.repeat(np.arange(len(support)), validation.shape[1]), np.int32(seed), np.int32(0),
      text=self.text(self.parts.train),
    )  # fmt: skip
    needed = method.needed(self.params)
    prepared, state = method.prepare(needed, task)
    state = jax.jit(method.run)(needed, prepared, state, 0, method.steps)
    found = {}
    for name, source in self.exams.items():
      rows = np.flatnonzero(source.labels >= 0)
      inputs, text = self.features(source, rows), self.text(source)
      memory = dict(prepared.memory) | ({} if name in ("test", "base") else {"text": text})
      adapted = method.probe.logits(state.params, memory, inputs)
      zero_shot = unit(inputs) @ unit(text).T
      hits = [np.argmax(logits, -1) == source.labels[rows] for logits in (adapted, zero_shot)]
      found[name] = np.mean(hits, 1)
    return found


@pytest.mark.parametrize(
  ("method", "fields"),
  [
    ("tip_adapter_f", {"head.batch_size": 4, "head.learning_rate": 0.05}),
    ("clip_adapter", {"base_to_new": True, "head.steps": 3, "head.learning_rate": 3.0}),
  ],
)
def test_each_seed_says_of_the_whole_test_split_what_it_does_alone(
  method,
  fields,
  folder,
  tmp_path,
):
  config = make_config(folder, method, **fields, **{"data.cache_dir": str(tmp_path / "cache")})
  table = experiments.run(config, tmp_path / "run")
  hand, lines = ByHand(config), read_episodes(tmp_path / "run")
  assert [line["seed"] for line in lines] == [0, 1]
  for line in lines:
    expected = hand.accuracies(line["seed"])
    assert list(line["tests"]) == list(expected)
    for name, (adapted, zero_shot) in expected.items():
      assert line["tests"][name]["accuracy"] == pytest.approx(adapted, abs=1e-6)
      assert line["tests"][name]["zero_shot_accuracy"] == pytest.approx(zero_shot, abs=1e-6)
    assert not {*np.ravel(line["support"])} & {*np.ravel(line["query"])}
  assert len({line["losses"]["loss"] for line in lines}) == 2
  assert "zero-shot (%)" in table
  summary = json.loads((tmp_path / "run" / "summary.json").read_text())
  assert ("harmonic_mean" in summary["tests"]) == ("base_to_new" in fields)
  before = (tmp_path / "run" / "episodes.jsonl").read_text()
  assert experiments.run(config, tmp_path / "run") == table  # nothing is left to do
  assert (tmp_path / "run" / "episodes.jsonl").read_text() == before


def test_steps_are_epochs_of_the_authors_batches(folder):
  make = lambda name, images, **fields: all_way_heads.make_method(
    settings.resolve(make_config(folder, name, **fields)), ways=100, images=images
  )
  few, many = make("tip_adapter_f", 200), make("tip_adapter_f", 1600)
  assert (few.trained, few.batch_size) == (20, 200)
  assert (many.trained, many.batch_size) == (20 * (1600 // 256), 256)
  assert make("taskres", 1600).trained == 200 * 6  # more than four shots
  assert make("prolip", 1600).trained == 300
  assert make("tip_adapter_f", 1600, **{"head.batch_size": 0}).trained == 20
  assert make("tip_adapter_f", 1600, **{"head.steps": 7}).trained == 7


@pytest.mark.parametrize("name", sorted(n for n in METHODS if METHODS[n].transductive))
def test_what_compares_test_images_with_one_another_is_refused(name, folder, tmp_path):
  with pytest.raises(ValueError, match=f"{name}.*is transductive.*whole test split.*on episodes"):
    experiments.run(make_config(folder, name), tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("method", "fields", "message"),
  [
    ("copa_tsa", {}, "needs the ResNet-18's feature maps or images"),
    ("ridge", {"model.name": "resnet18"}, "measured against zero-shot"),
    (
      "ridge",
      {"base_to_new": True},
      "knows the classes of its support.*or clip_adapter or prolip",
    ),
    ("tip_adapter", {"transfer": ("dtd=x",)}, "knows the classes of its support set"),
    ("copa", {"head.distance": "l2"}, "CoPA's loss is one of cosines"),
    ("ridge", {"data.unreadable": "skip"}, "the whole test split"),
  ],
)
def test_what_cannot_be_is_one_line(method, fields, message, folder, tmp_path):
  with pytest.raises(ValueError, match=message):
    experiments.run(make_config(folder, method, **fields), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_an_unknown_method_is_told_both_kinds():
  with pytest.raises(ValueError, match="svl_ar,…: no such method.*svl_ra.*tip_adapter"):
    fsl.get_config("svl_ar,dtd")
