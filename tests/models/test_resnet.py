"""The ResNet-18 against the same network written with torch's functions, and its checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mdtrap_jax.checkpoints.convert import parameter_shapes
from mdtrap_jax.checkpoints.layouts.resnet import DIALECT, TABLE, from_torchvision, load_resnet18
from mdtrap_jax.checkpoints.rules import slots
from mdtrap_jax.models.resnet import ResNet18, adapter_shapes, init_adapters


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


def torch_features(state, images, adapters=None):
  t = {name: torch.tensor(value) for name, value in state.items()}

  def conv(x, name, stride, padding, adapter=None):
    y = F.conv2d(x, t[f"{name}.weight"], stride=stride, padding=padding)
    if adapter is not None:
      y = y + F.conv2d(x, torch.tensor(adapter.T[:, :, None, None].copy()), stride=stride)
    return y

  def norm(x, name):
    return F.batch_norm(
      x,
      t[f"{name}.running_mean"],
      t[f"{name}.running_var"],
      t[f"{name}.weight"],
      t[f"{name}.bias"],
      eps=1e-5,
    )

  x = F.relu(norm(conv(torch.tensor(images.transpose(0, 3, 1, 2).copy()), "conv1", 2, 1), "bn1"))
  for layer in range(1, 5):
    for block in range(2):
      name, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
      own = lambda conv: (adapters or {}).get(f"layer{layer}_block{block}_{conv}")  # noqa: B023
      short = x
      if f"{name}.downsample.0.weight" in t:
        short = norm(conv(x, f"{name}.downsample.0", stride, 0), f"{name}.downsample.1")
      x = F.relu(norm(conv(x, f"{name}.conv1", stride, 1, own("conv1")), f"{name}.bn1"))
      x = F.relu(norm(conv(x, f"{name}.conv2", 1, 1, own("conv2")), f"{name}.bn2") + short)
  return x.mean((2, 3)).numpy(), x.permute(0, 2, 3, 1).numpy()


def test_features_and_maps_equal_torchs(state):
  images = np.random.default_rng(1).standard_normal((2, 84, 84, 3)).astype(np.float32)
  model, params = from_torchvision(state)
  features, maps = torch_features(state, images)
  ours = jax.jit(model.feature_maps)(params, images)
  assert ours.shape == (2, 6, 6, 512)
  np.testing.assert_allclose(ours, maps, atol=2e-4 * np.abs(maps).max())
  np.testing.assert_allclose(
    jax.jit(model.features)(params, images), features, atol=2e-4 * np.abs(features).max()
  )


def test_adapters_equal_torchs_convolutions(state):
  rng = np.random.default_rng(2)
  images = rng.standard_normal((1, 84, 84, 3)).astype(np.float32)
  adapters = {
    name: 0.05 * rng.standard_normal(shape).astype(np.float32)
    for name, shape in adapter_shapes().items()
  }
  model, params = from_torchvision(state)
  plain, _ = torch_features(state, images)
  features, _ = torch_features(state, images, adapters)
  assert np.abs(features - plain).max() > 0.1 * np.abs(plain).max()
  np.testing.assert_allclose(
    jax.jit(model.features)(params, images, adapters), features, atol=5e-4 * np.abs(features).max()
  )


def test_adapters_start_as_a_small_identity_beside_every_3x3_convolution():
  adapters = init_adapters()
  assert len(adapters) == 16
  assert adapters["layer2_block0_conv1"].shape == (64, 128)
  np.testing.assert_allclose(adapters["layer2_block0_conv1"], 1e-4 * jnp.eye(64, 128))


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
