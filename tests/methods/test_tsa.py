"""Task-specific adapters: against torch's optimizers, tasks that share a backbone, the baseline."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from benchmarks import heads_torch
from mdtrap_jax.checkpoints.layouts.resnet import from_torchvision
from mdtrap_jax.data.task import Task
from mdtrap_jax.methods.heads import make_method
from mdtrap_jax.models.resnet import ResNet18, init_adapters
from tests.methods.reported import by_hand, reported
from tests.paths import GOLDEN
from tests.replay.heads import random_weights
from tests.torch_resnet import NARROW, feature_maps, random_params

RECORDING = GOLDEN / "copa_tsa_layers23_resnet18.npz"
LABELS = np.array([0, 1, 2, 3, 4, 0, 1], np.int32)


def test_the_recorded_backbone_in_float32():
  # `python -m tests.replay` follows the whole adaptation in float64, which takes minutes.
  with np.load(RECORDING) as file:
    recorded = dict(file)
  model, params = from_torchvision(random_weights(int(recorded["seed"])))
  images = recorded["support_12x12"][:2].repeat(7, 2).repeat(7, 3).transpose(0, 2, 3, 1)
  adapters = init_adapters(layers=("layer2", "layer3"))
  features = jax.jit(model.features)(params, images.astype(np.float32), adapters)
  np.testing.assert_allclose(
    features, recorded["backbone_features_with_initial_adapters"][:2], rtol=1e-4, atol=1e-4
  )


@pytest.fixture(scope="module")
def params():
  return random_params()


def make_task(seed=0, labels=LABELS):
  rng = np.random.default_rng(seed)
  images = lambda: rng.standard_normal((len(labels), 16, 16, 3)).astype(np.float32)
  return Task(images(), labels, images(), labels)


def shared_loss(images, means, labels, head):
  return F.cross_entropy(10 * F.normalize(images @ head) @ F.normalize(means @ head).T, labels)


def separate_loss(images, means, labels, image_head, prototype_head):
  return heads_torch.symmetric_loss(images @ image_head, means @ prototype_head, labels)


def adapt_with_torch(params, task, layers, heads, loss, optimizer, steps):
  """Losses, adapters and heads of a published script's loop, in float64."""
  tensor = lambda array: torch.tensor(array, dtype=torch.float64).requires_grad_(True)
  in_out = {1: (4, 4), 2: (4, 5), 3: (5, 6), 4: (6, 8)}  # of a layer's first convolution
  adapters = {
    f"layer{layer}_block{block}_conv{conv}": tensor(
      1e-4 * np.eye(in_out[layer][(block, conv) > (0, 1)], in_out[layer][1])
    )
    for layer in layers
    for block in (0, 1)
    for conv in (1, 2)
  }
  heads = [tensor(np.eye(8)) for _ in range(heads)]
  optimizer = optimizer(heads, list(adapters.values()))
  labels, losses = torch.tensor(task.support_labels).long(), []
  for _ in range(steps):
    optimizer.zero_grad()
    images = feature_maps(params, task.support, adapters, torch.float64).mean((2, 3))
    value = loss(images, heads_torch.class_means(images, labels), labels, *heads)
    value.backward()
    optimizer.step()
    losses.append(value.item())
  array = lambda leaf: leaf.detach().numpy()
  return losses, {name: array(leaf) for name, leaf in adapters.items()}, list(map(array, heads))


@pytest.mark.parametrize(
  ("name", "known", "layers", "heads", "loss", "optimizer"),
  [  # rates by hand: URL's of an unseen domain, CoPA's of 5-way 1-shot tasks
    (
      "url_tsa",
      {},
      (1, 2, 3, 4),
      1,
      shared_loss,
      lambda heads, adapters: torch.optim.Adadelta(
        [{"params": heads, "lr": 1.0}, {"params": adapters, "lr": 0.5}], rho=0.9, eps=1e-6
      ),
    ),
    (
      "copa_tsa",
      {"one_shot": True},
      (2, 3),
      2,
      separate_loss,
      lambda heads, adapters: torch.optim.Adam(
        [{"params": heads, "lr": 1e-4}, {"params": adapters, "lr": 1e-5}], weight_decay=0.1
      ),
    ),
  ],
)
def test_adapters_and_heads_follow_torchs_optimizers(
  params, name, known, layers, heads, loss, optimizer
):
  tasks, steps = [make_task(0), make_task(1)], 4
  with jax.enable_x64(True):
    method = make_method(name, ways=5, model=NARROW, steps=steps, **known)
    stack = lambda *rows: np.stack(rows)
    double = lambda tree: jax.tree.map(
      lambda a: jnp.asarray(a, jnp.float64 if a.dtype == np.float32 else a.dtype), tree
    )
    run = jax.jit(jax.vmap(lambda w, t: method.fit(w, t, jax.random.key(0)), in_axes=(None, 0)))
    together = jax.device_get(run(double(params), double(jax.tree.map(stack, *tasks))))
  # Tasks in one batch share the backbone and have heads and adapters of their own.
  for place, task in enumerate(tasks):
    fit = jax.tree.map(lambda leaf: leaf[place], together)  # noqa: B023
    losses, adapters, maps = adapt_with_torch(params, task, layers, heads, loss, optimizer, steps)
    np.testing.assert_allclose(fit.losses, losses, rtol=1e-9)
    assert fit.params["adapters"].keys() == adapters.keys()
    for convolution, expected in adapters.items():
      np.testing.assert_allclose(fit.params["adapters"][convolution], expected, atol=1e-9)
    for ours, expected in zip(fit.params["head"].values(), maps, strict=True):
      np.testing.assert_allclose(ours, expected, atol=1e-9)


def test_the_baseline_is_the_backbone_without_adapters(params):
  task = make_task()
  method = make_method("url_tsa", ways=5, model=NARROW)
  start = method.head.init
  # Large adapters, and no steps: only the baseline may leave them out.
  init = lambda key, row: jax.tree.map(lambda leaf: leaf * 5e3, start(key, row))
  method = dataclasses.replace(method, head=method.head._replace(init=init), tx=None, steps=0)
  pooled = lambda images: feature_maps(params, images).mean((2, 3)).numpy()
  accuracy, gap = by_hand(pooled(task.support), task.support_labels, pooled(task.query))
  found = reported(method, params, task)
  np.testing.assert_allclose(found.gap_before, gap, rtol=1e-3)
  assert found.ncc_accuracy == pytest.approx(accuracy)
  assert abs(found.gap_after - gap) > 0.1 * gap


def test_uint8_images_are_normalized_like_urls():
  class Pixels(ResNet18):
    """Its features are what enters it."""

    def features(self, params, images, adapters=None):
      return images

  pixels = np.array([[[[0, 51, 255]]]], np.uint8)
  head = make_method("url_tsa", ways=2, model=Pixels()).head
  start = {"adapters": None}
  expected = np.array([[[[-1.0, -0.6, 1.0]]]], np.float32)  # 2 · (x / 255 - ½)
  np.testing.assert_allclose(head.features(start, None, jnp.asarray(pixels)), expected, atol=1e-6)
  np.testing.assert_array_equal(head.features(start, None, expected), expected)
