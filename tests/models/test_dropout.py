"""Dropout of the adapters as blocks draw it: a mask of its own for each block, row and key.

Blocks that add to one token what their adapter makes of it, and nothing else, show their masks.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mdtrap_jax.models.lora import LoraConfig, LoraFactors
from mdtrap_jax.models.transformer import BlockConfig, init_blocks, run_blocks

WIDTH, DEPTH, ROWS, RATE = 64, 2, 2**15, 0.25
BLOCK = BlockConfig(width=WIDTH, heads=1, mlp_width=1)
LORA = LoraConfig(rank=WIDTH, dropout=RATE, projections=("v",))


@functools.cache
def program():
  """`key -> [DEPTH, ROWS, WIDTH]`, what each block adds to the same token in every row."""
  shapes = jax.eval_shape(lambda key: init_blocks(key, BLOCK, DEPTH), jax.random.key(0))
  params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
  params["norm1"]["scale"] += 1
  params["attention"]["out"]["kernel"] += np.eye(WIDTH, dtype=np.float32)
  one = np.tile(np.eye(WIDTH, dtype=np.float32), (DEPTH, 1, 1, 1))
  factors = LoraFactors(one, one / LORA.multiplier)
  x = np.tile(np.linspace(-1, 1, WIDTH, dtype=np.float32), (ROWS, 1, 1))

  def through(key):
    run = functools.partial(run_blocks, params, config=BLOCK, lora=LORA, factors=factors, key=key)
    first = run(x, stop=1)
    return jnp.stack([first - x, run(x) - first])[:, :, 0]

  return jax.jit(through)


@functools.cache
def masks(seed):
  """What is kept, `[DEPTH, ROWS, WIDTH] bool`."""
  return np.abs(program()(jax.random.key(seed))) > 1e-5


def dependence(one, other):
  """By how many standard deviations two masks agree more or less than independent ones."""
  probability = (1 - RATE) ** 2
  deviation = np.sqrt(probability * (1 - probability) / one.size)
  return abs((one & other).mean() - probability) / deviation


def test_each_mask_has_the_rate():
  kept = np.stack([masks(seed) for seed in (0, 1)])
  assert abs(kept.mean() - (1 - RATE)) < 5e-4  # of 8 million: 3 standard deviations
  assert (abs(kept.mean((2, 3)) - (1 - RATE)) < 1e-3).all()


def test_blocks_draw_different_masks():
  assert dependence(masks(0)[0], masks(0)[1]) < 4


def test_rows_draw_different_masks():
  for shift in (1, 2, 4):
    assert dependence(masks(0), np.roll(masks(0), shift, axis=1)) < 4


def test_elements_draw_different_masks():
  for shift in (1, 2, 3, 4, 32):
    assert dependence(masks(0), np.roll(masks(0), shift, axis=2)) < 4


def test_steps_draw_different_masks():
  assert dependence(masks(0), masks(1)) < 4


def test_what_is_kept_makes_up_for_what_is_dropped():
  added = np.asarray(program()(jax.random.key(0)))[0].mean(0)
  x = np.linspace(-1.0, 1.0, WIDTH)
  np.testing.assert_allclose(added, (x - x.mean()) / x.std(), atol=0.03)
