"""Frozen weights of which every device holds a part: blocks are put together as they run.

For encoders whose weights would fill a device's memory, such as PE-Core's G14. Episodes still
never communicate; the weights of one block travel before it runs, and again in the backward
pass, and are dropped after it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
from jax.sharding import PartitionSpec

AXIS = "weights"  # of the device mesh: the devices that hold one copy between them


@functools.partial(jax.tree_util.register_dataclass, data_fields=["array"], meta_fields=["axis"])
@dataclasses.dataclass(frozen=True)
class Sharded:
  """A stacked weight `[depth, ...]`; inside of `shard_map`, this device's part of it."""

  array: jax.Array
  axis: int  # that is split, counted from the last, -1


def split(blocks: Any, count: int) -> Any:
  """Marks weights `[depth, ...]` to be split in `count` parts along their longest axis that can.

  Args:
    blocks: a pytree of stacked weights.
    count: of devices that hold one copy; 1 changes nothing.
  """

  def mark(leaf):
    axes = [axis for axis in range(1 - leaf.ndim, 0) if leaf.shape[axis] % count == 0]
    return Sharded(leaf, max(axes, key=lambda axis: leaf.shape[axis])) if axes else leaf

  return blocks if count == 1 else jax.tree.map(mark, blocks)


def whole(weights: Any) -> Any:
  """The weights of one block, gathered from the devices that hold their parts."""
  gather = lambda leaf: jax.lax.all_gather(
    leaf.array, AXIS, axis=leaf.array.ndim + leaf.axis, tiled=True
  )
  return jax.tree.map(
    lambda leaf: gather(leaf) if _is_sharded(leaf) else leaf, weights, is_leaf=_is_sharded
  )


def specs(tree: Any) -> Any:
  """How each leaf, or `Sharded`, of a pytree is laid out over a mesh."""

  def spec(leaf):
    if not _is_sharded(leaf):
      return PartitionSpec()
    return PartitionSpec(*[None] * (leaf.array.ndim + leaf.axis), AXIS)

  return jax.tree.map(spec, tree, is_leaf=_is_sharded)


def is_split(tree: Any) -> bool:
  """Whether any weight of a pytree is."""
  return any(map(_is_sharded, jax.tree.leaves(tree, is_leaf=_is_sharded)))


def _is_sharded(leaf: Any) -> bool:
  return isinstance(leaf, Sharded)
