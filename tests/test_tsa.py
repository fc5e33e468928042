"""Task-specific adapters: the recording's first steps, and tasks that share one backbone."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdtrap_jax.checkpoints.resnet import from_torchvision
from mdtrap_jax.heads.methods import make_method
from mdtrap_jax.heads.ncc import Task
from mdtrap_jax.models.resnet import init_adapters
from tests.replay.heads import random_weights

RECORDING = Path(__file__).parent / "golden" / "copa_tsa_resnet18.npz"


@pytest.fixture(scope="module")
def recorded():
  with np.load(RECORDING) as file:
    return dict(file)


@pytest.fixture(scope="module")
def backbone(recorded):
  return from_torchvision(random_weights(int(recorded["seed"])))


@pytest.fixture(scope="module")
def task(recorded):
  images = lambda name: jnp.asarray(
      recorded[name].repeat(7, 2).repeat(7, 3).transpose(0, 2, 3, 1), jnp.float32)
  return Task(images("support_12x12"), jnp.asarray(recorded["support_labels"], jnp.int32),
              images("query_12x12"), jnp.asarray(recorded["query_labels"], jnp.int32))


def test_first_steps_of_the_recording_in_float32(recorded, backbone, task):
  # `python -m tests.replay` does the whole of it in float64, which takes a minute.
  model, params = backbone
  features = jax.jit(model.features)
  np.testing.assert_allclose(
      features(params, task.support), recorded["backbone_features"], rtol=1e-3, atol=1e-3)
  np.testing.assert_allclose(
      features(params, task.support, init_adapters()),
      recorded["backbone_features_with_initial_adapters"], rtol=1e-3, atol=1e-3)
  method = make_method("copa_tsa", ways=5, model=model, steps=2)
  fit = jax.jit(lambda w, t: method.fit(w, t, jax.random.key(0)))(params, task)
  np.testing.assert_allclose(fit.losses, recorded["train_losses"][:2], rtol=2e-4)


def test_tasks_in_a_batch_have_adapters_of_their_own(backbone, task):
  model, params = backbone
  method = make_method("url_tsa", ways=2, model=model, steps=2)
  small = lambda rows: Task(
      task.support[rows], jnp.array([0, 1]), task.query[:1], jnp.array([0]))
  tasks = [small(np.array(rows)) for rows in ([0, 2], [5, 8])]
  run = lambda w, t: method.fit(w, t, jax.random.key(0))
  batch = jax.tree.map(lambda *rows: jnp.stack(rows), *tasks)
  together = jax.jit(jax.vmap(run, in_axes=(None, 0)))(params, batch)
  alone = jax.jit(run)(params, tasks[1])
  np.testing.assert_allclose(together.losses[1], alone.losses, rtol=1e-3)
  adapters = together.params["adapters"]["layer4_block1_conv2"]
  assert adapters.shape == (2, 512, 512)
  assert jnp.abs(adapters[0] - adapters[1]).max() > 1e-4


def test_the_heads_and_the_adapters_learn_at_their_own_rates(backbone, task):
  model, params = backbone
  method = make_method("copa_tsa", ways=5, model=model, steps=1, l2=0.0)
  fit = jax.jit(lambda w, t: method.fit(w, t, jax.random.key(0)))(params, task)
  start = init_adapters()
  moved = jnp.abs(fit.params["adapters"]["layer1_block0_conv1"]
                  - start["layer1_block0_conv1"]).max()
  head = jnp.abs(fit.params["head"]["image"] - jnp.eye(512)).max()
  # Adam's first step is the learning rate itself.
  assert moved == pytest.approx(1e-4, rel=1e-2)
  assert head == pytest.approx(1e-3, rel=1e-2)


def test_uint8_images_are_normalized_like_urls(backbone):
  model, params = backbone
  pixels = np.random.default_rng(0).integers(0, 256, (2, 84, 84, 3), dtype=np.uint8)
  method = make_method("url_tsa", ways=2, model=model)
  start = method.head.init(jax.random.key(0), jax.ShapeDtypeStruct((84, 84, 3), jnp.uint8))
  features = jax.jit(method.head.features)
  np.testing.assert_allclose(
      features(start, params, pixels), features(start, params, pixels / 127.5 - 1), rtol=1e-3,
      atol=1e-3)
