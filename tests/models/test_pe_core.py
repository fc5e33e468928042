"""PE-Core against recordings of Meta's implementation, in each published layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from mdtrap_jax import checkpoints
from mdtrap_jax.models import MODELS, build
from tests.paths import GOLDEN
from tests.replay import encoders

RECORDING = GOLDEN / "pe_core_tiny.npz"
HEADS = dict(image_heads=4, text_heads=4)
TIMM = [  # what timm calls Meta's layers, in the order of replacement
  ("conv1", "patch_embed.proj"),
  ("positional_embedding", "pos_embed"),
  ("class_embedding", "cls_token"),
  ("transformer.resblocks.", "blocks."),
  ("attn_pool.attn.", "attn_pool."),
  ("layernorm", "norm"),
  ("probe", "latent"),
  ("ln_pre", "norm_pre"),
  ("ln_post", "norm"),
  ("ln_", "norm"),
  ("in_proj_", "qkv."),
  ("out_proj", "proj"),
  ("c_fc", "fc1"),
  ("c_proj", "fc2"),
]


@pytest.fixture(scope="module")
def recorded():
  with np.load(RECORDING) as file:
    return dict(file)


@pytest.fixture(scope="module")
def weights(recorded):
  return {k.removeprefix("model/"): v for k, v in recorded.items() if k.startswith("model/")}


def timm_layout(weights):
  stored = {}
  for name, array in weights.items():
    if not name.startswith("visual."):
      stored[name if name == "logit_scale" else f"text.{name}"] = array
      continue
    name = name.removeprefix("visual.")
    for ours, theirs in TIMM:
      name = name.replace(ours, theirs)
    if name == "cls_token":
      array = array[None, None]
    elif name == "pos_embed":
      array = array[None]
    elif name == "proj":
      name, array = "head.weight", array.T
      stored["visual.trunk.head.bias"] = np.zeros(array.shape[0], np.float32)
    if name.startswith("attn_pool.qkv."):
      kind, width = name.rsplit(".", 1)[1], array.shape[0] // 3
      stored[f"visual.trunk.attn_pool.q.{kind}"] = array[:width]
      stored[f"visual.trunk.attn_pool.kv.{kind}"] = array[width:]
    else:
      stored[f"visual.trunk.{name}"] = array
  return {name: array.copy(order="C") for name, array in stored.items()}


def test_agrees_with_meta():
  checks = encoders.replay(RECORDING)
  assert {check.name for check in checks} == {"image_embeds", "text_embeds", "image_tokens"}
  assert all(check.ok for check in checks), checks


def test_timm_layout_gives_the_same_weights(weights):
  ours = checkpoints.from_arrays(weights, **HEADS)[1]
  model, timm = checkpoints.from_arrays(timm_layout(weights), **HEADS)
  assert model.image.projection_bias
  assert not timm["image"]["stem"]["projection"].pop("bias").any()
  jax.tree.map(np.testing.assert_array_equal, ours, timm)


def test_timm_layout_from_safetensors(tmp_path, weights, monkeypatch):
  save_file(timm_layout(weights), tmp_path / "open_clip_model.safetensors")
  model, params = checkpoints.load(tmp_path, tokenize=lambda texts: None)
  assert (model.image.rope, model.image.pool_heads, model.text.context_length) == (True, 8, 12)
  kernel = params["image"]["blocks"]["mlp"]["fc1"]["kernel"]
  np.testing.assert_array_equal(
    kernel[0], weights["visual.transformer.resblocks.0.mlp.c_fc.weight"].T
  )


def test_torch_file_of_meta(tmp_path, weights):
  torch = pytest.importorskip("torch", reason="torch, which writes the file, is missing")
  tensors = {f"module.{name}": torch.tensor(array) for name, array in weights.items()}
  torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "PE-Core-tiny.pt")
  params = checkpoints.load(tmp_path / "PE-Core-tiny.pt", tokenize=lambda texts: None)[1]
  expected = checkpoints.from_arrays(weights)[1]
  jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_positions_at_another_input_size(weights):
  torch = pytest.importorskip("torch", reason="torch, the reference, is missing")
  old = weights["visual.positional_embedding"]
  grid = torch.tensor(old[1:].reshape(1, 4, 4, -1)).permute(0, 3, 1, 2)
  for size in (2, 7):
    params = checkpoints.from_arrays(weights, image_size=14 * size, **HEADS)[1]
    expected = torch.nn.functional.interpolate(grid, (size, size), mode="bilinear")
    expected = expected.permute(0, 2, 3, 1).reshape(size * size, -1)
    position = params["image"]["stem"]["position"]
    np.testing.assert_array_equal(position[0], old[0])
    np.testing.assert_allclose(position[1:], expected, atol=1e-6)


def test_heads_of_the_pooling_are_the_callers_where_they_are_not_the_published_ones(weights):
  images = jnp.ones((1, 56, 56, 3))
  outputs = []
  for heads in (None, 8, 4):
    model, params = checkpoints.from_arrays(weights, pool_heads=heads, **HEADS)
    assert model.image.pool_heads == heads or (heads, model.image.pool_heads) == (None, 8)
    outputs.append(np.asarray(model.encode_image(params, images)))
  np.testing.assert_array_equal(outputs[0], outputs[1])
  assert np.abs(outputs[0] - outputs[2]).max() > 1e-3


def test_works_without_class_token(weights):
  weights = {k: v for k, v in weights.items() if k != "visual.class_embedding"}
  weights["visual.positional_embedding"] = weights["visual.positional_embedding"][1:]
  model, params = checkpoints.from_arrays(weights, **HEADS)
  assert not model.image.class_token
  assert model.encode_image(params, jnp.ones((2, 56, 56, 3))).shape == (2, 32)


@pytest.mark.parametrize(
  ("name", "image_billions", "checkpoint_bytes"),
  [
    ("pe-core-s16-384", None, 349e6),
    ("pe-core-b16-224", 0.09, 1.67 * 2**30),
    ("pe-core-l14-336", 0.32, 2.50 * 2**30),
    ("pe-core-g14-448", 1.88, None),
  ],
)
def test_published_sizes(name, image_billions, checkpoint_bytes):
  # Meta's model cards round to 10 million and leave the token table out of the text
  # encoder's count, so the sizes of the float32 files say more.
  image, text = counts(name)
  if image_billions is not None:
    assert round(image / 1e9, 2) == image_billions
  if checkpoint_bytes is not None:
    assert 4 * (image + text) == pytest.approx(checkpoint_bytes, rel=3e-3)


def test_published_text_encoders():
  vocabulary = MODELS["pe-core-g14-448"].text.vocabulary_size
  assert round((counts("pe-core-g14-448")[1] - vocabulary * 1280) / 1e9, 2) == 0.47
  assert counts("pe-core-b16-224")[1] == counts("pe-core-l14-336")[1]
  assert counts("pe-core-t16-384")[1] == counts("pe-core-s16-384")[1]


def counts(name):
  tree = jax.eval_shape(build(name).init, jax.random.key(0))
  return [sum(leaf.size for leaf in jax.tree.leaves(tree[side])) for side in ("image", "text")]
