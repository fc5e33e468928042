"""Factored LoRA against merged weights, positions, dropout, and storage with Orbax."""

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
  keep_mask,
  lora_delta,
)
from mdtrap_jax.models.transformer import BlockConfig, init_blocks, run_blocks

DEPTH, WIDTH = 6, 8
BLOCK = BlockConfig(width=WIDTH, heads=2, mlp_width=16)
BLOCKS = init_blocks(jax.random.key(0), BLOCK, DEPTH)
TOKENS = jax.random.normal(jax.random.key(1), (3, 5, WIDTH))


def random_factors(config, depth=DEPTH):
  factors = init_factors(jax.random.key(2), config, depth, WIDTH)
  return factors._replace(b=0.2 * jax.random.normal(jax.random.key(3), factors.b.shape))


@pytest.mark.parametrize("position", ["all", "mid", "top3", (0,), (1, 2, 5)])
@pytest.mark.parametrize("projections", [("q", "k", "v"), ("v",), ("q", "v", "out"), ("out",)])
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
  np.testing.assert_allclose(ours, run_blocks(merged, TOKENS, BLOCK), rtol=1e-4, atol=1e-4)


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


@pytest.mark.parametrize("rate", [0.25, 0.1, 0.5])
def test_dropout_rate(rate):
  kept = keep_mask(jax.random.key(0), (200, 1000), rate).mean()
  assert abs(kept - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / 200_000)


def test_dropout_is_unbiased_and_independent_for_each_projection():
  config = LoraConfig(rank=2, dropout=0.25)
  a, b = (jnp.tile(jnp.eye(*shape)[None], (3, 1, 1)) for shape in ((WIDTH, 2), (2, WIDTH)))
  factors = random_factors(config)._replace(a=a, b=b)
  x = jnp.ones((1, 1, WIDTH))
  draws = jax.vmap(lambda key: lora_delta(x, factors, config, key))(
    jax.random.split(jax.random.key(0), 4000)
  )[..., 0, 0, :2]  # [draws, P, 2]
  exact = lora_delta(x, factors, config, None)[:, 0, 0, :2]
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
