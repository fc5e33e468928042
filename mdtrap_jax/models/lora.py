"""Low-rank adapters (LoRA) on the projections of a block, always factored.

A layer computes `x W + s (dropout(x) A) B`; the sum `W + s A B` is never formed, because inside
a `vmap` over episodes it would cost one copy of the base weights per episode.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from mdtrap_jax.keys import row_keys
from mdtrap_jax.models.masks import keep_masks

PROJECTIONS = ("q", "k", "v", "out", "fc1", "fc2")  # of attention, and of the MLP
STARTS = ("zero", "pissa")
ENCODERS = {"vision": ("image",), "text": ("text",), "both": ("image", "text")}
SCALES = {"sqrt": math.sqrt, "linear": float}
POSITIONS = {
  "all": lambda depth: range(depth),
  "bottom": lambda depth: range(depth // 3),
  "mid": lambda depth: range(depth // 3, 2 * depth // 3),
  "up": lambda depth: range(2 * depth // 3, depth),
  "half-bottom": lambda depth: range(depth // 2),
  "half-up": lambda depth: range(depth // 2, depth),
  "top3": lambda depth: range(max(depth - 3, 0), depth),
}


class LoraFactors(NamedTuple):
  """The trainable factors of one encoder: `A` adapted blocks, `P` projections, rank `r`.

  Those of the MLP have other widths and are factors of their own, with `P = 1`. What is not
  adapted is `None`.
  """

  # Of attention: [A, P, d_in, r] float32, U(-1/sqrt(d_in), 1/sqrt(d_in)) at the start
  a: jax.Array | None
  b: jax.Array | None  # [A, P, r, d_out] float32, zero at the start
  magnitude: jax.Array | None = None  # [A, P, d_out] float32, DoRA's m, at the start those of W
  fc1: LoraFactors | None = None
  fc2: LoraFactors | None = None

  def rows(self, part: slice) -> LoraFactors:
    """One block's factors of some of its projections of attention."""
    return LoraFactors(*(None if leaf is None else leaf[part] for leaf in self[:3]))

  def of(self, projection: str, config: LoraConfig) -> tuple[LoraFactors, int]:
    """Whose factors one projection's are, and which of their `P`."""
    if projection in ("fc1", "fc2"):
      return getattr(self, projection), 0
    return self, config.attention.index(projection)


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """What is adapted and how; every field is static.

  Attributes:
    rank: `r`.
    alpha: the scale is `alpha / sqrt(r)` (the reference) or `alpha / r` (`scale="linear"`).
    dropout: probability of dropping an element of the adapter's input, drawn independently
      for each projection.
    projections: any of `q`, `k`, `v`, `out` and the MLP's `fc1` and `fc2`, in this order.
    encoder: `vision`, `text` or `both`.
    position: which blocks; a name of `POSITIONS` or explicit block numbers.
    scale: `sqrt` (rank-stabilized, rsLoRA) or `linear`.
    dora: whether the columns' lengths are learned too.
    start: `zero`, or `pissa`: at the base weights' largest singular values.
  """

  rank: int = 16
  alpha: float = 8.0
  dropout: float = 0.25
  projections: tuple[str, ...] = ("q", "k", "v")
  encoder: str = "vision"
  position: str | tuple[int, ...] = "all"
  scale: str = "sqrt"
  dora: bool = False
  start: str = "zero"

  def __post_init__(self):
    if not self.projections or self.projections != tuple(
      name for name in PROJECTIONS if name in self.projections
    ):
      raise ValueError(
        f"lora.projections={self.projections!r}: choose any of {PROJECTIONS}, in this order."
      )
    for field, choices in (("encoder", ENCODERS), ("scale", SCALES), ("start", STARTS)):
      if (value := getattr(self, field)) not in choices:
        raise ValueError(f"lora.{field}={value!r}: choose one of {sorted(choices)}.")
    if self.rank < 1:
      raise ValueError(f"lora.rank={self.rank}: the rank must be at least 1.")
    if not 0.0 <= self.dropout < 1.0:
      raise ValueError(f"lora.dropout={self.dropout}: the probability must lie in [0, 1).")
    if self.start == "pissa" and self.multiplier <= 0:
      raise ValueError(f"lora.alpha={self.alpha}: lora.start=pissa needs a scale above 0.")

  @property
  def multiplier(self) -> float:
    """The factor `s` on the adapter's output."""
    return self.alpha / SCALES[self.scale](self.rank)

  @property
  def attention(self) -> tuple[str, ...]:
    """The adapted projections of attention."""
    return tuple(name for name in self.projections if not name.startswith("fc"))

  @property
  def encoders(self) -> tuple[str, ...]:
    """The adapted encoders, of `image` and `text`."""
    return ENCODERS[self.encoder]

  def blocks(self, depth: int) -> tuple[int, ...]:
    """The adapted blocks of an encoder of `depth` blocks; see `blocks_at`."""
    return blocks_at(self.position, depth, "lora")


def blocks_at(position: str | tuple[int, ...], depth: int, section: str) -> tuple[int, ...]:
  """Some blocks of an encoder of `depth` blocks, ascending.

  Args:
    position: a name of `POSITIONS` or numbers.
    depth: of the encoder.
    section: of the config, for messages.

  Raises:
    ValueError: a name that is not in `POSITIONS`, or a block that does not exist.
  """
  if isinstance(position, str):
    if position not in POSITIONS:
      raise ValueError(
        f"{section}.position={position!r}: choose one of {sorted(POSITIONS)}, "
        "or give block numbers."
      )
    if not (blocks := tuple(POSITIONS[position](depth))):
      raise ValueError(
        f"{section}.position={position!r}: an encoder of {depth} blocks has "
        "none there; use 'all' or block numbers."
      )
    return blocks
  outside = [block for block in position if not 0 <= block < depth]
  if outside or not position:
    raise ValueError(f"{section}.position={position!r}: the encoder's blocks are 0 to {depth - 1}.")
  return tuple(sorted(set(position)))


