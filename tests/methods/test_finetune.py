"""One episode alone, in a batch, on one and on eight devices; failures; mini-batches."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdtrap_jax.methods.method import STATUS
from mdtrap_jax.methods.tuning.lora import Lora
from mdtrap_jax.models import sharding
from mdtrap_jax.models.chunks import in_chunks
from mdtrap_jax.models.lora import LoraConfig, init_factors
from mdtrap_jax.models.transformer import BlockConfig, init_blocks, run_blocks
from mdtrap_jax.objectives import chain
from mdtrap_jax.run import programs as batching
from mdtrap_jax.run.devices import size_in_bytes
from tests.episodes import (
  row,
  small_adaptation,
  small_config,
  small_episodes,
  small_weights,
)

COUNT, STEPS, VIEWS = 8, 5, 3
CLOSE = 1e-2  # relative to the norm: Adam takes whole steps by the sign of gradients near 0
HALF_CLOSE = 0.05  # of float16's 11 bits after some steps of Adam, likewise


@functools.cache
def setup(**overrides):
  # One phase, with the clean pass: one program to compile. Whole runs have both phases.
  fewer = {"adapt__steps": STEPS, "adapt__views": VIEWS, "objective__ra__window": (0, 5)}
  config = small_config(**(fewer | overrides))
  adaptation, params = small_adaptation(config)
  phases = chain.make_phases(config.objective.to_dict(), STEPS)
  episodes = small_episodes(adaptation.model, COUNT)
  return adaptation, params, phases, episodes, small_weights(config)


class Adapted(NamedTuple):
  prepared: Any  # [E, ...]
  start: Any  # the state before step 0, [E, P, ...]
  state: Any
  evaluation: Any


def adapt_batch(devices=1, shards=1, weights=None, changed=None, evaluate=True, **overrides):
  """All episodes through all steps; `changed` replaces some of their fields."""
  adaptation, params, phases, episodes, own = setup(**overrides)
  mesh = batching.task_mesh(jax.devices()[:devices], shards)
  programs = batching.make_programs(adaptation, mesh, True)
  episodes = batching.spread(episodes._replace(**changed or {}), mesh)
  params = batching.replicate(adaptation.needed(params, shards), mesh)
  prepared, state = programs.prepare(params, episodes, own if weights is None else weights)
  start = jax.device_get(state)
  for phase in phases:
    state = programs.run[phase.clean](params, prepared, state, phase.start, phase.stop)
  evaluation = programs.evaluate(params, prepared, state) if evaluate else None
  return Adapted(prepared, *jax.device_get((start, state, evaluation)))


def only_variant(tree):
  """`[E, ...]` from the `[E, P, ...]` of a run without variants, where `P` is 1."""
  return jax.tree.map(lambda leaf: leaf[:, 0], tree)


@functools.cache
def reference(devices=1, **overrides):
  adapted = adapt_batch(devices, **overrides)
  return Adapted(adapted.prepared, *map(only_variant, adapted[1:]))


@functools.cache
def run_clean(adaptation):
  """The compiled steps of one episode, with the clean pass."""
  return jax.jit(functools.partial(adaptation.run, clean=True))


@functools.cache
def one_prepared(number=0, **overrides):
  """One episode's fixed part and state."""
  adaptation, params, _, episodes, _ = setup(**overrides)
  return jax.jit(adaptation.prepare)(params, row(episodes, number))


@functools.cache
def evaluate():
  return jax.jit(setup()[0].evaluate)


