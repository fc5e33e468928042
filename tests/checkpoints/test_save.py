"""What is saved is loaded again, and what stood there is never lost."""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdtrap_jax import checkpoints, files
from mdtrap_jax.checkpoints import tokenizer_files
from mdtrap_jax.models import build
from mdtrap_jax.models.word_tokenizer import WordTokenizer
from tests.checkpoints.tiny import (
  make_model,
  make_params,
  make_siglip,
  write_siglip_tokenizer,
  write_tokenizer,
)

TEXTS = ["a photo of a cat", "a dog"]


@pytest.fixture(scope="module")
def model():
  return make_model()


@pytest.fixture(scope="module")
def params(model):
  return make_params(model)


def published(model, tmp_path):
  folder = tmp_path / "tokenizer"
  folder.mkdir()
  write_tokenizer(folder)
  (folder / "tokenizer_config.json").write_text("{}")
  return tokenizer_files.read_tokenizer(folder, "clip", model.text)


def words(model, tmp_path):
  return WordTokenizer(("<pad>", "<start>", "<unk>", "a", "photo", "<end>"), 12)


def contents(folder):
  return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("tokenizer", [published, words, lambda model, _: model.tokenize])
def test_every_tokenizer_is_read_back(tmp_path, model, params, tokenizer):
  tokenize = tokenizer(model, tmp_path)
  options = {"vocabulary_size": 6} if isinstance(tokenize, WordTokenizer) else {}
  if options:
    model = make_model(**options)
    params = make_params(model)
  model = dataclasses.replace(model, tokenize=tokenize)
  checkpoints.save(tmp_path / "new" / "model", model, params)
  loaded, again = checkpoints.load(tmp_path / "new" / "model")
  assert (loaded.image, loaded.text) == (model.image, model.text)
  assert (loaded.image_mean, loaded.image_std) == (model.image_mean, model.image_std)
  np.testing.assert_array_equal(loaded.tokenize(TEXTS), tokenize(TEXTS))
  jax.tree.map(np.testing.assert_array_equal, params, again)
  checkpoints.save(tmp_path / "again", loaded, again)
  assert contents(tmp_path / "again") == contents(tmp_path / "new" / "model")
  assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("end_token", [None, 517])
def test_every_choice_is_read_back(tmp_path, activation, end_token):
  base = make_model(end_token=end_token)
  model = dataclasses.replace(
    base,
    image=dataclasses.replace(base.image, activation=activation, epsilon=1e-6),
    text=dataclasses.replace(base.text, activation=activation, heads=4),
  )
  checkpoints.save(tmp_path / "model", model, make_params(model))
  loaded, _ = checkpoints.load(tmp_path / "model")
  assert (loaded.image, loaded.text) == (model.image, model.text)


def test_other_architectures_are_refused(tmp_path, model):
  others = []
  for change in (
    {"text": dataclasses.replace(model.text, causal=False)},
    {"text": dataclasses.replace(model.text, projection_bias=True)},
    {"text": dataclasses.replace(model.text, end_token=2)},
    {"image": dataclasses.replace(model.image, patch_bias=True)},
    {"image": dataclasses.replace(model.image, pre_norm=False)},
    {"image": dataclasses.replace(model.image, rope=True)},
    {"sigmoid_bias": True},
  ):
    others.append(dataclasses.replace(model, **change))
  for other in others:
    with pytest.raises(ValueError, match="has what Hugging Face's CLIPModel does not"):
      checkpoints.save(tmp_path / "model", other, None)
  with pytest.raises(ValueError, match="pe-core, of which transformers has no model"):
    checkpoints.save(tmp_path / "model", build("pe-core-t16-384"), None)
  assert not list(tmp_path.iterdir())


def test_a_tokenizer_of_ones_own_is_refused(tmp_path, model, params):
  own = dataclasses.replace(model, tokenize=lambda texts: None)
  with pytest.raises(ValueError, match="a function of your own"):
    checkpoints.save(tmp_path / "model", own, params)
  checkpoints.save(tmp_path / "model", dataclasses.replace(model, tokenize=None), params)
  with pytest.raises(FileNotFoundError, match="has no tokenizer"):
    checkpoints.load(tmp_path / "model")
  assert checkpoints.load(tmp_path / "model", tokenize=model.tokenize)


def test_siglip_is_read_back(tmp_path):
  write_siglip_tokenizer(tmp_path)
  model = make_siglip()
  model = make_siglip(tokenizer_files.read_tokenizer(tmp_path, "siglip", model.text))
  params = make_params(model)
  checkpoints.save(tmp_path / "model", model, params)
  loaded, again = checkpoints.load(tmp_path / "model")
  assert (loaded.family, loaded.image, loaded.text) == ("siglip", model.image, model.text)
  jax.tree.map(np.testing.assert_array_equal, params, again)


