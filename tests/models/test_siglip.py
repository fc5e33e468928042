"""SigLIP against recordings of big_vision and against transformers' torch implementation."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdtrap_jax import checkpoints
from mdtrap_jax.models import MODELS, build
from mdtrap_jax.models.lora import LoraConfig
from tests.paths import GOLDEN
from tests.replay import encoders

FILES = ("siglip_big_vision_tiny.npz", "siglip_big_vision_tiny_scan.npz")
TWINS = {
  "defaults": {},
  "heads, patch, remainder": {"heads": (2, 8), "image_size": 35, "patch_size": 8},
  "wider projection": {"projection_size": 64, "text_width": 32},
  "gemma vocabulary, eps": {
    "vocab_size": 256_000,
    "text_width": 8,
    "projection_size": 64,
    "heads": (4, 2),
    "layer_norm_eps": 1e-4,
  },
}

# Millions of parameters of the towers as open_clip's model profile publishes them.
PROFILE = {
  (768, 16, 224): 92.88,
  (768, 16, 256): 92.93,
  (768, 16, 384): 93.18,
  (768, 16, 512): 93.52,
  (1024, 16, 256): 315.96,
  (1024, 16, 384): 316.28,
  (1152, 14, 224): 427.68,
  (1152, 14, 384): 428.23,
}
TEXT_PROFILE = {
  (768, 32_000, 64): 110.27,
  (768, 250_000, 64): 277.7,
  (1024, 32_000, 64): 336.19,
  (1152, 32_000, 16): 449.68,
  (1152, 32_000, 64): 449.73,
}


def weights_of(name):
  with np.load(GOLDEN / name) as file:
    return {key: value for key, value in dict(file).items() if key.startswith("params/")}


def no_tokenizer(texts):
  raise AssertionError(f"not to be called: {texts}")


def assert_close(ours, theirs):
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("name", FILES)
def test_agrees_with_big_vision(name):
  checks = encoders.replay(GOLDEN / name)
  assert {check.name for check in checks} == {"temperature", "bias", "image_embeds", "text_embeds"}
  assert all(check.ok for check in checks), checks


@pytest.mark.parametrize("prefix", ["params/", ""])
def test_npz_file_equals_arrays_in_memory(tmp_path, prefix):
  weights = weights_of(FILES[1])
  named = {name.replace("params/", prefix): value for name, value in weights.items()}
  np.savez(tmp_path / "siglip.npz", **named, **{"opt/count": np.zeros(3)})
  loaded = checkpoints.load(tmp_path / "siglip.npz", tokenize=no_tokenizer)[1]
  jax.tree.map(np.testing.assert_array_equal, loaded, checkpoints.from_arrays(weights)[1])


def test_bfloat16_as_numpy_stores_it(tmp_path):
  weights = weights_of(FILES[0])
  half = {name: value.astype(jnp.bfloat16) for name, value in weights.items()}
  np.savez(tmp_path / "siglip.npz", **{n: v.view("V2") for n, v in half.items()})
  loaded = checkpoints.load(tmp_path / "siglip.npz", tokenize=no_tokenizer, dtype=jnp.bfloat16)[1]
  expected = checkpoints.from_arrays(half, dtype=jnp.bfloat16)[1]
  assert loaded["image"]["blocks"]["mlp"]["fc1"]["kernel"].dtype == jnp.bfloat16
  assert loaded["logit_scale"].dtype == jnp.float32
  jax.tree.map(np.testing.assert_array_equal, loaded, expected)


def test_positions_are_resampled_as_big_vision_does():
  ndimage = pytest.importorskip("scipy.ndimage", reason="scipy, the reference, is missing")
  weights = weights_of(FILES[0])
  old = weights["params/img/pos_embedding"].reshape(4, 4, -1)
  params = checkpoints.from_arrays(weights, image_size=98)[1]
  expected = ndimage.zoom(old, (7 / 4, 7 / 4, 1), order=1).reshape(49, -1)
  np.testing.assert_allclose(params["image"]["stem"]["position"], expected, atol=1e-6)


def torch_siglip(
  heads=(4, 4),
  image_size=28,
  patch_size=14,
  projection_size=None,
  text_width=48,
  vocab_size=99,
  layer_norm_eps=1e-6,
):
  torch = pytest.importorskip("torch", reason="torch, the twin's library, is not installed")
  import transformers

  vision_width = projection_size or text_width
  text = dict(
    hidden_size=text_width,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=heads[1],
    vocab_size=vocab_size,
    max_position_embeddings=12,
    layer_norm_eps=layer_norm_eps,
  )
  if projection_size:
    text["projection_size"] = projection_size
  config = transformers.SiglipConfig(
    text_config=text,
    vision_config=dict(
      hidden_size=vision_width,
      intermediate_size=112,
      num_hidden_layers=2,
      num_attention_heads=heads[0],
      image_size=image_size,
      patch_size=patch_size,
      layer_norm_eps=layer_norm_eps,
    ),
  )
  torch.manual_seed(0)
  twin = transformers.SiglipModel(config).eval()
  with torch.no_grad():  # the library starts biases at zero and norms at one
    for parameter in twin.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  return twin


@pytest.mark.parametrize("options", TWINS.values(), ids=TWINS)
def test_agrees_with_torch_twin(tmp_path, options):
  twin = torch_siglip(**options)
  twin.save_pretrained(tmp_path)
  model, params = checkpoints.load(tmp_path, tokenize=no_tokenizer)
  rng = np.random.default_rng(0)
  size = model.image.image_size
  images = rng.standard_normal((3, size, size, 3)).astype(np.float32)
  ids = rng.integers(0, 99, (3, 12))
  image, text = torch_features(twin, images, ids)
  assert_close(jax.jit(model.encode_image)(params, jnp.asarray(images)), image)
  assert_close(jax.jit(model.encode_text)(params, jnp.asarray(ids, jnp.int32)), text)
  np.testing.assert_allclose(model.logit_scale(params), twin.logit_scale.exp().item(), 1e-6)
  np.testing.assert_allclose(params["logit_bias"], twin.logit_bias.item(), 1e-6)


def torch_features(twin, images, ids, **options):
  import torch

  with torch.no_grad():
    image = twin.get_image_features(torch.tensor(images.transpose(0, 3, 1, 2)), **options)
    text = twin.get_text_features(torch.tensor(ids))
  return image.pooler_output.numpy(), text.pooler_output.numpy()


@pytest.mark.parametrize("size", [42, 84])
def test_twin_at_another_input_size(tmp_path, size):
  twin = torch_siglip(image_size=56)
  twin.save_pretrained(tmp_path)
  model, params = checkpoints.load(tmp_path, image_size=size, tokenize=no_tokenizer)
  images = np.random.default_rng(0).standard_normal((2, size, size, 3)).astype(np.float32)
  theirs, _ = torch_features(twin, images, np.zeros((1, 12), int), interpolate_pos_encoding=True)
  assert_close(jax.jit(model.encode_image)(params, jnp.asarray(images)), theirs)


def test_agrees_with_siglip2_on_square_images(tmp_path):
  # transformers' Siglip2Model is the NaFlex variant; on a full square grid it is the same
  # network, but for the patch embedding's arrangement.
  torch = pytest.importorskip("torch", reason="torch, the twin's library, is not installed")
  import transformers
  from safetensors.torch import save_file

  sizes = dict(intermediate_size=80, num_hidden_layers=2, num_attention_heads=4)
  text = dict(
    hidden_size=32, vocab_size=99, max_position_embeddings=12, projection_size=48, **sizes
  )
  vision = dict(hidden_size=48, patch_size=8, num_patches=9, **sizes)
  torch.manual_seed(0)
  twin = transformers.Siglip2Model(
    transformers.Siglip2Config(text_config=text, vision_config=vision)
  ).eval()
  with torch.no_grad():
    for parameter in twin.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  weights = dict(twin.state_dict())
  patch = "vision_model.embeddings.patch_embedding.weight"
  square = weights[patch].reshape(48, 8, 8, 3).permute(0, 3, 1, 2)
  save_file({**weights, patch: square.contiguous()}, tmp_path / "model.safetensors")
  config = {
    "model_type": "siglip",
    "text_config": text,
    "vision_config": {**vision, "image_size": 24},
  }
  (tmp_path / "config.json").write_text(json.dumps(config))
  model, params = checkpoints.load(tmp_path, tokenize=no_tokenizer)
  rng = np.random.default_rng(0)
  images = rng.standard_normal((2, 24, 24, 3)).astype(np.float32)
  patches = images.reshape(2, 3, 8, 3, 8, 3).swapaxes(2, 3).reshape(2, 9, 192)
  ids = rng.integers(0, 99, (2, 12))
  with torch.no_grad():
    image = twin.get_image_features(
      pixel_values=torch.tensor(patches),
      pixel_attention_mask=torch.ones(2, 9),
      spatial_shapes=torch.tensor([[3, 3], [3, 3]]),
    ).pooler_output.numpy()
    text = twin.get_text_features(torch.tensor(ids)).pooler_output.numpy()
  assert_close(jax.jit(model.encode_image)(params, jnp.asarray(images)), image)
  assert_close(jax.jit(model.encode_text)(params, jnp.asarray(ids, jnp.int32)), text)


def test_naflex_is_refused(tmp_path):
  pytest.importorskip("torch", reason="torch, the twin's library, is not installed")
  import transformers

  sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
  config = transformers.Siglip2Config(
    text_config=dict(**sizes, vocab_size=99), vision_config=dict(**sizes, num_patches=16)
  )
  transformers.Siglip2Model(config).save_pretrained(tmp_path)
  with pytest.raises(ValueError, match="NaFlex"):
    checkpoints.load(tmp_path, tokenize=no_tokenizer)


def test_naflex_of_big_vision_is_refused():
  weights = weights_of(FILES[0])
  kernel = weights["params/img/embedding/kernel"]
  weights["params/img/embedding/kernel"] = kernel.reshape(-1, kernel.shape[-1])
  with pytest.raises(ValueError, match="NaFlex"):
    checkpoints.from_arrays(weights)


@pytest.mark.parametrize("name", [n for n in MODELS if n.startswith("siglip")])
def test_parameter_counts(name):
  specification = MODELS[name]
  tree = jax.eval_shape(build(name).init, jax.random.key(0))
  counts = [sum(leaf.size for leaf in jax.tree.leaves(tree[side])) for side in ("image", "text")]
  assert sum(counts) + 2 == specification.published_total
  width, image = specification.image.width, specification.image
  if (profile := PROFILE.get((width, image.patch_size, image.image_size))) is not None:
    assert round(counts[0] / 1e6, 2) == profile
  if profile := TEXT_PROFILE.get(
    (width, specification.text.vocabulary_size, specification.text.context_length)
  ):
    assert round(counts[1] / 1e6, 2) == profile


def test_lora_trains_any_family():
  model = build("siglip-b16-224")
  lora = LoraConfig(encoder="both")
  factors = jax.eval_shape(lambda key: model.init_lora(key, lora), jax.random.key(0))
  assert factors["image"].a.shape == (12, 3, 768, 16)
  assert factors["text"].b.shape == (12, 3, 16, 768)
