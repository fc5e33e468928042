import dataclasses
import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdtrap_jax.checkpoints import convert
from mdtrap_jax.models import FAMILIES, MODELS, Specification, build, random_weights, vlm
from mdtrap_jax.models.image_stem import ImageConfig
from mdtrap_jax.models.lora import LoraConfig
from mdtrap_jax.models.text_stem import TextConfig
from tests.paths import ROOT

SMALL = dict(width=32, depth=3, heads=4, mlp_width=48)
POOLED = dict(pool="attention", pool_heads=8, pool_mlp_width=40, class_token=False)
VARIANTS = {
  "clip": (ImageConfig(28, 14, **SMALL, embed_dim=16), TextConfig(8, 64, **SMALL, embed_dim=16)),
  "siglip": (
    ImageConfig(
      30,
      14,
      **SMALL,
      embed_dim=32,
      **POOLED,
      projection=False,
      patch_bias=True,
      pre_norm=False,
      activation="gelu_tanh",
      epsilon=1e-6,
    ),
    TextConfig(8, 64, **SMALL, embed_dim=32, causal=False, pool="last", projection_bias=True),
  ),
  "pe-core": (
    ImageConfig(
      28, 14, **SMALL, embed_dim=16, **{**POOLED, "class_token": True}, rope=True, activation="gelu"
    ),
    TextConfig(8, 64, **SMALL, embed_dim=16, activation="gelu"),
  ),
}


@pytest.fixture(scope="module", params=VARIANTS)
def built(request):
  model = build(Specification(request.param, *VARIANTS[request.param]))
  return model, random_weights(model, jax.random.key(0))


@functools.partial(jax.jit, static_argnums=0)  # compiled once for a family, whoever asks
def encode_image(model, params, images):
  return model.encode_image(params, images)


def images_of(model, count=2):
  size = model.image.image_size
  return jax.random.normal(jax.random.key(1), (count, size, size, 3))


@pytest.mark.parametrize("position", ["all", (0, 2)])
def test_embedding_in_two_steps_equals_one(built, position):
  model, params = built
  images, lora = images_of(model), LoraConfig(rank=2, encoder="both", position=position)
  factors = jax.jit(lambda key: model.init_lora(key, lora))(jax.random.key(2))
  factors = jax.tree.map(lambda x: x + 0.1, factors)
  tokens = jax.jit(lambda x: model.embed_image(params, x, lora))(images)
  adapted = jax.jit(lambda x, f: model.encode_image_tokens(params, x, lora, f))(tokens, factors)
  assert adapted.shape == (2, model.image.embed_dim)
  expected = jax.jit(lambda x, f: model.encode_image(params, x, lora=lora, factors=f))(
    images, factors
  )
  np.testing.assert_allclose(adapted, expected, atol=1e-5)
  assert np.abs(adapted - encode_image(model, params, images)).max() > 1e-3


def test_text(built):
  model, params = built
  ids = model.tokenize(["a photo of a dog", "a photo of a cat"])
  embeddings = jax.jit(model.encode_text)(params, jnp.asarray(ids))
  assert embeddings.shape == (2, model.text.embed_dim)
  assert np.abs(embeddings[0] - embeddings[1]).max() > 1e-3


def test_rows_do_not_depend_on_the_batch(built):
  model, params = built
  images = images_of(model)
  whole = encode_image(model, params, images)
  np.testing.assert_allclose(encode_image(model, params, images[1:]), whole[1:], atol=1e-5)


def test_bfloat16(built):
  model, params = built
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  images = images_of(model)
  ours = encode_image(model, half, images.astype(jnp.bfloat16))
  assert ours.dtype == jnp.bfloat16
  np.testing.assert_allclose(ours, encode_image(model, params, images), atol=0.1)
  text = jax.eval_shape(model.encode_text, half, jnp.ones((1, 8), jnp.int32))
  assert text.dtype == jnp.bfloat16


