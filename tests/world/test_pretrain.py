"""Pretraining as functions: the loss and what counts as a negative, steps, optimizer, episodes."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import miniature as config_file
from mdtrap_jax import models
from mdtrap_jax.data.task import Task
from mdtrap_jax.experiments.pretrain import make_model
from mdtrap_jax.models.families import miniature
from mdtrap_jax.world import pretrain, sample_batch, zero_shot
from tests.colors import colors, make_method, plain_batch, small_config


@pytest.fixture(scope="module")
def method():
  return make_method(batch_size=8)


@pytest.fixture(scope="module")
def started(method):
  return jax.jit(lambda: method.prepare({}, None)[1])()


def encode_plainly(model, params, images, ids):
  """The model's own encoding, of uint8 images."""
  channels = lambda values: np.array(values, np.float32).reshape(1, 1, 1, 3)
  pixels = (images / np.float32(255) - channels(model.image_mean)) / channels(model.image_std)
  unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
  return unit(model.encode_image(params, pixels)), unit(model.encode_text(params, ids))


def test_segments_are_plain_steps(method):
  """Against gradients of the model's own encoding; not by Adam, which would blow up rounding."""
  method = dataclasses.replace(method, tx=optax.sgd(0.5), max_scale=12.0)
  started = jax.jit(lambda: method.prepare({}, None)[1])()
  root = jax.random.key(method.seed)

  @jax.jit
  def step(params, opt_state, number):
    images, ids = plain_batch(jax.random.fold_in(root, number), 8)

    def loss(params):
      image, text = encode_plainly(method.model, params, images, ids)
      logits = jnp.exp(params["logit_scale"]) * image @ text.T
      said = pretrain.caption_facts(ids)
      none = (said @ said.T == said.sum(axis=1)[None]) & ~jnp.eye(8, dtype=bool)
      logits = jnp.where(none, -1e30, logits)
      rows, columns = (jax.nn.log_softmax(x, axis=1).diagonal() for x in (logits, logits.T))
      return -(rows.mean() + columns.mean()) / 2

    value, gradient = jax.value_and_grad(loss)(params)
    updates, opt_state = method.tx.update(gradient, opt_state, params)
    params = optax.apply_updates(params, updates)
    params["logit_scale"] = jnp.minimum(params["logit_scale"], math.log(method.max_scale))
    return params, opt_state, value

  params, opt_state, losses = started.params, method.tx.init(started.params), []
  for number in range(3):
    params, opt_state, value = step(params, opt_state, number)
    losses.append(value)
  run = jax.jit(lambda state, start, stop: method.run({}, None, state, start, stop, clean=False))
  state = run(run(started, 0, 1), 1, 3)
  np.testing.assert_allclose(state.opt_state["curve"].loss[:3], losses, rtol=1e-4)
  assert not state.opt_state["curve"].loss[3:].any()
  assert state.status == 0
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
  jax.tree.map(close, state.params, params)
  patch = lambda params: np.asarray(params["image"]["stem"]["patch"]["kernel"])
  assert np.abs(patch(state.params) - patch(started.params)).max() > 1e-3
  assert state.params["logit_scale"] <= np.log(12.0) < started.params["logit_scale"]
  params["logit_scale"] = jnp.float32(np.nan)
  assert run(state._replace(params=params), 3, 4).status == 1


def test_the_start_follows_from_the_seed(method, started):
  other = dataclasses.replace(method, seed=1)
  key = jax.random.fold_in(jax.random.key(0), 2**31)
  again = models.random_weights(method.model, key)
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6)  # constants are folded
  jax.tree.map(close, started.params, again)
  image = lambda state: np.asarray(state.params["image"]["stem"]["patch"]["kernel"])
  assert not np.array_equal(image(started), image(jax.jit(other.prepare)({}, None)[1]))


def test_a_step_renders_and_keeps_the_states_shapes():
  """The program that a real run compiles, but not compiled: the renderer takes long."""
  method = dataclasses.replace(make_method(batch_size=128), sample=sample_batch)
  _, state = jax.eval_shape(lambda: method.prepare({}, None))
  after = jax.eval_shape(method.step, jax.ShapeDtypeStruct((), jnp.int32), state)
  shapes = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), tree)
  assert shapes(after) == shapes(state)


