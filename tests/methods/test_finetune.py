"""One episode alone, in a batch, on one and on eight devices; failures; mini-batches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdtrap_jax.methods.method import STATUS
from mdtrap_jax.models import sharding
from mdtrap_jax.models.lora import LoraConfig, init_factors
from mdtrap_jax.models.transformer import BlockConfig, init_blocks, run_blocks
from mdtrap_jax.objectives import chain
from mdtrap_jax.run import programs as batching
from mdtrap_jax.run.devices import size_in_bytes
from tests.episodes import (
  STEPS,
  row,
  small_adaptation,
  small_config,
  small_episodes,
  small_weights,
)

COUNT = 8
CLOSE = 1e-2  # relative to the norm: Adam takes whole steps by the sign of gradients near 0


@functools.cache
def setup(**overrides):
  config = small_config(**overrides)
  adaptation, params = small_adaptation(config)
  phases = chain.make_phases(config.objective.to_dict(), STEPS)
  episodes = small_episodes(adaptation.model, COUNT)
  return adaptation, params, phases, episodes, small_weights(config)


def adapt_batch(devices, count=COUNT, **overrides):
  adaptation, params, phases, episodes, weights = setup(**overrides)
  mesh = batching.task_mesh(jax.devices()[:devices])
  programs = batching.make_programs(adaptation, mesh, True)
  episodes = batching.spread(jax.tree.map(lambda leaf: leaf[:count], episodes), mesh)
  params = batching.replicate(params, mesh)
  prepared, state = programs.prepare(params, episodes, weights)
  for phase in phases:
    state = programs.run[phase.clean](params, prepared, state, phase.start, phase.stop)
  return only_variant(jax.device_get((state, programs.evaluate(params, prepared, state))))


@functools.cache
def run_clean(adaptation):
  """The compiled steps of one episode, with the clean pass."""
  return jax.jit(functools.partial(adaptation.run, clean=True))


@functools.cache
def one_prepared(number=0, **overrides):
  """One episode's fixed part and state."""
  adaptation, params, _, episodes, _ = setup(**overrides)
  return jax.jit(adaptation.prepare)(params, row(episodes, number))


def only_variant(tree):
  """`[E, ...]` from the `[E, P, ...]` of a run without variants, where `P` is 1."""
  return jax.tree.map(lambda leaf: leaf[:, 0], tree)


@functools.cache
def reference():
  return adapt_batch(devices=1)


