"""Data, features, weights, lists and results in buckets are what they are on a disk."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from mdtrap_jax import buckets, checkpoints, files
from mdtrap_jax.checkpoints.source import find_weights
from mdtrap_jax.classifier import predictions, saved
from mdtrap_jax.data import feature_files, features, tfds_source
from mdtrap_jax.data.cache import ImageCache
from mdtrap_jax.data.class_selection import keep_files
from mdtrap_jax.data.folder_source import FolderSource
from mdtrap_jax.data.read_labeled import read_labeled, read_names
from mdtrap_jax.models.families import miniature
from tests.stores import upload


@pytest.fixture
def pets(tmp_path, store):
  """A folder of images, and the same in a bucket."""
  folder, rng = tmp_path / "pets", np.random.default_rng(0)
  for name in ("cat", "dog"):
    (folder / name).mkdir(parents=True)
    for number in range(2):
      pixels = rng.integers(0, 256, (4, 5, 3), np.uint8)
      Image.fromarray(pixels).save(folder / name / f"{number}.png")
  url = store.url("pets")
  upload(url, folder)
  return folder, url


def test_a_folder_of_images(pets):
  folder, url = pets
  here, there = FolderSource(folder), FolderSource(url)
  assert there.identity == here.identity
  assert there.name == url
  assert there.describe(3) == f"{url}/dog/1.png"
  assert (there.image(3) == here.image(3)).all()
  assert read_labeled(url).files == read_labeled(folder).files
  with pytest.raises(FileNotFoundError, match=f"{url}/no: no such folder or object"):
    FolderSource(f"{url}/no")


def test_tables_and_lists(pets, tmp_path):
  folder, url = pets
  bucket = buckets.Bucket(url)
  bucket.write("labels.csv", b"file,label\ncat/0.png,cat\ndog/1.png,dog\n")
  data = read_labeled(f"{url}/labels.csv")
  assert (data.name, data.labels.tolist()) == (f"{url}/labels.csv", ["cat", "dog"])
  assert Path(data.items[1]).read_bytes() == (folder / "dog" / "1.png").read_bytes()
  bucket.write("labels.csv", b"file,label\ncat/9.png,cat\n")
  with pytest.raises(FileNotFoundError, match=f"{url}/labels.csv lists 1 files that are not there"):
    read_labeled(f"{url}/labels.csv")
  bucket.write("names.csv", b"folder,name\ncat,house cat\n")
  assert read_names(Path(files.local(f"{url}/names.csv"))) == {"cat": "house cat"}
  bucket.write("some.txt", b"cat/0.png\n")
  kept = keep_files(FolderSource(folder), f"{url}/some.txt")
  assert sum(kept.labels >= 0) == 1
  found = predictions.find_images([f"{url}/some.txt", f"{url}/dog", f"{url}/dog/1.png"])
  assert [files.typed(path) for path in found][1:3] == [f"{url}/dog/0.png", f"{url}/dog/1.png"]
  with predictions.in_one_step(f"{url}/out.csv") as file:
    write = predictions.make_writer(file, ["cat", "dog"], False, 1)
    write(found[:1], np.array([[0.25, 0.75]]))
  assert bucket.read("out.csv").splitlines()[1].decode() == (
    f"{url}/cat/0.png,dog,0.750000,dog,0.750000"
  )


def test_features_of_ones_own(store, tmp_path):
  rows, labels = np.arange(12, dtype=np.float32).reshape(4, 3), np.array([0, 0, 1, 1])
  np.savez(tmp_path / "toy.npz", features=rows, labels=labels)
  (tmp_path / "one").mkdir()
  np.save(tmp_path / "one" / "features.npy", rows + 1)
  np.save(tmp_path / "one" / "labels.npy", labels)
  url = store.url("features")
  upload(url, tmp_path)
  for name, more in (("toy.npz", 0), ("one", 1), ("", 1), ("one/features.npy", 1)):
    found = feature_files.read_features(f"{url}/{name}".rstrip("/"), "one")
    assert (np.asarray(found.features) == rows + more).all()


def test_features_and_images_that_are_kept(store, pets, caplog):
  folder, url = pets
  encoded = []

  def encode(pixels):
    encoded.append(len(pixels))
    return np.asarray(pixels, np.float32).mean((1, 2))

  extractor = features.Extractor("mean", "1", 4, encode)
  cache = store.url("cache")
  keep = lambda: features.cached_features(
    "pets", FolderSource(folder), extractor, cache, batch_size=4, threads=1
  )
  first, second = keep(), keep()
  assert encoded == [4]
  assert (first.features == second.features).all()
  (name,) = {name.partition("/")[0] for name in buckets.Bucket(cache).find()}
  buckets.Bucket(f"{cache}/{name}").write("features.npy", b"damaged")
  assert (keep().features == first.features).all()
  assert encoded == [4, 4]
  caplog.clear()
  ImageCache(cache, "identity", 3, 2).put(0, np.zeros((2, 2, 3), np.uint8))
  assert ImageCache(cache, "identity", 3, 2).get(0) is not None
  assert "resized images are kept on this machine" in caplog.records[0].getMessage()


def test_weights(store):
  url = store.url("weights")
  upload(url, miniature.WEIGHTS)
  buckets.Bucket(url).write("unused/checkpoint-1.bin", b"never read")
  assert checkpoints.fingerprint(url) == checkpoints.fingerprint(miniature.WEIGHTS)
  assert checkpoints.fingerprint(f"{url}/model.safetensors") == checkpoints.fingerprint(url)
  assert not list(find_weights(url).parent.glob("unused"))
  assert checkpoints.family_of(url) == checkpoints.family_of(miniature.WEIGHTS)
  with pytest.raises(FileNotFoundError, match="has no weights files"):
    find_weights(f"{url}/unused2")


def test_where_a_classifier_may_go(store, tmp_path):
  url = store.url("model")
  saved.check_target(url, False)
  bucket = buckets.Bucket(url)
  bucket.write(saved.ABOUT, json.dumps({"saved_by": "mdtrap_jax classifier"}).encode())
  with pytest.raises(FileExistsError, match=f"{url} holds a saved classifier; give another"):
    saved.check_target(url, False)
  saved.check_target(url, True)
  bucket.write("thesis.tex", b"mine")
  with pytest.raises(FileExistsError, match=f"{url} holds something that is no saved classifier"):
    saved.check_target(url, True)
  with pytest.raises(FileNotFoundError, match="no such folder or object"):
    saved.read(f"{url}/other")


class Dots(tfds.core.GeneratorBasedBuilder):
  """Six images of two classes."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    names = tfds.features.ClassLabel(names=["a", "b"])
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {"image": tfds.features.Image(shape=(4, 4, 3)), "label": names}
      )
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for i in range(6):
      file = io.BytesIO()
      Image.fromarray(np.full((4, 4, 3), 9 * i, np.uint8)).save(file, "PNG")
      yield i, {"image": io.BytesIO(file.getvalue()), "label": i % 2}


def test_a_prepared_data_set(google, tmp_path):
  Dots(data_dir=tmp_path, file_format="array_record").download_and_prepare()
  shutil.rmtree(tmp_path / "downloads", ignore_errors=True)
  url = google.url("tfds")
  upload(url, tmp_path)
  here = tfds_source.TfdsSource("dots", "train", str(tmp_path))
  there = tfds_source.TfdsSource("dots", "train", url)
  assert there.identity == here.identity
  assert (there.image(5) == here.image(5)).all()
  with pytest.raises(FileNotFoundError, match=f"eurosat/rgb is not prepared at {url}. Prepare"):
    tfds_source.TfdsSource("eurosat/rgb", "train", url)