def assert_close(ours, theirs):
  def close(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    np.testing.assert_array_equal(np.isnan(a), np.isnan(b))  # the first term has no cosine
    a, b = np.nan_to_num(a), np.nan_to_num(b)
    assert np.linalg.norm(a - b) <= CLOSE * np.linalg.norm(b) + 1e-6

  jax.tree.map(close, ours, theirs)


def test_alone_equals_the_row_of_a_batch():
  adaptation, params, _, _, _ = setup()
  prepared, state = one_prepared(3)
  state = run_clean(adaptation)(params, prepared, state, 0, STEPS)
  assert_close(state.params, row(reference().state.params, 3))
  expected = row(reference().evaluation, 3)._replace(terms={})  # the programs of a run add them
  assert_close(evaluate()(params, prepared, state), expected)


def test_eight_devices_equal_one():
  found, expected = reference(devices=8), reference()
  assert_close(found.state.params, expected.state.params)
  assert_close(found.evaluation, expected.evaluation)


def test_views_and_draws_are_the_same_bits_in_any_batch():
  alone, alone_state = one_prepared(3)
  for devices in (1, 8):
    batch = reference(devices)
    assert (jax.random.key_data(batch.prepared.key[3]) == jax.random.key_data(alone.key)).all()
    np.testing.assert_allclose(batch.prepared.tokens[3], alone.tokens, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(batch.start.params["image"].a[3], alone_state.params["image"].a)


def test_adaptation_learns_the_support_set():
  state = reference().state
  _, params, _, _, _ = setup()
  prepared, start = one_prepared()
  on_support = prepared._replace(query_tokens=prepared.tokens, query_labels=prepared.batch.labels)
  before = evaluate()(params, on_support, start)
  after = evaluate()(params, on_support, row(state, 0))
  assert after.accuracy > max(before.accuracy, 0.8)
  assert (state.status == STATUS.index("ok")).all()


def test_variants_in_one_program_equal_runs_of_their_own():
  weights = {
    "vlm": jnp.ones(3),
    "svl": jnp.array([0.0, 0.1, 0.1]),
    "ra": jnp.array([0.0, 0.0, 3.0]),
  }
  params = adapt_batch(weights=weights, evaluate=False).state.params
  variant = lambda number: jax.tree.map(lambda leaf: leaf[:, number], params)
  assert_close(variant(2), reference().state.params)
  only = {"objective__svl__weight": 0.0, "objective__ra__weight": 0.0}
  plain = adapt_batch(evaluate=False, **only)
  assert_close(variant(0), only_variant(plain.state.params))
  assert not np.allclose(variant(0)["image"].b, variant(1)["image"].b)


def test_a_segment_can_be_cut_anywhere():
  adaptation, params, _, _, _ = setup()
  prepared, start = one_prepared()
  run = run_clean(adaptation)
  whole = run(params, prepared, start, 0, 5)
  parts = run(params, prepared, run(params, prepared, start, 0, 2), 2, 5)
  jax.tree.map(np.testing.assert_array_equal, whole, parts)


def test_a_non_finite_episode_is_frozen_and_the_others_go_on():
  text = setup()[3].text.copy()
  text[2] = np.nan  # its logits, and so its gradient, are NaN from the first step
  _, start, state, evaluation = adapt_batch(changed={"text": text})
  start, state, evaluation = map(only_variant, (start, state, evaluation))
  assert [STATUS[s] for s in state.status] == [
    "non-finite" if i == 2 else "ok" for i in range(COUNT)
  ]
  assert_close(row(state.params, 2), row(start.params, 2))  # kept as it was
  assert evaluation.accuracy[2] == 0.0  # NaN never counts as a hit
  others = np.delete(np.arange(COUNT), 2)
  assert_close(row(state.params, others), row(reference().state.params, others))


def test_a_frozen_episode_does_not_thaw():
  """A step that would be finite again leaves it as it is."""
  adaptation, params, _, _, _ = setup()
  prepared, start = one_prepared()
  step = run_clean(adaptation)
  before = step(params, prepared, start, 0, 2)
  nan = prepared._replace(text=jnp.full_like(prepared.text, jnp.nan))
  frozen = step(params, nan, before, 2, 3)
  assert STATUS[frozen.status] == "non-finite"
  later = step(params, prepared, frozen, 3, 5)
  jax.tree.map(np.testing.assert_array_equal, later, frozen)
  jax.tree.map(np.testing.assert_array_equal, frozen._replace(status=before.status), before)


@functools.cache
def half_precision():
  """Weights in float16, one episode's fixed part and state, and its compiled steps."""
  adaptation, params, _, episodes, _ = setup(model__dtype="float16")
  params = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), params)
  prepared, state = jax.jit(adaptation.prepare)(params, row(episodes, 0))
  return params, prepared, state, run_clean(adaptation)


