"""The ResNet-18 against the same network written with torch's functions, and its checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mdtrap_jax.checkpoints.convert import parameter_shapes
from mdtrap_jax.checkpoints.layouts.resnet import DIALECT, TABLE, from_torchvision, load_resnet18
from mdtrap_jax.checkpoints.rules import slots
from mdtrap_jax.models.resnet import LAYERS, ResNet18, adapter_shapes, init_adapters
from tests.torch_resnet import NARROW, feature_maps, random_params


@pytest.fixture(scope="module")
def state():
  """Random weights under torchvision's names."""
  shapes = parameter_shapes(ResNet18())
  rng = np.random.default_rng(0)
  weights = {}
  for slot in slots(TABLE, DIALECT, shapes):
    shape = slot.arrange(shapes[slot.path]).stored
    g = rng.standard_normal(shape).astype(np.float32)
    if len(shape) == 4:
      weights[slot.name] = g * np.sqrt(2 / (shape[0] * shape[2] * shape[3]), dtype=np.float32)
    else:
      positive = slot.name.endswith("running_var") or slot.name.endswith("weight")
      weights[slot.name] = 0.1 * np.abs(g) + 1 if positive else 0.1 * g
  return weights


def test_the_sizes_of_the_published_network():
  images = jax.ShapeDtypeStruct((2, 84, 84, 3), jnp.float32)
  params = jax.eval_shape(ResNet18().init, jax.random.key(0))
  assert jax.eval_shape(ResNet18().feature_maps, params, images).shape == (2, 6, 6, 512)
  assert params["stem"]["conv"]["kernel"].shape == (5, 5, 3, 64)


@pytest.mark.parametrize("layers", [(), ("layer2", "layer3"), LAYERS])
def test_features_and_maps_equal_torchs_with_and_without_adapters(layers):
  rng = np.random.default_rng(1)
  params, images = random_params(), rng.standard_normal((2, 16, 16, 3)).astype(np.float32)
  shapes = adapter_shapes(NARROW.widths, layers) if layers else {}
  adapters = {
    name: 0.3 * rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
  }
  theirs = {name: torch.tensor(adapter) for name, adapter in adapters.items()}
  expected = feature_maps(params, images, theirs).permute(0, 2, 3, 1).numpy()
  ours = jax.jit(NARROW.feature_maps)(params, images, adapters)
  np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())
  if not layers:
    features = jax.jit(NARROW.features)(params, images)
    np.testing.assert_allclose(features, expected.mean((1, 2)), rtol=1e-4, atol=1e-5)
  else:
    plain = feature_maps(params, images).permute(0, 2, 3, 1).numpy()
    assert np.abs(expected - plain).max() > 0.1 * np.abs(plain).max()


def test_adapters_start_as_a_small_identity_beside_every_3x3_convolution():
  adapters = init_adapters()
  assert len(adapters) == 16
  assert adapters["layer2_block0_conv1"].shape == (64, 128)
  np.testing.assert_allclose(adapters["layer2_block0_conv1"], 1e-4 * jnp.eye(64, 128))


def test_adapters_of_some_layers_keep_their_order_and_shapes():
  every, some = adapter_shapes(), adapter_shapes(layers=("layer3", "layer2"))
  assert list(some) == [
    f"layer{layer}_block{block}_conv{conv}"
    for layer in (2, 3)
    for block in (0, 1)
    for conv in (1, 2)
  ]
  assert some == {name: every[name] for name in some}
  assert every["layer2_block0_conv1"] == (64, 128)
  for wrong in (("layer2", "layer5"), ()):
    with pytest.raises(ValueError, match=r"layers=.*layer1.*layer4"):
      adapter_shapes(layers=wrong)


def test_a_checkpoint_as_url_saves_it(state, tmp_path):
  stored = {name: torch.tensor(value) for name, value in state.items()}
  stored |= {
    "bn1.num_batches_tracked": torch.tensor(3),
    "cls_fn.weight": torch.zeros(512, 7),
    "cls_fn.scale": torch.tensor(10.0),
  }
  path = tmp_path / "model_best.pth.tar"
  torch.save(
    {
      "epoch": 3,
      "args": {"model.name": "url"},
      "state_dict": stored,
      "best_val_acc": 0.5,
      "optimizer": {"state": {}, "param_groups": []},
    },
    path,
  )
  _, params = load_resnet18(path)
  _, expected = from_torchvision(state)
  jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_wrong_checkpoints_are_named(state, tmp_path):
  with pytest.raises(FileNotFoundError, match="model_best"):
    load_resnet18(tmp_path / "nothing.pth.tar")
  with pytest.raises(ValueError, match=r"layer3\.1\.conv2\.weight"):
    from_torchvision({n: v for n, v in state.items() if n != "layer3.1.conv2.weight"})
  with pytest.raises(ValueError, match=r"conv1\.weight"):  # torchvision's own 7×7 stem
    from_torchvision(state | {"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)})
  with pytest.raises(ValueError, match=r"layer5\.0"):
    from_torchvision(state | {"layer5.0.conv1.weight": np.zeros(3, np.float32)})
