"""Task-specific adapters: the recorded backbone, and tasks that share one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdtrap_jax.checkpoints.layouts.resnet import from_torchvision
from mdtrap_jax.data.task import Task
from mdtrap_jax.methods.heads import make_method
from mdtrap_jax.models.resnet import ResNet18, init_adapters
from tests.paths import GOLDEN
from tests.replay.heads import random_weights

RECORDING = GOLDEN / "copa_tsa_resnet18.npz"


def test_the_recorded_backbone_in_float32():
  # `python -m tests.replay` follows the whole adaptation in float64, which takes minutes.
  with np.load(RECORDING) as file:
    recorded = dict(file)
  model, params = from_torchvision(random_weights(int(recorded["seed"])))
  images = recorded["support_12x12"][:2].repeat(7, 2).repeat(7, 3).transpose(0, 2, 3, 1)
  features = jax.jit(model.features)(params, images.astype(np.float32), init_adapters())
  np.testing.assert_allclose(
    features, recorded["backbone_features_with_initial_adapters"][:2], rtol=1e-3, atol=1e-3
  )


@pytest.fixture(scope="module")
def small():
  """A narrow backbone, its weights, and a 5-way task of small images."""
  model = ResNet18(image_size=16, widths=(4, 4, 8, 8))
  rng = np.random.default_rng(0)
  labels = jnp.arange(10, dtype=jnp.int32) % 5
  images = lambda: jnp.asarray(rng.standard_normal((10, 16, 16, 3)), jnp.float32)
  return model, jax.jit(model.init)(jax.random.key(0)), Task(images(), labels, images(), labels)


def test_tasks_in_a_batch_have_adapters_of_their_own(small):
  model, params, task = small
  method = make_method("url_tsa", ways=5, model=model, steps=2)
  other = task._replace(support=task.query, query=task.support)
  run = jax.jit(jax.vmap(lambda w, t: method.fit(w, t, jax.random.key(0)), in_axes=(None, 0)))
  pair = lambda *tasks: run(params, jax.tree.map(lambda *rows: jnp.stack(rows), *tasks))
  mixed, twice = pair(task, other), pair(other, other)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a[1], b[0], atol=1e-5),
    (mixed.losses, mixed.params),
    (twice.losses, twice.params),
  )
  adapters = mixed.params["adapters"]["layer4_block1_conv2"]
  assert adapters.shape == (2, 8, 8)
  assert jnp.abs(adapters[0] - adapters[1]).max() > 1e-5


def test_the_heads_and_the_adapters_learn_at_their_own_rates(small):
  model, params, task = small
  method = make_method("copa_tsa", ways=5, model=model, steps=1, l2=0.0)
  fit = jax.jit(lambda w, t: method.fit(w, t, jax.random.key(0)))(params, task)
  start = init_adapters(widths=model.widths)
  moved = jnp.abs(
    fit.params["adapters"]["layer1_block0_conv1"] - start["layer1_block0_conv1"]
  ).max()
  head = jnp.abs(fit.params["head"]["image"] - jnp.eye(model.width)).max()
  # Adam's first step is the learning rate itself.
  assert moved == pytest.approx(1e-4, rel=1e-2)
  assert head == pytest.approx(1e-3, rel=1e-2)


def test_uint8_images_are_normalized_like_urls(small):
  model, params, _ = small
  pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
  method = make_method("url_tsa", ways=2, model=model)
  start = method.head.init(jax.random.key(0), jax.ShapeDtypeStruct((16, 16, 3), jnp.uint8))
  features = jax.jit(method.head.features)
  np.testing.assert_allclose(
    features(start, params, pixels),
    features(start, params, (pixels / 127.5 - 1).astype(np.float32)),
    rtol=1e-3,
    atol=1e-3,
  )