def with_scale(state, scale):
  """The same state at another scale of the loss."""
  scaled = state.opt_state["scaled"]._replace(scale=jnp.float32(scale))
  return state._replace(opt_state=state.opt_state | {"scaled": scaled})


def test_float16_with_loss_scaling_equals_float32():
  params, prepared, start, run = half_precision()
  state = run(params, prepared, with_scale(start, 2.0**10), 0, STEPS)
  assert STATUS[state.status] == "ok"
  assert state.opt_state["scaled"].good == STEPS  # none was skipped
  adaptation, params, _, _, _ = setup()
  expected = run_clean(adaptation)(params, *one_prepared(), 0, STEPS)
  for ours, theirs in zip(state.params["image"][:2], expected.params["image"][:2], strict=True):
    assert ours.dtype == np.float32
    assert np.linalg.norm(ours - theirs) <= HALF_CLOSE * np.linalg.norm(theirs)
  for term in ("vlm", "svl", "ra"):
    value = expected.opt_state[term].value
    np.testing.assert_allclose(state.opt_state[term].value, value, rtol=HALF_CLOSE)


def test_a_float16_step_that_overflows_is_skipped_and_the_episode_goes_on():
  params, prepared, start, run = half_precision()
  after = run(params, prepared, with_scale(start, 2.0**60), 0, 1)
  assert STATUS[after.status] == "ok"
  assert after.opt_state["scaled"].scale == 2.0**59
  jax.tree.map(np.testing.assert_array_equal, after.params, start.params)
  inner = lambda state: state.opt_state["scaled"].inner
  jax.tree.map(np.testing.assert_array_equal, inner(after), inner(start))
  later = run(params, prepared, after, 1, 3)
  assert later.opt_state["scaled"].scale == 2.0**57


def test_a_non_finite_episode_in_float16_is_frozen():
  params, prepared, start, run = half_precision()
  nan = prepared._replace(text=jnp.full_like(prepared.text, jnp.nan))
  frozen = run(params, nan, start, 0, 2)
  assert STATUS[frozen.status] == "non-finite"
  jax.tree.map(np.testing.assert_array_equal, frozen.params, start.params)


def test_the_clean_pass_has_dropout_masks_of_its_own():
  adaptation, params, _, _, _ = setup()
  prepared, state = one_prepared()
  factors = jax.tree.map(lambda leaf: leaf + 0.1, state.params)
  clean_rows = prepared.batch.clean_labels.shape[0]
  rows = setup()[0]._rows(params, prepared, jnp.zeros((), jnp.int32), clean=True)

  def features(adaptation):
    return jax.jit(adaptation._features)(params, prepared, factors, rows, jax.random.key(0))

  found = features(adaptation)
  assert not np.allclose(found.image[:clean_rows], found.clean)
  undropped = Lora(dataclasses.replace(adaptation.parameterization.config, dropout=0.0))
  found = features(dataclasses.replace(adaptation, parameterization=undropped))
  np.testing.assert_allclose(found.image[:clean_rows], found.clean, atol=1e-5)


def test_batches_cover_every_view_once_an_epoch_in_a_new_order():
  adaptation = dataclasses.replace(setup()[0], batch_size=3)
  prepared, _ = one_prepared()
  draw = jax.jit(functools.partial(adaptation._rows, None, clean=False))
  rows = [draw(prepared, step) for step in range(6)]  # 9 views: 3 steps an epoch
  epochs = [np.concatenate([step.tokens for step in rows[i : i + 3]]) for i in (0, 3)]
  order = lambda tokens: np.lexsort(tokens.reshape(len(tokens), -1).T)
  everything = np.asarray(prepared.tokens)
  for epoch in epochs:
    np.testing.assert_array_equal(epoch[order(epoch)], everything[order(everything)])
  assert not np.array_equal(*epochs)
  labels = np.asarray(prepared.batch.labels)
  for tokens, _, batch in rows:
    for token, label in zip(np.asarray(tokens), batch.labels, strict=True):
      found = (everything == token).all((1, 2))
      assert (labels[found] == label).all()


