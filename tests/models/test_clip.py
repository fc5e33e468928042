"""CLIP against recorded outputs and against transformers' torch implementation."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdtrap_jax import checkpoints
from mdtrap_jax.models import MODELS, build, random_weights
from tests.paths import GOLDEN

RECORDING = GOLDEN / "clip_hf_flax_tiny"
TWINS = {
  "defaults": {},
  "gelu, wide heads": {"hidden_act": "gelu", "heads": (2, 1)},
  "many heads, other size": {"heads": (8, 12), "image_size": 32, "patch_size": 8},
  "legacy end token": {"eos_token_id": 2},
  "depth and eps": {"layers": (1, 3), "layer_norm_eps": 1e-3},
}


def no_tokenizer(texts):
  raise AssertionError(f"not to be called: {texts}")


def assert_close(ours, theirs):
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_agrees_with_recorded_flax_model():
  model, params = checkpoints.load(RECORDING, tokenize=no_tokenizer)
  recorded = np.load(RECORDING / "io.npz")
  images = jnp.asarray(recorded["image_nchw"].transpose(0, 2, 3, 1))
  images = jax.jit(model.encode_image)(params, images)
  texts = jax.jit(model.encode_text)(params, jnp.asarray(recorded["token_ids"], jnp.int32))
  assert_close(images, recorded["image_embeds"])
  assert_close(texts, recorded["text_embeds"])


def torch_clip(
  hidden_act="quick_gelu",
  heads=(4, 4),
  image_size=28,
  patch_size=14,
  eos_token_id=98,
  layers=(2, 2),
  layer_norm_eps=1e-5,
):
  torch = pytest.importorskip("torch", reason="torch, the twin's library, is not installed")
  import transformers

  config = transformers.CLIPConfig(
    projection_dim=24,
    vision_config=dict(
      hidden_size=64,
      intermediate_size=160,
      num_hidden_layers=layers[0],
      num_attention_heads=heads[0],
      image_size=image_size,
      patch_size=patch_size,
      hidden_act=hidden_act,
      layer_norm_eps=layer_norm_eps,
    ),
    text_config=dict(
      hidden_size=48,
      intermediate_size=96,
      num_hidden_layers=layers[1],
      num_attention_heads=heads[1],
      vocab_size=99,
      max_position_embeddings=12,
      hidden_act=hidden_act,
      layer_norm_eps=layer_norm_eps,
      eos_token_id=eos_token_id,
      bos_token_id=97,
      pad_token_id=0,
    ),
  )
  torch.manual_seed(0)
  twin = transformers.CLIPModel(config).eval()
  with torch.no_grad():  # the library starts biases at zero and norms at one
    for parameter in twin.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  return twin


def torch_features(twin, images, ids):
  import torch

  with torch.no_grad():
    image = twin.get_image_features(torch.tensor(images.transpose(0, 3, 1, 2)))
    text = twin.get_text_features(torch.tensor(ids))
  return image.pooler_output.numpy(), text.pooler_output.numpy()


def inputs(model, seed=0):
  rng = np.random.default_rng(seed)
  size, length = model.image.image_size, model.text.context_length
  images = rng.standard_normal((3, size, size, 3)).astype(np.float32)
  ids = rng.integers(1, 97, (3, length))
  for row, end in zip(ids, (length - 1, 4, 7), strict=True):
    row[0], row[end], row[end + 1 :] = 97, 98, 0
  return images, ids


@pytest.mark.parametrize("options", TWINS.values(), ids=TWINS)
def test_agrees_with_torch_twin(tmp_path, options):
  twin = torch_clip(**options)
  twin.save_pretrained(tmp_path)
  model, params = checkpoints.load(tmp_path, tokenize=no_tokenizer)
  images, ids = inputs(model)
  theirs = torch_features(twin, images, ids)
  assert_close(jax.jit(model.encode_image)(params, jnp.asarray(images)), theirs[0])
  assert_close(jax.jit(model.encode_text)(params, jnp.asarray(ids, jnp.int32)), theirs[1])
  np.testing.assert_allclose(model.logit_scale(params), twin.logit_scale.exp().item(), 1e-6)


def test_twin_in_a_sharded_checkpoint(tmp_path):
  twin = torch_clip()
  twin.save_pretrained(tmp_path / "whole")
  twin.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
  assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()
  whole = checkpoints.load(tmp_path / "whole", tokenize=no_tokenizer)[1]
  shards = checkpoints.load(tmp_path / "shards", tokenize=no_tokenizer)[1]
  jax.tree.map(np.testing.assert_array_equal, whole, shards)


def test_twin_at_another_input_size(tmp_path):
  import torch

  twin = torch_clip(image_size=56)
  twin.save_pretrained(tmp_path)
  for size in (42, 98):
    model, params = checkpoints.load(tmp_path, image_size=size, tokenize=no_tokenizer)
    images, _ = inputs(model)
    with torch.no_grad():
      theirs = twin.get_image_features(
        torch.tensor(images.transpose(0, 3, 1, 2)), interpolate_pos_encoding=True
      )
    assert_close(
      jax.jit(model.encode_image)(params, jnp.asarray(images)), theirs.pooler_output.numpy()
    )


@pytest.mark.parametrize("name", [n for n, s in MODELS.items() if s.family == "clip"])
def test_parameter_counts(name):
  specification = MODELS[name]
  tree = jax.eval_shape(build(name).init, jax.random.key(0))
  counts = tuple(
    sum(leaf.size for leaf in jax.tree.leaves(tree[side])) for side in ("image", "text")
  )
  if specification.published_counts is not None:
    assert counts == specification.published_counts
  assert tree["logit_scale"].size == 1


def test_saved_model_reads_back(tmp_path):
  model = build("clip-tiny")
  params = random_weights(model, jax.random.key(0))
  checkpoints.save(tmp_path, model, params)
  again, restored = checkpoints.load(tmp_path, tokenize=model.tokenize)
  assert (again.image, again.text) == (model.image, model.text)
  jax.tree.map(np.testing.assert_array_equal, params, restored)
  checkpoints.save(tmp_path, model, params, dtype=jnp.float16)
  half = checkpoints.load(tmp_path, tokenize=model.tokenize)[1]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-3, 1e-6), params, half)
  assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "clip"
