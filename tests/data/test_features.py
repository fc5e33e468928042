"""Features of sources: extraction, and that it is done once."""

import jax
import numpy as np
import pytest
from absl import logging

from mdtrap_jax.data.align_corners import resize_align_corners
from mdtrap_jax.data.feature_files import read_features
from mdtrap_jax.data.features import Extractor, cached_features
from mdtrap_jax.data.sources import ArraySource
from mdtrap_jax.methods.extractors import Backbone, fingerprint, make_extractor
from mdtrap_jax.models.resnet import ResNet18

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


def test_features_are_computed_once(tmp_path):
  extractor, calls = mean_extractor()
  first = cached_features("d", make_source(), extractor, tmp_path, batch_size=4, threads=1)
  assert calls == [4, 4]  # the last batch is filled up: one shape, one program
  again = cached_features("d", make_source(), extractor, tmp_path, batch_size=4, threads=1)
  assert len(calls) == 2
  np.testing.assert_array_equal(first.features, again.features)
  assert again.class_names == ("a", "b", "c")
  (folder,) = tmp_path.iterdir()
  assert folder.name.startswith("mean_d_")
  loose = read_features(folder, "d")  # the cache is a feature set like any other
  np.testing.assert_array_equal(loose.features, first.features)


def test_other_weights_or_data_lie_beside_it(tmp_path):
  found = [
    cached_features("d", make_source(seed), mean_extractor(weights)[0], tmp_path, threads=1)
    for seed, weights in ((0, "one"), (0, "two"), (1, "one"))
  ]
  assert len(list(tmp_path.iterdir())) == 3
  again = cached_features("d", make_source(0), mean_extractor("one")[0], tmp_path, threads=1)
  np.testing.assert_array_equal(again.features, found[0].features)
  assert (again.features != found[2].features).any()


@pytest.mark.parametrize(
  "options", [{"resize": "crop"}, {"interpolation": "bicubic"}, {"unreadable": "skip"}]
)
def test_what_another_way_of_reading_made_is_not_taken(options, tmp_path):
  cached = lambda **options: cached_features(
    "d", make_source(), mean_extractor()[0], tmp_path, threads=1, **options
  )
  first, other = cached(), cached(**options)
  assert len(list(tmp_path.iterdir())) == 2
  same = "unreadable" in options
  assert np.array_equal(first.features, other.features) == same
  np.testing.assert_array_equal(cached().features, first.features)
  np.testing.assert_array_equal(cached(**options).features, other.features)


def test_features_that_are_not_finite_are_not_kept(tmp_path):
  extractor = Extractor("nan", "x", 8, lambda pixels: np.full((len(pixels), 2), np.nan))
  with pytest.raises(ValueError, match="NaN"):
    cached_features("d", make_source(), extractor, tmp_path, threads=1)
  assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_does_not_stop_the_run(tmp_path, monkeypatch):
  said = []
  monkeypatch.setattr(logging, "warning", lambda message, *args: said.append(message % args))
  (tmp_path / "file").write_text("")
  extractor, calls = mean_extractor()
  found = cached_features("d", make_source(), extractor, tmp_path / "file" / "c", threads=1)
  assert found.features.shape == (6, 3)
  assert len(said) == 1
  assert "not kept" in said[0]


def test_networks_of_meta_dataset_see_its_images_as_floats():
  source = make_source()
  encode = lambda pixels: pixels.reshape(len(pixels), -1)[:, :5].copy()
  extractor = Extractor("x", "x", 8, encode, align_corners=True)
  assert cached_features("d", source, extractor, None, threads=1).features.dtype == np.float32
  assert (cached_features("d", source, extractor, None, threads=1).features % 1 == 0).all()
  source.align_corners = True
  found = cached_features("d", source, extractor, None, threads=1)
  expected = resize_align_corners(source.image(4), 8).reshape(-1)[:5]
  np.testing.assert_array_equal(found.features[4], expected)
  assert (expected % 1 != 0).any()
  plain = cached_features("d", source, extractor._replace(align_corners=False), None, threads=1)
  assert (plain.features % 1 == 0).all()


def test_images_for_adapters_are_bytes_or_normalized_floats():
  backbone = Backbone(ResNet18(image_size=16), {})
  pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
  extractor = make_extractor("resnet18", backbone, "image")
  assert extractor.align_corners
  assert make_extractor("resnet18", backbone, "pooled").align_corners
  np.testing.assert_array_equal(extractor.encode(pixels), pixels)
  floats = extractor.encode(pixels + np.float32(0.25))
  assert floats.dtype == np.float32
  np.testing.assert_allclose(floats, 2 * ((pixels + 0.25) / 255 - 0.5), atol=1e-6)


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
  with pytest.raises(ValueError, match="model.name=resnet18"):
    make_extractor("miniature", backbone, "map")
  model = backbone.model
  params = models.random_weights(model, jax.random.key(0))
  size = model.image.image_size
  pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
  extractor = make_extractor("miniature", Backbone(model, params), "pooled")
  assert extractor.encode(pixels).shape == (2, model.image.embed_dim)