def test_episodes_share_the_base_model(built):
  model, params = built
  lora = LoraConfig(rank=2, dropout=0.0)
  keys = jax.random.split(jax.random.key(0), 3)
  factors = jax.jit(jax.vmap(lambda key: model.init_lora(key, lora)))(keys)
  factors = jax.tree.map(lambda x: x + 0.1, factors)

  @jax.jit
  def encode(factors, images):
    return model.encode_image(params, images, lora=lora, factors=factors)

  images = images_of(model)
  batched = jax.vmap(encode, (0, None))(factors, images)
  for episode in range(3):
    alone = encode(jax.tree.map(lambda x, e=episode: x[e], factors), images)
    np.testing.assert_allclose(batched[episode], alone, atol=1e-5)


def test_inputs_of_another_size_are_refused(built):
  model, params = built
  with pytest.raises(ValueError, match=r"images have shape \(1, 64, 64, 3\), expected"):
    model.encode_image(params, jnp.zeros((1, 64, 64, 3)))
  with pytest.raises(ValueError, match=r"token ids have shape \(1, 9\), expected \[B, 8\]"):
    model.encode_text(params, jnp.zeros((1, 9), jnp.int32))


def test_remainder_of_pixels_is_left_out():
  model = build(Specification("siglip", *VARIANTS["siglip"]))
  params = random_weights(model, jax.random.key(0))
  images = images_of(model)
  changed = images.at[:, 28:].set(7.0).at[:, :, 28:].set(7.0)
  ours, theirs = (encode_image(model, params, rows) for rows in (images, changed))
  np.testing.assert_array_equal(ours, theirs)


HALF = (0.5, 0.5, 0.5)
FAMILY = {  # of the originals' preprocessing: mean, std, how images are resized, by which filter
  "clip": (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
    "crop",
    "bicubic",
  ),
  "siglip": (HALF, HALF, "squash", "bicubic"),
  "siglip2": (HALF, HALF, "squash", "bilinear"),
  "pe-core": (HALF, HALF, "squash", "bilinear"),
}


def test_what_every_family_expects_of_its_inputs():
  assert {name: (*values, "a photo of a {}.") for name, values in FAMILY.items()} == FAMILIES


@pytest.mark.parametrize("name", FAMILY)
def test_models_have_the_statistics_of_their_family(name):
  model = build(Specification(name, *VARIANTS["clip"]))
  assert (model.family, model.image_mean, model.image_std) == (name, *FAMILY[name][:2])
  assert model.sigmoid_bias == (name in ("siglip", "siglip2"))


def test_registry():
  assert build("clip-vit-b16", image_size=64).image.grid == 4
  for name, specification in MODELS.items():
    assert specification.family in FAMILIES
    assert build(name).family == specification.family
    assert specification.hub is None or specification.hub.count("/") == 1
  assert "{}" in FAMILIES["clip"].prompt


def test_image_config_is_checked():
  with pytest.raises(ValueError, match="less than patch_size"):
    ImageConfig(image_size=8, patch_size=16)
  with pytest.raises(ValueError, match="choose 'class' or 'attention'"):
    ImageConfig(pool="mean")
  with pytest.raises(ValueError, match="needs class_token=True"):
    ImageConfig(class_token=False)
  with pytest.raises(ValueError, match="must equal width"):
    ImageConfig(projection=False)


def test_importing_models_loads_neither_renderer_nor_plotting():
  """The miniature's words and size are its own; the world that it was trained on takes them."""
  code = (
    "import sys, mdtrap_jax.models\n"
    "mine = {name for name in sys.modules if name.startswith('mdtrap_jax.')}\n"
    "print(sorted({'scipy', 'matplotlib', 'PIL', 'orbax'} & set(sys.modules)))\n"
    "print(sorted({name.split('.')[1] for name in mine}))\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
  )
  assert done.stdout == "[]\n['keys', 'models']\n"


def test_shapes_are_traced_once_whatever_the_tokenizer(monkeypatch):
  calls = []
  first = build(Specification("clip", *VARIANTS["clip"]), image_size=56)  # of no other test
  again = dataclasses.replace(first, tokenize=lambda texts: None)
  assert first != again
  original = vlm.init_blocks
  counted = lambda *arguments: calls.append(arguments) or original(*arguments)
  monkeypatch.setattr(vlm, "init_blocks", counted)
  shapes = [convert.parameter_shapes(model) for model in (first, again)]
  assert len(calls) == 2  # of the image and of the text encoder
  assert shapes[0] == shapes[1]