def init_factors(
  key: jax.Array, config: LoraConfig, depth: int, width: int, mlp_width: int | None = None
) -> LoraFactors:
  """Fresh factors for one encoder; the adapted model starts equal to the base model.

  Args:
    key: typed key; consumed.
    config: what is adapted; its start is here always `zero`, and there are no magnitudes.
    depth: blocks of the encoder.
    width: `d_in = d_out` of its projections of attention.
    mlp_width: of the MLP's hidden layer, where that is adapted.
  """
  adapted = len(config.blocks(depth))

  def pair(key, count, d_in, d_out):
    bound = 1.0 / math.sqrt(d_in)
    shape = (adapted, count, d_in, config.rank)
    a = jax.random.uniform(key, shape, minval=-bound, maxval=bound)
    return LoraFactors(a=a, b=jnp.zeros((adapted, count, config.rank, d_out)))

  count = len(config.attention)
  factors = pair(key, count, width, width) if count else LoraFactors(None, None)
  sizes = {"fc1": (width, mlp_width), "fc2": (mlp_width, width)}
  mlp = {
    name: pair(jax.random.fold_in(key, PROJECTIONS.index(name)), 1, *sizes[name])
    for name in sizes
    if name in config.projections
  }
  return factors._replace(**mlp)


def lora_deltas(
  x: jax.Array, factors: LoraFactors, config: LoraConfig, key: jax.Array | None
) -> list[jax.Array]:
  """`s · (dropout(x) A) B` of one block, for several of its projections.

  Args:
    x: `[B, S, d_in]`, the input of the projections.
    factors: one block's factors, `a [P, d_in, r]` and `b [P, r, d_out]`, with relative
      magnitudes `[P, d_out]` or without.
    config: rank scale, dropout rate.
    key: typed key for the dropout masks, or one for each row, `[B]`; consumed. `None` switches
      dropout off.

  Returns:
    `P` arrays `[B, S, d_out]` in the dtype of `x`.
  """
  lows, b = _low_rank(x, factors, config, key)
  if factors.magnitude is not None:
    b = b * factors.magnitude[:, None].astype(b.dtype)
  return [low @ b[p] for p, low in enumerate(lows)]


def side_by_side(
  factors: LoraFactors,
  config: LoraConfig,
  dtype: jnp.dtype,
  columns: Sequence[int],
  count: int,
  lanes: int,
) -> tuple[jax.Array, jax.Array]:
  """Factors with zeros around: `sum_p (x_p a[p]) b` is what all projections give, side by side.

  Args:
    factors: one block's factors.
    config: rank scale.
    dtype: of the result.
    columns: of the result's `count` parts, which belongs to each of the `P` projections; the
      others are 0.
    count: of parts.
    lanes: of which `L` is a multiple.

  Returns:
    `[P, d_in, L]` and `[L, count · d_out]`; the last of the `L` is free.
  """
  a, b = factors.a, config.multiplier * factors.b
  (projections, _, rank), low = a.shape, -(-(len(a) * a.shape[2] + 1) // lanes) * lanes
  place = lambda p: (p * rank, low - (p + 1) * rank)
  a = jnp.stack([jnp.pad(a[p], ((0, 0), place(p))) for p in range(projections)])
  rows = []
  for p, column in enumerate(columns):
    around = (column * b.shape[2], (count - column - 1) * b.shape[2])
    rows.append(jnp.pad(b[p], ((0, 0), around)))
  b = jnp.pad(jnp.concatenate(rows), ((0, low - projections * rank), (0, 0)))
  return a.astype(dtype), b.astype(dtype)


@jax.custom_vjp
def joined_product(joined: jax.Array, kernel: jax.Array, b: jax.Array) -> jax.Array:
  """`joined @ [kernel; b]`, so that no sum is ever read and written again.

  Where rows are packed; on a TPU that halves the time of the projections. An episode has a copy
  of the kernel meanwhile, of one block: an eighth of what its activations take there.

  Args:
    joined: `[R, W + L]`.
    kernel: `[W, n]`; its gradient costs nothing where it is not asked for.
    b: `[L, n]`.

  Returns:
    `[R, n]`.
  """
  return joined @ jnp.concatenate([kernel, b])


def _joined_forward(joined, kernel, b):
  return joined_product(joined, kernel, b), (joined, kernel, b)


def _joined_backward(residuals, cotangent):
  joined, kernel, b = residuals
  back = cotangent @ jnp.concatenate([kernel, b]).T
  x, low = joined[:, : len(kernel)], joined[:, len(kernel) :]
  return back, x.T @ cotangent, low.T @ cotangent


joined_product.defvjp(_joined_forward, _joined_backward)


def _low_rank(x, factors, config, key):
  """`dropout(x) A` of each projection, `[B, S, r]`, and the scaled `B [P, r, d_out]`."""
  count, scale = factors.a.shape[0], config.multiplier
  dropped = [x] * count
  if key is not None and config.dropout > 0:
    keys = key if key.ndim else row_keys(key, x.shape[0])
    masks = keep_masks(keys, x.shape[1:], config.dropout, count)
    dropped = [jnp.where(keep, x, jnp.zeros((), x.dtype)) for keep in masks]
    scale /= 1.0 - config.dropout  # of what was kept; on `b`, which is smaller than `x`
  a, b = factors.a.astype(x.dtype), (scale * factors.b).astype(x.dtype)
  return [checkpoint_name(dropped[p] @ a[p], "low") for p in range(count)], b