def assert_close(ours, theirs):
  def close(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert np.linalg.norm(a - b) <= CLOSE * np.linalg.norm(b) + 1e-6

  jax.tree.map(close, ours, theirs)


def test_alone_equals_the_row_of_a_batch():
  adaptation, params, phases, episodes, weights = setup()
  prepared, state = jax.jit(adaptation.prepare)(params, row(episodes, 3))
  for phase in phases:
    run = jax.jit(functools.partial(adaptation.run, clean=phase.clean))
    state = run(params, prepared, state, phase.start, phase.stop)
  batch_state, batch_evaluation = row(reference(), 3)
  assert_close(state.params, batch_state.params)
  assert_close(jax.jit(adaptation.evaluate)(params, prepared, state), batch_evaluation)


def test_eight_devices_equal_one():
  state, evaluation = adapt_batch(devices=8)
  assert_close(state.params, reference()[0].params)
  assert_close(evaluation, reference()[1])


def test_views_and_draws_are_the_same_bits_in_any_batch():
  adaptation, params, _, episodes, weights = setup()
  alone, _ = jax.jit(adaptation.prepare)(params, row(episodes, 3))
  mesh = batching.task_mesh(jax.devices()[:4])
  programs = batching.make_programs(adaptation, mesh, True)
  batch, state = programs.prepare(
    batching.replicate(params, mesh), batching.spread(episodes, mesh), weights
  )
  assert (jax.random.key_data(batch.key[3]) == jax.random.key_data(alone.key)).all()
  np.testing.assert_allclose(batch.tokens[3], alone.tokens, rtol=1e-4, atol=1e-5)
  _, alone_state = adaptation.prepare(params, row(episodes, 3))
  np.testing.assert_array_equal(state.params["image"].a[3, 0], alone_state.params["image"].a)


def test_adaptation_learns_the_support_set():
  state, _ = reference()
  adaptation, params, _, episodes, weights = setup()
  prepared, start = jax.jit(adaptation.prepare)(params, row(episodes, 0))
  on_support = prepared._replace(query_tokens=prepared.tokens, query_labels=prepared.batch.labels)
  before = adaptation.evaluate(params, on_support, start)
  after = adaptation.evaluate(params, on_support, row(state, 0))
  assert after.accuracy > max(before.accuracy, 0.9)
  assert (state.status == STATUS.index("ok")).all()


def test_variants_in_one_program_equal_runs_of_their_own():
  weights = {
    "vlm": jnp.ones(3),
    "svl": jnp.array([0.0, 0.1, 0.1]),
    "ra": jnp.array([0.0, 0.0, 3.0]),
  }
  adaptation, params, phases, episodes, _ = setup()
  programs = batching.make_programs(adaptation, batching.task_mesh(jax.devices()[:1]), True)
  prepared, state = programs.prepare(params, jax.tree.map(lambda leaf: leaf[:2], episodes), weights)
  for phase in phases:
    state = programs.run[phase.clean](params, prepared, state, phase.start, phase.stop)
  assert_close(
    jax.tree.map(lambda leaf: leaf[:, 2], state.params), row(reference()[0].params, slice(2))
  )
  plain, _ = adapt_batch(1, 2, objective__svl__weight=0.0, objective__ra__weight=0.0)
  assert_close(jax.tree.map(lambda leaf: leaf[:, 0], state.params), plain.params)
  assert not np.allclose(state.params["image"].b[:, 0], state.params["image"].b[:, 1])


def test_a_segment_can_be_cut_anywhere():
  adaptation, params, _, episodes, weights = setup()
  prepared, start = jax.jit(adaptation.prepare)(params, row(episodes, 0))
  run = jax.jit(functools.partial(adaptation.run, clean=True))
  whole = run(params, prepared, start, 0, 5)
  parts = run(params, prepared, run(params, prepared, start, 0, 2), 2, 5)
  jax.tree.map(np.testing.assert_array_equal, whole, parts)


def test_a_non_finite_episode_is_frozen_and_the_others_go_on():
  adaptation, params, phases, episodes, weights = setup()
  text = episodes.text.copy()
  text[2] = np.nan  # its logits, and so its gradient, are NaN from the first step
  mesh = batching.task_mesh(jax.devices()[:1])
  programs = batching.make_programs(adaptation, mesh, True)
  prepared, state = programs.prepare(params, episodes._replace(text=text), weights)
  start = only_variant(jax.device_get(state.params))
  for phase in phases:
    state = programs.run[phase.clean](params, prepared, state, phase.start, phase.stop)
  state, evaluation = only_variant((state, programs.evaluate(params, prepared, state)))
  assert [STATUS[s] for s in np.asarray(state.status)] == [
    "non-finite" if i == 2 else "ok" for i in range(COUNT)
  ]
  assert_close(row(state.params, 2), row(start, 2))  # kept as it was
  assert evaluation.accuracy[2] == 0.0  # NaN never counts as a hit
  others = np.delete(np.arange(COUNT), 2)
  assert_close(row(state.params, others), row(reference()[0].params, others))


def test_a_frozen_episode_does_not_thaw():
  """A step that would be finite again leaves it as it is."""
  adaptation, params, _, episodes, _ = setup()
  prepared, start = one_prepared()
  step = run_clean(adaptation)
  before = step(params, prepared, start, 0, 2)
  nan = prepared._replace(text=jnp.full_like(prepared.text, jnp.nan))
  frozen = step(params, nan, before, 2, 3)
  assert STATUS[frozen.status] == "non-finite"
  later = step(params, prepared, frozen, 3, 5)
  jax.tree.map(np.testing.assert_array_equal, later, frozen)
  jax.tree.map(np.testing.assert_array_equal, frozen._replace(status=before.status), before)


def test_the_clean_pass_has_dropout_masks_of_its_own():
  adaptation, params, _, episodes, weights = setup()
  prepared, state = jax.jit(adaptation.prepare)(params, row(episodes, 0))
  factors = jax.tree.map(lambda leaf: leaf + 0.1, state.params)
  features = adaptation._features(
    params, prepared, factors, prepared.tokens, jax.random.key(0), clean=True
  )
  clean_rows = prepared.batch.clean_labels.shape[0]
  assert not np.allclose(features.image[:clean_rows], features.clean)
  undropped = dataclasses.replace(
    adaptation, lora=dataclasses.replace(adaptation.lora, dropout=0.0)
  )
  features = undropped._features(
    params, prepared, factors, prepared.tokens, jax.random.key(0), clean=True
  )
  np.testing.assert_allclose(features.image[:clean_rows], features.clean, atol=1e-5)


def test_batches_cover_every_view_once_an_epoch_in_a_new_order():
  adaptation, params, _, episodes, weights = setup(adapt__batch_size=5, objective__ra__weight=0.0)
  prepared, _ = jax.jit(adaptation.prepare)(params, row(episodes, 0))
  rows = [adaptation._rows(prepared, step) for step in range(6)]  # 15 views: 3 steps an epoch
  epochs = [np.concatenate([tokens for tokens, _ in rows[i : i + 3]]) for i in (0, 3)]
  order = lambda tokens: np.lexsort(tokens.reshape(len(tokens), -1).T)
  for epoch in epochs:
    np.testing.assert_array_equal(
      epoch[order(epoch)], prepared.tokens[order(np.asarray(prepared.tokens))]
    )
  assert not np.array_equal(*epochs)
  for tokens, batch in rows:
    for token, label in zip(tokens, batch.labels, strict=True):
      found = (prepared.tokens == token[None]).all((1, 2))
      assert (prepared.batch.labels[found] == label).all()


@pytest.mark.parametrize("encoder", ["text", "both"])
def test_a_tuned_text_encoder_moves_the_texts(encoder):
  adaptation, params, phases, episodes, weights = setup(lora__encoder=encoder)
  prepared, state = jax.jit(adaptation.prepare)(params, row(episodes, 0))
  assert sorted(state.params) == (["image", "text"] if encoder == "both" else ["text"])
  run = jax.jit(functools.partial(adaptation.run, clean=True))
  after = run(params, prepared, state, 0, 3)
  assert abs(after.params["text"].b).max() > 0
  before, moved = (adaptation._text(params, prepared, s.params, None) for s in (state, after))
  assert not np.allclose(before, moved)


@pytest.mark.parametrize("overrides", [{}, {"lora__encoder": "both"}, {"lora__position": "top3"}])
def test_weights_split_between_devices_take_the_same_steps(overrides):
  """Two copies of the weights, each between four devices, as PE-Core's G14 may need them."""
  (expected, evaluation) = adapt_batch(1, **overrides)
  adaptation, params, phases, episodes, weights = setup(**overrides)
  mesh = batching.task_mesh(shards=4)
  programs = batching.make_programs(adaptation, mesh, True)
  split = batching.replicate(adaptation.needed(params, 4), mesh)
  kernel = split["image"]["blocks"]["mlp"]["fc1"]["kernel"].array
  assert kernel.addressable_shards[0].data.size == kernel.size // 4
  episodes = batching.spread(
    jax.tree.map(lambda leaf: np.resize(leaf, (8, *leaf.shape[1:])), episodes), mesh
  )
  prepared, state = programs.prepare(split, episodes, weights)
  for phase in phases:
    state = programs.run[phase.clean](split, prepared, state, phase.start, phase.stop)
  found = only_variant(jax.device_get((state, programs.evaluate(split, prepared, state))))
  count = len(expected.status)
  assert_close(row(found[0].params, slice(count)), expected.params)
  assert_close(found[1].cosines[:count], evaluation.cosines)


def test_weights_put_together_for_a_block_do_not_stay():
  """Although the encoder is not large: a backward pass that kept them would hold all blocks."""
  block, lora = BlockConfig(64, 2, 256), LoraConfig(rank=2)
  blocks = init_blocks(jax.random.key(0), block, 8)
  factors = init_factors(jax.random.key(1), lora, 8, 64)

  def gradient(weights, x):
    loss = lambda f: run_blocks(weights, x, block, lora=lora, factors=f).sum()
    return jax.grad(loss)(factors)

  program = batching.over_tasks(gradient, batching.task_mesh(jax.devices()[:4], 4), (False, True))
  lowered = program.lower(sharding.split(blocks, 4), jnp.ones((4, 1, 3, 64)))
  temporary = lowered.compile().memory_analysis().temp_size_in_bytes
  assert temporary < size_in_bytes(blocks) / 2


@pytest.mark.parametrize("chunk", [4, 7])  # 18 rows: the last chunk is filled up
def test_rows_in_chunks_take_the_same_steps_with_less_memory(chunk):
  adaptation, params, phases, episodes, _ = setup()
  prepared, state = jax.jit(adaptation.prepare)(params, row(episodes, 0))
  parts = dataclasses.replace(adaptation, chunk=chunk)
  step = lambda adapt: jax.jit(functools.partial(adapt.run, clean=True))
  whole, chunked = (step(a)(params, prepared, state, 0, 3) for a in (adaptation, parts))
  assert_close(chunked.params, whole.params)
  memory = lambda a: step(a).lower(params, prepared, state, 0, 3).compile().memory_analysis()
  assert memory(parts).temp_size_in_bytes < memory(adaptation).temp_size_in_bytes


def test_bfloat16_follows_float32():
  adaptation, params, phases, episodes, _ = setup()
  half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
  prepared, state = jax.jit(adaptation.prepare)(half, row(episodes, 0))
  assert prepared.tokens.dtype == jnp.bfloat16
  run = jax.jit(functools.partial(adaptation.run, clean=True))
  state = run(half, prepared, state, 0, 2)
  assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.float32)}
  exact, start = jax.jit(adaptation.prepare)(params, row(episodes, 0))
  exact = run(params, exact, start, 0, 2)
  for ours, theirs in zip(
    chain.term_states(state.opt_state).values(),
    chain.term_states(exact.opt_state).values(),
    strict=True,
  ):
    np.testing.assert_allclose(ours.value, theirs.value, rtol=0.1, atol=0.05)
