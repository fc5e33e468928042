"""What every parameterization must do, and what each of them computes once."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from configs import default
from mdtrap_jax import config as settings
from mdtrap_jax import models
from mdtrap_jax.experiments import finetune
from mdtrap_jax.methods.tuning import context
from mdtrap_jax.methods.tuning.choices import PARAMETERIZATIONS, make_parameterization
from mdtrap_jax.methods.tuning.coop import Coop
from mdtrap_jax.methods.tuning.maple import Maple
from mdtrap_jax.models import vlm
from mdtrap_jax.objectives import chain
from mdtrap_jax.run import programs as batching
from tests.episodes import row, small_config, small_episodes, smallest_clip

STEPS, COUNT, NAMES = 5, 2, ["red", "green", "blue"]
# Fields of a config beside those of `:TUNE`.
KINDS = {
  "lora": {"lora.encoder": "text"},
  "coop": {"coop.tokens": 3},
  "coop of classes": {"coop.words": "a photo of", "coop.per_class": True},
  "maple": {"maple.depth": 2},
  "layernorm": {"layernorm.encoder": "both"},
  "bias": {"bias.position": "1"},
  "dora": {"lora.projections": ("q", "k", "v", "out", "fc1", "fc2")},
  "pissa": {"lora.projections": ("v", "fc1"), "lora.alpha": 2.0},
}

OTHERS = {
  "coop.tokens": 1,
  "maple.tokens": 1,
  "lora.rank": 9,
  "bias.encoder": "text",
  "layernorm.encoder": "text",
}


def make_config(name, **fields):
  config = small_config(row=f"svl_ra,{name.split()[0]}")
  fewer = {"adapt.steps": STEPS, "adapt.views": 2, "lora.dropout": 0.0}
  config.update_from_flattened_dict(fewer | KINDS[name] | fields)
  config.optimizer.learning_rate = 1e-2
  return settings.resolve(config)


@functools.cache
def setup(name):
  """The method, its weights, and episodes with the tokens that it reads."""
  model, params = smallest_clip()
  config = make_config(name)
  method = finetune.make_method(config, config.objective.to_dict(), model, 30.0)
  template = config.data.template or "a photo of a {}."
  prompts = finetune.encode_prompts(
    model, params, NAMES, template, parameterization=method.parameterization
  )
  episodes = small_episodes(model, COUNT)
  many = lambda leaf: np.stack([leaf] * COUNT)
  episodes = episodes._replace(token_ids=many(prompts.token_ids), text=many(prompts.text))
  return method, method.needed(params), episodes


@functools.cache
def alone(name):
  """The second episode by itself: prepared, the start, and a state as some steps may leave it."""
  method, params, episodes = setup(name)
  prepared, start = jax.jit(method.prepare)(params, row(episodes, 1))
  rng = np.random.default_rng(0)
  moved = lambda leaf: leaf + np.float32(0.02) * rng.standard_normal(leaf.shape, np.float32)
  return prepared, start, start._replace(params=jax.tree.map(moved, start.params))


@functools.cache
def evaluation(name):
  """`evaluate`, compiled once."""
  return jax.jit(setup(name)[0].evaluate)


def close(ours, theirs):
  """But for the biases of keys, which a softmax does not see: Adam makes steps of their noise."""
  ours, theirs = (
    jax.tree.map_with_path(
      lambda path, leaf: np.delete(leaf, 1, -2) if "qkv/bias" in str(path) else leaf, tree
    )
    for tree in (ours, theirs)
  )
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(a, b, rtol=5e-3, atol=5e-4)


def test_all_are_here():
  assert {name.split()[0] for name in KINDS} == set(default.TUNES) >= set(PARAMETERIZATIONS)


@pytest.mark.parametrize("name", ["maple", "dora"])
def test_weights_split_between_devices_take_the_same_steps(name):
  method, whole, episodes = setup(name)
  own, start, _ = alone(name)
  expected = jax.jit(functools.partial(method.run, clean=True))(whole, own, start, 0, STEPS)
  mesh = batching.task_mesh(jax.devices()[:2], 2)
  params = batching.replicate(method.needed(smallest_clip()[1], 2), mesh)
  programs = batching.make_programs(method, mesh, False)
  prepared, state = programs.prepare(params, batching.spread(episodes, mesh), {})
  state = programs.run[True](params, prepared, state, 0, STEPS)
  close(row(state.params, 1), expected.params)


@pytest.mark.parametrize("name", KINDS)
def test_shapes_without_the_clean_pass(name):
  method, params, episodes = setup(name)
  prepared, start, _ = alone(name)
  shapes = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
  assert {leaf.dtype for leaf in jax.tree.leaves(start.params)} == {np.dtype(np.float32)}
  run = functools.partial(method.run, clean=False)  # with it, see test_twins
  assert shapes(jax.eval_shape(run, params, prepared, start, 0, 1)) == shapes(start)
  work = method.work(params, row(episodes, 0), 1)
  assert work.each >= 1
  assert work.size > 0


@pytest.mark.parametrize("name", ["lora", "coop", "coop of classes", "maple", "layernorm"])
def test_tokens_of_texts_are_counted_as_they_are_computed(name, monkeypatch):
  method, params, episodes = setup(name)
  assert "text" in method.parameterization.encoders
  trained, ids = alone(name)[1].params, row(episodes, 1).token_ids
  seen, run_blocks = [], vlm.run_blocks

  def watched(blocks, x, *arguments, **keywords):
    seen.append(x.shape[0] * x.shape[1])
    return run_blocks(blocks, x, *arguments, **keywords)

  monkeypatch.setattr(vlm, "run_blocks", watched)
  encode = functools.partial(method.parameterization.encode_text, method.model)
  jax.eval_shape(encode, params, ids, trained)
  assert seen == [method.parameterization.text_tokens(method.model, ids.shape)]
  shared = name in ("coop", "maple")
  assert (seen[0] < ids.size) == shared


def test_an_encoder_that_is_not_causal_shares_no_tokens():
  siglip = models.build("siglip-b16-224")
  assert not siglip.text.block.causal
  for tuned in (Coop(tokens=3), Maple(tokens=2)):
    assert tuned.text_tokens(siglip, (5, 64)) == 5 * 64


def cosines(params, episodes, text):
  """`[Q, C]` of the second episode's queries by a model's own encoder."""
  model, _ = smallest_clip()
  images = np.asarray(row(episodes, 1).query)
  pixels = (images / 255 - np.array(model.image_mean)) / np.array(model.image_std)
  image = encode_image(params, pixels.astype(np.float32))
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  return unit(np.asarray(image)) @ unit(np.asarray(text)).T


encode_image = jax.jit(lambda params, x: smallest_clip()[0].encode_image(params, x))
encode_text = jax.jit(lambda params, ids: smallest_clip()[0].encode_text(params, ids))


@pytest.mark.parametrize("name", KINDS)
def test_before_the_first_step_it_is_the_pretrained_model(name):
  """Or there is a baseline that is."""
  method, params, episodes = setup(name)
  prepared, start, _ = alone(name)
  model, base = smallest_clip()
  run = jax.jit(method.baseline) if method.baseline else evaluation(name)
  found = run(params, prepared, start)
  text = row(episodes, 1).text
  if name == "coop of classes":
    words = make_config(name).coop.words
    text = encode_text(base, model.tokenize([f"{words} {n}." for n in NAMES]))
  np.testing.assert_allclose(found.cosines, cosines(base, episodes, text), atol=2e-5)


@pytest.mark.parametrize("name", KINDS)
def test_merged_it_is_a_model_of_the_same_architecture(name):
  method, params, episodes = setup(name)
  prepared, _, state = alone(name)
  base, trained = jax.device_get((smallest_clip()[1], state.params))
  if name.split()[0] in ("coop", "maple"):
    with pytest.raises(ValueError, match="hand on the folder itself"):
      method.parameterization.merge(method.model, base, trained)
    return
  one = method.parameterization.merge(method.model, base, trained)
  text = row(episodes, 1).text
  if "text" in method.parameterization.encoders:
    text = encode_text(one, row(episodes, 1).token_ids)
  found = evaluation(name)(params, prepared, state).cosines
  np.testing.assert_allclose(found, cosines(one, episodes, text), atol=2e-5)
  assert jax.tree.structure(one) == jax.tree.structure(base)


@pytest.mark.parametrize("name", KINDS)
def test_saved_and_loaded(name, tmp_path):
  method, _, _ = setup(name)
  trained = jax.device_get(alone(name)[2].params)
  for file, content in method.parameterization.save(method.model, trained, "base").items():
    (tmp_path / file).write_bytes(content)
  again = method.parameterization.load(tmp_path, method.model, len(NAMES))
  jax.tree.map(np.testing.assert_array_equal, again, trained)
  other = make_parameterization(make_config(name, **OTHERS))
  with pytest.raises((ValueError, OSError), match=str(tmp_path)):
    other.load(tmp_path, method.model, len(NAMES) + 1)


def test_a_fixed_image_encoder_does_not_run_in_the_steps():
  method, params, _ = setup("coop")
  prepared, start, _ = alone("coop")
  assert prepared.tokens.ndim == prepared.query_tokens.ndim == 2
  run = functools.partial(method.run, clean=True)
  after = jax.eval_shape(run, params | {"image": None}, prepared, start, 0, 1)  # without weights
  assert jax.tree.structure(after) == jax.tree.structure(start)


def test_terms_of_images_alone_have_no_gradient_on_a_context():
  """As docs/terms.md says: SVL and L_v see images, which nothing that is trained reaches."""
  model, params = smallest_clip()
  config = make_config("coop", **{"objective.svl.weight": 50.0, "objective.ra.weight": 0.0})
  method = finetune.make_method(config, config.objective.to_dict(), model, 30.0)
  prepared, start, _ = alone("coop")
  state = method.init(start.params)
  run, moved = jax.jit(functools.partial(method.run, clean=False)), []
  for weight in (0.0, 50.0):
    weights = chain.with_weights(state.opt_state, {"svl": weight})
    after = run(params, prepared, state._replace(opt_state=weights), 0, STEPS)
    moved.append(after.params["context"])
  assert after.opt_state["svl"].value > 0  # it was on
  np.testing.assert_array_equal(*moved)
  assert not np.allclose(moved[0], start.params["context"])


@pytest.mark.parametrize(
  "name", ["clip-vit-b16", "siglip-b16-224", "siglip2-b16-224", "pe-core-b16-224"]
)
def test_a_context_stands_before_the_class_name_in_every_family(name):
  model = models.build(name)
  plain = model.tokenize(["red."])[0]
  ids = context.make_token_ids(model, "coop", ["red", "blue"], "", 3)
  start = context.text_start(model)
  assert start == 1
  assert ids[0, :start].tolist() == plain[:start].tolist()
  assert ids[0, start : start + 3].tolist() == [0, 0, 0]
  assert ids[0, start + 3] == plain[start]  # the name
  if model.text.cuts:
    assert ids.shape[1] == 6  # start, three learned, name, end: nothing reads what comes after
  else:
    assert ids.shape[1] == len(plain)
    assert ids[0, -1] == plain[-1]


class SigLIPLike:
  """No start token, padded by the end token (1) or by another one (2)."""

  def __init__(self, pad):
    self.pad = pad

  def __call__(self, texts):
    rows = np.full((len(texts), 8), self.pad, np.int32)
    for text_row, text in zip(rows, texts, strict=True):
      words = [10 + len(word) for word in text.split()][:7]
      text_row[: len(words) + 1] = [*words, 1]
    return rows


@pytest.mark.parametrize("pad", [1, 2])
def test_a_context_where_texts_have_no_start_token(pad):
  model = models.build("siglip-b16-224")
  text = dataclasses.replace(model.text, context_length=8)
  model = dataclasses.replace(model, text=text, tokenize=SigLIPLike(pad))
  ids = context.make_token_ids(model, "coop", ["a bb", "cccc"], "", 2)
  assert ids.tolist() == [[0, 0, 11, 13, 1, pad, pad, pad], [0, 0, 15, 1, pad, pad, pad, pad]]
  with pytest.raises(ValueError, match="the class name 'a b c d e f' after 3 learned tokens"):
    context.make_token_ids(model, "coop", ["x", "a b c d e f"], "", 3)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"coop.tokens": 6}, r"--config.coop.tokens=6: .* at least 9 tokens.* reads 8; learn fewer"),
    ({"coop.words": "a photo", "coop.tokens": 3}, "'a photo' are 2 tokens; learn at most so many"),
  ],
)
def test_a_context_that_cannot_be(fields, message):
  config = make_config("coop", **fields)
  with pytest.raises(ValueError, match=message):
    finetune.make_method(config, config.objective.to_dict(), smallest_clip()[0], 30.0)


def test_a_class_name_that_leaves_no_room():
  model, _ = smallest_clip()
  with pytest.raises(
    ValueError, match="the class name 'very long odd name' after 3 learned tokens"
  ):
    context.make_token_ids(model, "coop", ["red", "very long odd name"], "", 3)