def test_words_are_transformers_tokens_too(tmp_path, model):
  transformers = pytest.importorskip("transformers")
  tokenize = words(None, None)
  other = dataclasses.replace(make_model(vocabulary_size=6), tokenize=tokenize)
  checkpoints.save(tmp_path / "model", other, make_params(other))
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
  texts = ["A photo of a_photo!", "a " * 30, "", "naïve É 3"]
  ids = theirs(texts, padding="max_length", truncation=True, return_tensors="np")["input_ids"]
  np.testing.assert_array_equal(ids, tokenize(texts))


def test_weights_that_the_precision_cannot_hold(tmp_path, model, params):
  large = {**params, "logit_scale": np.float32(1e6)}
  with pytest.raises(ValueError, match="logit_scale holds NaN, or numbers beyond float16"):
    checkpoints.save(tmp_path / "model", model, large, dtype=jnp.float16)
  with pytest.raises(ValueError, match="choose float32, float16 or bfloat16"):
    checkpoints.save(tmp_path / "model", model, params, dtype=jnp.int8)
  with pytest.raises(ValueError, match="not this model's"):
    checkpoints.save(tmp_path / "model", model, {"image": params["image"]})
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("decoy", ["notes.txt", "config.json", "model.safetensors", "sub/a"])
def test_other_folders_are_left_as_they_are(tmp_path, model, params, decoy):
  folder = tmp_path / "mine"
  (folder / decoy).parent.mkdir(parents=True)
  (folder / decoy).write_text("{}")
  before = contents(tmp_path)
  with pytest.raises(FileExistsError, match="not empty and holds no model.*overwrite=True"):
    checkpoints.save(folder, model, params)
  assert contents(tmp_path) == before
  checkpoints.save(folder, model, params, overwrite=True)
  assert checkpoints.load(folder)
  assert decoy == "config.json" or decoy == "model.safetensors" or (folder / decoy).exists()


def test_a_published_model_is_not_taken_for_a_saved_one(tmp_path, model, params):
  checkpoints.save(tmp_path / "model", model, params)
  config = json.loads((tmp_path / "model" / "config.json").read_text())
  del config["saved_by"]
  (tmp_path / "model" / "config.json").write_text(json.dumps(config))
  with pytest.raises(FileExistsError, match="holds no model that was saved here"):
    checkpoints.save(tmp_path / "model", model, params)


def test_a_saved_model_is_replaced_with_all_its_files(tmp_path, model, params):
  folder = tmp_path / "model"
  checkpoints.save(folder, model, params)
  other = dataclasses.replace(make_model(vocabulary_size=6), tokenize=words(None, None))
  checkpoints.save(folder, other, make_params(other, 1))
  assert sorted(os.listdir(folder)) == [
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "word_tokenizer.json",
  ]
  assert checkpoints.load(folder)[0].text.vocabulary_size == 6
  checkpoints.save(folder, model, params)
  np.testing.assert_array_equal(checkpoints.load(folder)[0].tokenize(TEXTS), model.tokenize(TEXTS))


def test_links_are_not_followed(tmp_path, model, params):
  folder = tmp_path / "model"
  checkpoints.save(folder, model, params)
  target = tmp_path / "precious"
  target.write_bytes((folder / "model.safetensors").read_bytes())
  (folder / "model.safetensors").unlink()
  (folder / "model.safetensors").symlink_to(target)
  before = target.read_bytes()
  checkpoints.save(folder, model, make_params(model, 1))
  assert target.read_bytes() == before
  assert not (folder / "model.safetensors").is_symlink()


def test_what_is_no_folder(tmp_path, model, params):
  (tmp_path / "file").write_text("precious")
  (tmp_path / "link").symlink_to(tmp_path / "nowhere")
  for name in ("file", "link"):
    with pytest.raises(FileExistsError, match="is no folder"):
      checkpoints.save(tmp_path / name, model, params)
  assert (tmp_path / "file").read_text() == "precious"


def test_a_failure_leaves_the_model_before(tmp_path, model, params, monkeypatch):
  checkpoints.save(tmp_path / "model", model, params)
  before = contents(tmp_path)

  def full(*_, **__):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(files, "write", full)
  with pytest.raises(OSError, match="No space left"):
    checkpoints.save(tmp_path / "model", model, make_params(model, 1))
  assert contents(tmp_path) == before
