"""The packaged weights: size, interface, and zero-shot accuracy on a few hundred scenes."""

import jax
import numpy as np
import pytest

from mdtrap_jax import checkpoints, models
from mdtrap_jax.models.families import miniature
from mdtrap_jax.world import LOOKS, WorldSource, zero_shot
from mdtrap_jax.world.captions import VOCABULARY


@pytest.fixture(scope="module")
def loaded():
  return checkpoints.load("miniature")


def accuracy(loaded, source, queries):
  return zero_shot.evaluate(*loaded, source, episodes=300, queries=queries)


def test_the_package_has_weights_and_card():
  assert sum(path.stat().st_size for path in miniature.WEIGHTS.iterdir()) < 10e6
  assert "Apache-2.0" in (miniature.WEIGHTS / "MODEL_CARD.md").read_text()


def test_it_loads_by_name_as_the_size_that_build_makes(loaded):
  model, params = loaded
  built = models.build("miniature")
  assert (model.image, model.text) == (built.image, built.text)
  assert (model.image_mean, model.image_std) == (built.image_mean, built.image_std)
  assert model.tokenize.vocabulary == built.tokenize.vocabulary == VOCABULARY
  sizes = {
    name: sum(leaf.size for leaf in jax.tree.leaves(params[name])) for name in ("image", "text")
  }
  assert sizes["image"] < 1e6
  assert sum(sizes.values()) < 5e6
  assert model.image.tokens == 37
  assert 1 < model.logit_scale(params) <= 100.001


def test_the_templates_words_are_known(loaded):
  ids = loaded[0].tokenize(["a photo of a striped red circle.", "a photo of a digit one."])
  assert VOCABULARY.index("<unk>") not in ids


def test_zero_shot_on_held_out_source_scenes(loaded):
  assert accuracy(loaded, WorldSource(images_per_class=3), 2).mean >= 0.8


@pytest.mark.parametrize("domain", sorted(set(LOOKS) - {"source"}))
def test_zero_shot_falls_with_severity(loaded, domain, monkeypatch):
  """The same scenes at each severity; a rise must be within the 95 % intervals of both."""
  monkeypatch.setattr(zero_shot, "BATCH", 4 * 42)  # 42 classes: none is encoded twice
  table = [
    accuracy(loaded, WorldSource(domain, severity, images_per_class=4), 3)
    for severity in (0.0, 0.5, 1.0)
  ]
  for milder, harder in zip(table, table[1:], strict=False):
    assert harder.mean <= milder.mean + np.hypot(milder.ci95, harder.ci95)
  assert table[-1].mean < table[0].mean - 0.05