def test_evaluation_is_zero_shot_on_the_drawn_episodes(method, started):
  source = colors()
  ids = method.model.tokenize([f"a photo of a {name}." for name in source.class_names])
  images = np.stack([source.image(i) for i in range(len(source.labels))])
  task = Task(None, None, images, source.labels, token_ids=ids)
  evaluation = jax.jit(lambda state: method.evaluate({}, task, state))(started)
  expected = zero_shot.evaluate(method.model, started.params, source, episodes=20, queries=3)
  np.testing.assert_allclose(evaluation.accuracy, expected.mean, atol=1e-6)
  assert evaluation.cosines.shape == (20 * 5 * 3, 5)
  # One episode by hand.
  image, text = jax.jit(lambda p: encode_plainly(method.model, p, images, ids))(started.params)
  classes, query = method.episodes.classes[7], method.episodes.query[7]
  assert (source.labels[query] == classes[:, None]).all()
  by_hand = np.asarray(image)[query[2, 1]] @ np.asarray(text)[classes].T
  row = evaluation.cosines.reshape(20, 5, 3, 5)[7, 2, 1]
  np.testing.assert_allclose(row, by_hand, atol=1e-5)


def test_encode_is_the_models_own_encoding():
  config = small_config(**{"model.image_depth": 2, "model.text_depth": 2})
  model = make_model(config)
  params = models.random_weights(model, jax.random.key(0))
  images = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), np.uint8)
  ids = model.tokenize(["a photo of a red circle", "circle", "a star on a black background"])
  ours = jax.jit(lambda *inputs: pretrain.encode(model, *inputs))(params, images, ids)
  theirs = jax.jit(lambda *inputs: encode_plainly(model, *inputs))(params, images, ids)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)


def facts(*captions):
  return jax.jit(pretrain.caption_facts)(miniature.tokenizer()(captions))


def test_facts_are_the_attributes_named():
  rows = np.asarray(
    facts(
      "a photo of a striped red circle on a white background",
      "a picture of a striped red circle on a white background",
      "striped red circle",
      "a photo of a white circle",
      "circle on a white background",
      "a photo of a object",
      "a digit one",
      "one",
    )
  )
  assert rows.sum(axis=1).tolist() == [4, 4, 3, 2, 2, 0, 1, 1]
  np.testing.assert_array_equal(rows[0], rows[1])
  np.testing.assert_array_equal(rows[6], rows[7])
  assert rows[3] @ rows[4] == 1  # the white is not the same
  assert rows[0] @ rows[4] == 2


def test_equal_and_true_captions_are_no_negatives():
  """By hand: 0 and 1 are equal, 2 ("red") is true of both, 3 of none."""
  rows = facts("red circle", "a photo of a red circle", "red object", "blue star")
  rng = np.random.default_rng(1)
  image, text = (
    x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.standard_normal((2, 4, 5))
  )
  logits = 3.0 * image @ text.T
  keep = np.array(
    [  # image i and caption j
      [1, 0, 0, 1],
      [0, 1, 0, 1],
      [1, 1, 1, 1],
      [1, 1, 1, 1],
    ],
    bool,
  )
  exp = np.where(keep, np.exp(logits), 0.0)
  own = np.diag(logits)
  expected = np.mean([np.log(exp.sum(axis=1)) - own, np.log(exp.sum(axis=0)) - own])
  loss = jax.jit(pretrain.contrastive_loss)(
    np.float32(image), np.float32(text), rows, np.float32(3.0)
  ).loss
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_without_repeats_the_loss_is_clips():
  rows = facts("red circle", "blue star", "green digit four")
  image = text = np.eye(3, dtype=np.float32)
  metrics = jax.jit(pretrain.contrastive_loss)(image, text, rows, np.float32(2.0))
  np.testing.assert_allclose(metrics.loss, np.log(1 + 2 * np.exp(-2)), rtol=1e-6)
  assert metrics.accuracy == 1


def test_masked_pairs_leave_finite_gradients():
  rows = facts("red circle", "red circle")
  loss = lambda x: pretrain.contrastive_loss(x, x, rows, np.float32(2.0)).loss
  gradient = jax.jit(jax.grad(loss))(np.eye(2, dtype=np.float32))
  assert np.isfinite(gradient).all()


def test_only_matrices_decay(method, started):
  @jax.jit
  def decay(params):
    zeros = jax.tree.map(jnp.zeros_like, params)
    _, state = method.tx.update(zeros, method.tx.init(params), params)  # at a rate of 0
    return method.tx.update(zeros, state, params)[0]

  updates = decay(jax.tree.map(np.ones_like, started.params))
  moved = {
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, leaf in jax.tree_util.tree_leaves_with_path(updates)
    if np.any(leaf)
  }
  assert "image/stem/patch/kernel" in moved
  assert "text/blocks/mlp/fc1/kernel" in moved
  assert all(path.endswith("kernel") for path in moved)


def test_the_model_is_the_packaged_size():
  model = make_model(config_file.get_config())
  assert (model.image, model.text) == miniature.MINIATURE_MODELS["miniature"][1:3]
  assert dataclasses.replace(model, tokenize=None) == dataclasses.replace(
    models.build("miniature"), tokenize=None
  )
