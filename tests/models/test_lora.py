"""Factored LoRA against merged weights, positions, dropout, and storage with Orbax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mdtrap_jax.models.lora import (
  POSITIONS,
  PROJECTIONS,
  LoraConfig,
  init_factors,
  keep_masks,
  lora_deltas,
)
from mdtrap_jax.models.transformer import BlockConfig, init_blocks, run_blocks

DEPTH, WIDTH = 6, 8
BLOCK = BlockConfig(width=WIDTH, heads=2, mlp_width=16)
BLOCKS = init_blocks(jax.random.key(0), BLOCK, DEPTH)
TOKENS = jax.random.normal(jax.random.key(1), (3, 5, WIDTH))


def random_factors(config, depth=DEPTH):
  factors = init_factors(jax.random.key(2), config, depth, WIDTH)
  return factors._replace(b=0.2 * jax.random.normal(jax.random.key(3), factors.b.shape))


plain = jax.jit(lambda blocks: run_blocks(blocks, TOKENS, BLOCK))


@pytest.mark.parametrize(
  ("position", "projections"),
  [(position, ("q", "v", "out")) for position in ("all", "mid", "top3", (0,), (1, 2, 5))]
  + [((1, 2, 5), projections) for projections in (("q", "k", "v"), ("v",), ("out",))],
)
def test_factored_equals_merged(position, projections):
  config = LoraConfig(rank=2, dropout=0.0, projections=projections, position=position)
  factors = random_factors(config)
  ours = run_blocks(BLOCKS, TOKENS, BLOCK, lora=config, factors=factors)
  attention = BLOCKS["attention"]
  qkv = np.array(attention["qkv"]["kernel"])  # [depth, W, 3, W]
  out = np.array(attention["out"]["kernel"])  # [depth, W, W]
  for i, block in enumerate(config.blocks(DEPTH)):
    for p, name in enumerate(projections):
      kernel = out[block] if name == "out" else qkv[block, :, PROJECTIONS.index(name)]
      kernel += config.multiplier * np.asarray(factors.a[i, p] @ factors.b[i, p])
  merged = BLOCKS | {
    "attention": {
      "qkv": attention["qkv"] | {"kernel": jnp.asarray(qkv)},
      "out": attention["out"] | {"kernel": jnp.asarray(out)},
    }
  }
  np.testing.assert_allclose(ours, plain(merged), rtol=1e-4, atol=1e-4)


def test_fresh_factors_change_nothing_and_have_the_stated_range():
  config = LoraConfig(rank=2, dropout=0.0)
  factors = init_factors(jax.random.key(2), config, DEPTH, WIDTH)
  np.testing.assert_array_equal(
    run_blocks(BLOCKS, TOKENS, BLOCK, lora=config, factors=factors),
    run_blocks(BLOCKS, TOKENS, BLOCK),
  )
  bound = 1 / np.sqrt(WIDTH)
  assert 0.95 * bound < abs(factors.a).max() < bound
  assert not factors.b.any()


@pytest.mark.parametrize(
  ("position", "expected"),
  [
    ("all", range(12)),
    ("bottom", range(4)),
    ("mid", range(4, 8)),
    ("up", range(8, 12)),
    ("half-bottom", range(6)),
    ("half-up", range(6, 12)),
    ("top3", range(9, 12)),
  ],
)
def test_positions_of_a_vit_b(position, expected):
  assert LoraConfig(position=position).blocks(12) == tuple(expected)


@pytest.mark.parametrize("position", sorted(POSITIONS))
def test_factors_exist_for_adapted_blocks_only(position):
  config = LoraConfig(rank=2, position=position, projections=("q", "v"))
  factors = init_factors(jax.random.key(0), config, 12, WIDTH)
  adapted = len(config.blocks(12))
  assert factors.a.shape == (adapted, 2, WIDTH, 2)
  assert factors.b.shape == (adapted, 2, 2, WIDTH)


def test_scale():
  assert LoraConfig(rank=16, alpha=8).multiplier == 2.0  # alpha / sqrt(r), as the reference
  assert LoraConfig(rank=16, alpha=8, scale="linear").multiplier == 0.5


def test_starting_above_the_first_adapted_block_changes_nothing():
  config = LoraConfig(rank=2, dropout=0.25, position=(2, 4))
  factors, key = random_factors(config), jax.random.key(5)
  whole = run_blocks(BLOCKS, TOKENS, BLOCK, lora=config, factors=factors, key=key)
  below = run_blocks(BLOCKS, TOKENS, BLOCK, stop=2)
  rest = run_blocks(BLOCKS, below, BLOCK, start=2, lora=config, factors=factors, key=key)
  np.testing.assert_allclose(whole, rest, atol=1e-6)


@functools.cache
def drawn_masks(rate=0.25):
  """Masks of three projections for rows of 16 keys, `[3, 16, 96, 256]`."""
  keys = jax.random.split(jax.random.key(0), 16)
  draw = jax.jit(lambda keys: jnp.stack(keep_masks(keys, (96, 256), rate, 3)))
  return np.asarray(draw(keys))


def deviations(agreement, probability):
  """How many standard deviations the share of `True` lies from `probability`."""
  return abs(agreement.mean() - probability) / np.sqrt(
    probability * (1 - probability) / agreement.size
  )


@pytest.mark.parametrize("rate", [0.25, 0.1, 0.5, 1 / 3])
def test_dropout_rate(rate):
  masks = drawn_masks(rate)
  for mask in masks:
    assert deviations(mask, 1 - rate) < 4
  assert deviations(masks, 1 - rate) < 4


def test_the_usual_rate_is_exact_over_many_elements():
  keys = jax.random.split(jax.random.key(1), 64)
  kept = jax.jit(lambda keys: [m.mean() for m in keep_masks(keys, (197, 768), 0.25, 3)])(keys)
  np.testing.assert_allclose(kept, 0.75, atol=4e-4)  # of 9.7 million: 3 standard deviations
  assert abs(np.mean(kept) - 0.75) < 2.5e-4


@pytest.mark.parametrize(
  "shift",
  [(1, 0, 0, 0), (2, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 0, 3, 5)]
  + [(0, 0, 0, 2**n) for n in range(1, 8)]
  + [(0, 0, 2**n, 0) for n in range(1, 7)],
)
def test_masks_of_other_projections_rows_and_positions_are_independent(shift):
  masks = drawn_masks()
  moved = np.roll(masks, shift, axis=(0, 1, 2, 3))
  assert deviations(masks & moved, 0.75**2) < 5  # of 22 pairings


def test_neighboring_keys_draw_independent_masks():
  halves = np.stack([np.full(32, 7), np.arange(32)], -1).astype(np.uint32)
  for pairs in (halves, halves[:, ::-1], 2**31 + 4096 * halves):
    keys = jax.random.wrap_key_data(jnp.asarray(pairs))
    masks = np.stack(jax.jit(lambda keys: keep_masks(keys, (32, 128), 0.25, 3))(keys))
    assert deviations(masks[:, 1:] & masks[:, :-1], 0.75**2) < 4
    counts = masks.sum((2, 3))  # a key's rate must vary as a binomial does
    assert 0.7 < counts.var() / (4096 * 0.75 * 0.25) < 1.4


def test_runs_have_the_lengths_of_independent_draws():
  mask = drawn_masks()[1].reshape(-1)
  for flat in (mask, drawn_masks()[1].swapaxes(1, 2).reshape(-1)):
    edges = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff(edges)
    kept = lengths[int(not flat[edges[0]]) :: 2]
    for length in range(1, 8):  # geometric: 1/4 · (3/4)^(length-1)
      assert deviations(kept == length, 0.25 * 0.75 ** (length - 1)) < 5


def test_a_rows_masks_do_not_depend_on_the_batch():
  keys = jax.random.split(jax.random.key(2), 3)
  whole = keep_masks(keys, (5, 8), 0.25, 2)
  alone = keep_masks(keys[1:2], (5, 8), 0.25, 2)
  np.testing.assert_array_equal(np.stack(whole)[:, 1:2], np.stack(alone))


def test_dropout_is_unbiased_and_independent_for_each_projection():
  config = LoraConfig(rank=2, dropout=0.25)
  a, b = (jnp.tile(jnp.eye(*shape)[None], (3, 1, 1)) for shape in ((WIDTH, 2), (2, WIDTH)))
  factors = random_factors(config)._replace(a=a, b=b)
  x = jnp.ones((1, 1, WIDTH))
  deltas = lambda key: jnp.stack(lora_deltas(x, factors, config, key))
  draws = jax.vmap(deltas)(jax.random.split(jax.random.key(0), 4000))[..., 0, 0, :2]
  exact = deltas(None)[:, 0, 0, :2]  # [P, 2]; of the draws [draws, P, 2]
  np.testing.assert_allclose(draws.mean(0), exact, rtol=0.05)
  correlation = np.corrcoef(np.asarray(draws[..., 0]).T)
  assert abs(correlation[np.triu_indices(3, 1)]).max() < 0.08


def test_blocks_draw_different_masks():
  config = LoraConfig(rank=2, dropout=0.5, position=(0, 1))
  same = jax.tree.map(lambda leaf: jnp.stack([leaf[0]] * DEPTH), BLOCKS)
  factors = jax.tree.map(lambda leaf: jnp.stack([leaf[0]] * 2), random_factors(config))
  keys = [jax.random.fold_in(jax.random.key(0), i) for i in range(2)]
  one = run_blocks(same, TOKENS, BLOCK, stop=1, lora=config, factors=factors, key=keys[0])
  other = run_blocks(same, TOKENS, BLOCK, stop=1, lora=config, factors=factors, key=keys[1])
  assert not np.allclose(one, other)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"projections": ("q", "o")}, "lora.projections"),
    ({"projections": ("v", "q")}, "in this order"),
    ({"projections": ()}, "lora.projections"),
    ({"encoder": "image"}, "lora.encoder='image'.*vision"),
    ({"scale": "root"}, "lora.scale"),
    ({"rank": 0}, "lora.rank=0"),
    ({"dropout": 1.0}, "lora.dropout=1.0"),
  ],
)
def test_wrong_settings(settings, message):
  with pytest.raises(ValueError, match=message):
    LoraConfig(**settings)


def test_a_shallow_encoder_has_no_bottom_third():
  with pytest.raises(ValueError, match="lora.position='bottom': an encoder of 2 blocks"):
    LoraConfig(position="bottom").blocks(2)


@pytest.mark.parametrize("position", ["middle", (12,), ()])
def test_wrong_positions(position):
  with pytest.raises(ValueError, match="lora.position"):
    LoraConfig(position=position).blocks(12)


def test_orbax_round_trip(tmp_path):
  factors = {"image": random_factors(LoraConfig(rank=2))}
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "lora", factors)
    checkpointer.wait_until_finished()
    restored = checkpointer.restore(tmp_path / "lora", jax.eval_shape(lambda: factors))
  jax.tree.map(np.testing.assert_array_equal, restored, factors)
  assert jax.tree.structure(restored) == jax.tree.structure(factors)
