"""Feature sets: files, checks, extraction and its cache."""

import json

import jax
import numpy as np
import pytest

from mdtrap_jax.data.features import Extractor, cached_features, check_features, read_features
from mdtrap_jax.data.sources import ArraySource
from mdtrap_jax.methods.extractors import Backbone, fingerprint, make_extractor
from mdtrap_jax.models.resnet import ResNet18

FEATURES = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
LABELS = np.array([0, 0, 1, 1, 2, 2])


def make_source(seed=0):
  images = np.random.default_rng(seed).integers(0, 256, (6, 10, 12, 3), dtype=np.uint8)
  return ArraySource(images, LABELS, ["a", "b", "c"])


def mean_extractor(identity="one"):
  calls = []

  def encode(pixels):
    calls.append(len(pixels))
    return pixels.astype(np.float32).mean((1, 2))

  return Extractor("mean", identity, 8, encode), calls


def test_npz_with_one_or_several_sets(tmp_path):
  np.savez(tmp_path / "one.npz", features=FEATURES, labels=LABELS)
  found = read_features(tmp_path / "one.npz", "x")
  np.testing.assert_array_equal(found.features, FEATURES)
  assert found.class_names == ("0", "1", "2")
  np.savez(
    tmp_path / "two.npz",
    **{"b/features": FEATURES, "b/labels": LABELS, "b/classes": ["p", "q", "r"]},
  )
  assert read_features(tmp_path / "two.npz", "b").class_names == ("p", "q", "r")
  with pytest.raises(ValueError, match="domains b"):
    read_features(tmp_path / "two.npz", "c")


def test_a_folder_is_read_as_a_memory_map(tmp_path):
  folder = tmp_path / "birds"
  folder.mkdir()
  np.save(folder / "features.npy", FEATURES)
  with pytest.raises(FileNotFoundError, match=r"labels\.npy"):
    read_features(tmp_path, "birds")
  np.save(folder / "labels.npy", LABELS)
  found = read_features(tmp_path, "birds")
  assert isinstance(found.features, np.memmap)
  with pytest.raises(FileNotFoundError, match=r"features\.npy"):
    read_features(tmp_path / "nothing", "birds")


@pytest.mark.parametrize(
  ("features", "labels", "names", "message"),
  [
    (FEATURES, LABELS[:5], None, r"\[6, 4\] and labels of shape \[5\]"),
    (FEATURES, LABELS.astype(float), None, "integers"),
    (FEATURES, LABELS, ["a", "b"], "largest label is 2, but there are only 2"),
    (FEATURES, LABELS, ["a", "b", "a"], "names a occur twice"),
    (np.where(np.eye(6, 4) > 0, np.nan, FEATURES), LABELS, None, "row 0 are NaN"),
    (np.full((6, 4), np.inf), LABELS, None, "NaN or infinite"),
  ],
)
def test_bad_features_are_refused(features, labels, names, message):
  with pytest.raises(ValueError, match=message):
    check_features("x", features, labels, names)


def test_a_missing_label_is_allowed_and_said():
  found = check_features("x", FEATURES, np.where(LABELS == 1, -1, LABELS), ["a", "b", "c"])
  assert set(found.labels) == {-1, 0, 2}


def test_features_are_computed_once(tmp_path):
  extractor, calls = mean_extractor()
  first = cached_features("d", make_source(), extractor, tmp_path, batch_size=4, threads=1)
  assert calls == [4, 4]  # the last batch is filled up: one shape, one program
  again = cached_features("d", make_source(), extractor, tmp_path, batch_size=4, threads=1)
  assert len(calls) == 2
  np.testing.assert_array_equal(first.features, again.features)
  assert again.class_names == ("a", "b", "c")
  loose = read_features(tmp_path / "mean", "d")  # the cache is a feature set like any other
  np.testing.assert_array_equal(loose.features, first.features)


def test_a_cache_of_another_model_or_of_other_data_is_refused(tmp_path):
  cached_features("d", make_source(), mean_extractor()[0], tmp_path, threads=1)
  with pytest.raises(ValueError, match="another model .*weights"):
    cached_features("d", make_source(), mean_extractor("two")[0], tmp_path, threads=1)
  with pytest.raises(ValueError, match="other data .*images"):
    cached_features("d", make_source(seed=1), mean_extractor()[0], tmp_path, threads=1)


def test_a_cache_that_a_kill_left_half_written_is_made_again(tmp_path):
  (tmp_path / "mean" / "d").mkdir(parents=True)
  (tmp_path / "mean" / "d" / "features.npy").write_bytes(b"half")
  found = cached_features("d", make_source(), mean_extractor()[0], tmp_path, threads=1)
  assert found.features.shape == (6, 3)
  assert json.loads((tmp_path / "mean" / "d" / "identity.json").read_text())["model"] == "mean"


def test_fingerprints_tell_weights_apart():
  model = ResNet18()
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
  other = jax.tree.map(np.copy, params)
  other["stem"]["conv"]["kernel"][0, 0, 0, 0] = 1e-7
  prints = [fingerprint(Backbone(model, p)) for p in (params, params, other)]
  assert prints[0] == prints[1] != prints[2]


def test_every_kind_of_features_of_the_image_towers():
  from mdtrap_jax import models

  backbone = Backbone(models.build("miniature"), None)
  with pytest.raises(ValueError, match="features.model=resnet18"):
    make_extractor("miniature", backbone, "map")
  model = backbone.model
  params = jax.jit(model.init)(jax.random.key(0))
  size = model.image.image_size
  pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
  extractor = make_extractor("miniature", Backbone(model, params), "pooled")
  assert extractor.encode(pixels).shape == (2, model.image.embed_dim)
