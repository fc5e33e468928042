import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import miniature as config_file
from mdtrap_jax import checkpoints
from mdtrap_jax.models.families import miniature
from mdtrap_jax.statistics import Accuracy
from mdtrap_jax.world import ANY, caption_ids, pretrain
from mdtrap_jax.world.scenes import COLOR_TABLE, COLORS

STEPS = 24


def small_config(**changes):
  config = config_file.get_config()
  config.model.update(width=16, image_depth=1, text_depth=1, heads=2, mlp_width=32, embed_dim=16)
  config.update(
    steps=STEPS,
    batch_size=64,
    segment=4,
    learning_rate=1e-2,
    warmup_steps=4,
    evaluate_every=12,
    checkpoint_every=8,
  )
  config.update(changes)
  return config


def plain_batch(key, batch):
  """Stands in for the renderer, which is slow to compile: the color fills the image."""
  color = jax.random.randint(key, (batch,), 0, len(COLORS))
  attributes = ANY._replace(color=color)
  table = jnp.asarray([COLOR_TABLE[name] for name in COLORS])
  images = jnp.broadcast_to(table[color][:, None, None, :] * 255, (batch, 48, 48, 3))
  ids = jax.vmap(lambda color, key: caption_ids(attributes._replace(color=color), key))(
    color, jax.random.split(jax.random.fold_in(key, 1), batch)
  )
  return images.astype(jnp.uint8), ids


@pytest.fixture(scope="module")
def first():
  """The state before the first step, on the host."""
  config = small_config()
  state = pretrain.init_state(
    pretrain.make_model(config), pretrain.make_optimizer(config), config.seed
  )
  return jax.tree.map(np.asarray, state)


@pytest.fixture(scope="module")
def compiled(first):
  """One compiled segment for all runs."""
  config = small_config()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(pretrain, "sample_batch", plain_batch)
    segment = pretrain.make_segment(
      pretrain.make_model(config), pretrain.make_optimizer(config), config
    )
    segment(jax.tree.map(jnp.asarray, first))  # compiles while the renderer is replaced
  return segment


@pytest.fixture
def quick(monkeypatch, first, compiled):
  """Runs share what is compiled and do not evaluate; gives the list of evaluations."""
  calls = []

  def evaluate(*args, **options):
    calls.append(args)
    return Accuracy(0.5, 0.1, 1)

  monkeypatch.setattr(pretrain, "make_segment", lambda *args: compiled)
  monkeypatch.setattr(pretrain, "init_state", lambda *args: jax.tree.map(jnp.asarray, first))
  monkeypatch.setattr(pretrain.zero_shot, "evaluate", evaluate)
  return calls


@pytest.fixture
def trained(tmp_path, quick):
  metrics = pretrain.run(small_config(), tmp_path / "whole")
  return tmp_path / "whole", metrics


def final_params(directory):
  return jax.tree.map(np.asarray, checkpoints.load(directory / "model")[1])


def equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_loss_falls_and_is_reported(trained, quick):
  directory, metrics = trained
  losses = [line["loss"] for line in metrics["history"]]
  assert len(losses) == STEPS // 4
  assert losses[-1] < losses[0] - 0.4
  assert [line["step"] for line in metrics["history"] if "zero_shot" in line] == [12, 24]
  assert len(quick) == 2
  assert metrics == json.loads((directory / "metrics.json").read_text())


def test_a_segment_renders_and_keeps_the_states_shapes(first):
  config = small_config()
  segment = pretrain.make_segment(
    pretrain.make_model(config), pretrain.make_optimizer(config), config
  )
  after, metrics = jax.eval_shape(segment, first)
  assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
    lambda leaf: (leaf.shape, leaf.dtype), first
  )
  assert metrics.loss.shape == ()


def test_a_killed_run_ends_with_the_same_weights(trained, tmp_path, monkeypatch):
  directory, metrics = trained
  with monkeypatch.context() as patch:
    patch.setattr(pretrain.zero_shot, "evaluate", _kill)
    with pytest.raises(KeyboardInterrupt):
      pretrain.run(small_config(), tmp_path / "killed")
  assert not (tmp_path / "killed" / "model").exists()
  resumed = pretrain.run(small_config(), tmp_path / "killed")
  assert [line["loss"] for line in resumed["history"]] == [
    line["loss"] for line in metrics["history"]
  ]
  equal(final_params(directory), final_params(tmp_path / "killed"))


def _kill(*args, **options):
  raise KeyboardInterrupt


def test_a_finished_run_only_exports_again(trained, quick):
  directory, metrics = trained
  evaluations = len(quick)
  assert pretrain.run(small_config(), directory) == metrics
  assert len(quick) == evaluations


def test_export_and_load_give_the_same_model(tmp_path, first):
  model, params = pretrain.make_model(small_config()), first.params
  checkpoints.save(tmp_path, model, params, dtype=jnp.float16)
  loaded, again = checkpoints.load(tmp_path)
  assert (loaded.image, loaded.text) == (model.image, model.text)
  assert (loaded.image_mean, loaded.image_std) == (model.image_mean, model.image_std)
  assert loaded.tokenize.vocabulary == miniature.tokenizer().vocabulary
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6), again, params)


def test_encode_is_the_models_own_encoding():
  config = small_config()
  config.model.update(image_depth=2, text_depth=2)
  model = pretrain.make_model(config)
  params = jax.jit(model.init)(jax.random.key(0))
  images = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), np.uint8)
  ids = model.tokenize(["a photo of a red circle", "circle", "a star on a black background"])
  image, text = jax.jit(lambda *inputs: pretrain.encode(model, *inputs))(params, images, ids)
  pixels = (images / 255 - np.array(model.image_mean)) / np.array(model.image_std)
  for ours, theirs in (
    (image, jax.jit(model.encode_image)(params, np.float32(pixels))),
    (text, jax.jit(model.encode_text)(params, ids)),
  ):
    theirs = theirs / np.linalg.norm(theirs, axis=-1, keepdims=True)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


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


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"steps": 22}, "config.steps=22 must be a multiple of config.segment=4"),
    ({"batch_size": 0}, "config.batch_size=0 must be at least 1"),
    ({"warmup_steps": 24}, "config.warmup_steps=24 must be below config.steps=24"),
  ],
)
def test_a_config_that_cannot_be_right(change, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    pretrain.run(small_config(**change), tmp_path)


def test_a_directory_of_another_config(trained):
  with pytest.raises(ValueError, match="another config, which differs in seed"):
    pretrain.run(small_config(seed=1), trained[0])


def test_only_matrices_decay(first):
  tx = pretrain.make_optimizer(small_config())

  @jax.jit
  def decay(params):
    zeros = jax.tree.map(jnp.zeros_like, params)
    _, state = tx.update(zeros, tx.init(params), params)  # at a rate of 0
    return tx.update(zeros, state, params)[0]

  updates = decay(jax.tree.map(np.ones_like, first.params))
  moved = {
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, leaf in jax.tree_util.tree_leaves_with_path(updates)
    if np.any(leaf)
  }
  assert "image/stem/patch/kernel" in moved
  assert "text/blocks/mlp/fc1/kernel" in moved
  assert all(path.endswith("kernel") for path in moved)


def test_the_model_is_the_packaged_size():
  model = pretrain.make_model(config_file.get_config())
  assert (model.image, model.text) == miniature.MINIATURE_MODELS["miniature"][1:3]
  assert dataclasses.replace(model, tokenize=None) == dataclasses.replace(
    pretrain.models.build("miniature"), tokenize=None
  )