BOTH = {"lora__encoder": "both", "lora__position": "half-up"}


def test_a_tuned_text_encoder_moves_the_texts():
  """Beside the image encoder; test_twins has it alone."""
  adaptation, params, _, _, _ = setup(**BOTH)
  found = reference(**BOTH)
  assert sorted(found.state.params) == ["image", "text"]
  assert abs(found.state.params["text"].b).max() > 0
  prepared = row(found.prepared, 0)
  text = jax.jit(lambda factors: adaptation._text(params, prepared, factors, None))
  before, moved = (text(row(state.params, 0)) for state in (found.start, found.state))
  assert not np.allclose(before, moved)


def test_weights_split_between_devices_take_the_same_steps():
  """Two copies of the weights, each between four devices, as PE-Core's G14 may need them."""
  expected = reference(**BOTH)
  adaptation, params, _, _, _ = setup(**BOTH)
  split = batching.replicate(adaptation.needed(params, 4), batching.task_mesh(shards=4))
  kernel = split["image"]["blocks"]["mlp"]["fc1"]["kernel"].array
  assert kernel.addressable_shards[0].data.size == kernel.size // 4
  _, _, state, evaluation = adapt_batch(8, 4, **BOTH)
  assert_close(only_variant(state.params), expected.state.params)
  assert_close(only_variant(evaluation.cosines), expected.evaluation.cosines)


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


@pytest.mark.parametrize("size", [1, 4, 5, 9, None])  # 9 rows: those of 4 and 5 are filled up
def test_rows_in_chunks_have_the_values_and_gradients_of_the_whole(size):
  rows = jax.random.normal(jax.random.key(0), (9, 4))
  keys = jax.random.normal(jax.random.key(1), (9, 2))
  kernel = jax.random.normal(jax.random.key(2), (4, 2))

  def encode(kernel, size):
    return in_chunks(lambda x, k: jnp.tanh(x @ kernel) * k, size, rows, keys)

  @functools.partial(jax.jit, static_argnums=1)
  def value_and_gradient(kernel, size):
    out, pull = jax.vjp(lambda kernel: encode(kernel, size), kernel)
    return out, pull(jnp.arange(18.0).reshape(9, 2))

  np.testing.assert_allclose(encode(kernel, None), jnp.tanh(rows @ kernel) * keys, rtol=1e-6)
  for ours, theirs in zip(
    jax.tree.leaves(value_and_gradient(kernel, size)),
    jax.tree.leaves(value_and_gradient(kernel, None)),
    strict=True,
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_rows_in_chunks_take_the_same_steps_with_less_memory():
  adaptation, params, _, _, _ = setup()
  prepared, state = one_prepared()
  compiled = lambda adapt: run_clean(adapt).lower(params, prepared, state, 0, 3).compile()
  whole, parts = map(compiled, (adaptation, dataclasses.replace(adaptation, chunk=5)))
  steps = [program(params, prepared, state, 0, 3).params for program in (parts, whole)]
  assert_close(*steps)
  memory = lambda program: program.memory_analysis().temp_size_in_bytes
  assert memory(parts) < memory(whole)


def test_bfloat16_follows_float32():
  adaptation, params, _, episodes, _ = setup()
  half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
  prepared, state = jax.jit(adaptation.prepare)(half, row(episodes, 0))
  assert prepared.tokens.dtype == jnp.bfloat16
  run = run_clean(adaptation)
  state = run(half, prepared, state, 0, 2)
  assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.float32)}
  exact = run(params, *one_prepared(), 0, 2)
  for ours, theirs in zip(
    chain.term_states(state.opt_state).values(),
    chain.term_states(exact.opt_state).values(),
    strict=True,
  ):
    np.testing.assert_allclose(ours.value, theirs.value, rtol=0.1, atol=0.05)
