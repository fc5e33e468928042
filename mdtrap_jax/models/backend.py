"""Which form of a computation serves the device it is compiled for: the one place that asks.

What helps two cores may ruin a chip, and the other way round. Where one form does not serve
both, the choice is a function here.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mdtrap_jax.models import cudnn_attention

HALF = (jnp.bfloat16, jnp.float16)
SMALL_BLOCKS = 4  # of a small encoder to a turn of the loop, but on a TPU


def platform() -> str:
  """The platform, such as `cpu` or `tpu`, of the program being traced.

  Inside of `shard_map` that is the mesh's, which need not be one of this machine: programs can
  be compiled for an accelerator that is not there.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def packs_rows(dtype: jnp.dtype) -> bool:
  """Whether blocks see the tokens of all images as rows of one matrix, filled up to whole tiles.

  On a TPU a product of `[30, 197, W]` runs at half the speed of one of `[30 * 200, W]`, and
  queries, keys and values stay beside each other. On a GPU, in half precision, cuBLAS and cuDNN
  want an even number of tokens, and XLA fills and cuts around each of their calls otherwise. A
  CPU has no tiles to fill.
  """
  return platform() == "tpu" or (is_gpu() and dtype in HALF)


def is_gpu() -> bool:
  """Whether the program being traced is for a GPU."""
  return platform() in ("gpu", "cuda")


def attention_form(dtype: jnp.dtype, head_dim: int) -> str:
  """How attention over `[B, S, W]` is computed.

  `cudnn`, one kernel, on a GPU whose cuDNN has it for this type; `library`, by `jax.nn`, whose
  softmax is float32 at most; or `heads`, one after the other, which needs no transposition of
  activations and is three times faster on a CPU, where the library's float16 does not compile.
  """
  if dtype == jnp.float64 or (dtype != jnp.bfloat16 and platform() == "cpu"):
    return "heads"
  fused = is_gpu() and dtype in HALF
  return "cudnn" if fused and cudnn_attention.works(head_dim, jnp.dtype(dtype)) else "library"


def lanes() -> int:
  """What the inner axis of a product should be a multiple of: a TPU's tile; a GPU's 16 bytes."""
  return 8 if is_gpu() else 128


def fuses_norms(dtype: jnp.dtype) -> bool:
  """Whether layer norms of packed rows are a TPU's kernels, as `fused_norm` has them."""
  return dtype == jnp.bfloat16 and not is_gpu()


def blocks_at_once(count: int, large: bool, split: bool) -> int:
  """How many of `count` blocks run in one turn of a loop over them.

  On a TPU all: what the backward pass needs then stays where it is computed, where a loop copies
  it to a stack and back, a sixth of a step. Compiling takes as many times longer. Where weights
  are `split` between devices, one: they are put together block by block. Elsewhere, where that
  gains nothing, one of a `large` encoder.
  """
  if split:
    return 1
  if platform() == "tpu":
    return count
  return 1 if large else min(SMALL_BLOCKS, count)
