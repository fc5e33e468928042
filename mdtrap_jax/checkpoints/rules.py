"""How the arrays of a published checkpoint map to our parameters, as data.

A table is a list of `Module`s: one layer under its published name and under our path. A dialect
says which arrays a layer of a kind has there and how each is arranged. Together they give one
`Slot` per stored array; `convert.py` reads slots forwards to load and backwards to save.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

Shape = tuple[int, ...]


class Arrangement(NamedTuple):
  """`stored.reshape(split).transpose(order).reshape(ours)`."""

  stored: Shape
  split: Shape
  order: tuple[int, ...]


Arrange = Callable[[Shape], Arrangement]  # from the shape of ours


Part = int | tuple[int, int]  # an index on the axis before the last, or a range of them


class Module(NamedTuple):
  """One layer: its kind, its published name (`{}` for the block's number), our path.

  `part` says which of the packed query, key and value the layer is.
  """

  kind: str
  name: str
  path: str
  part: Part | None = None


class Slot(NamedTuple):
  """One stored array and the piece of a parameter that it fills."""

  name: str
  path: str
  block: int | None
  part: Part | None
  arrange: Arrange


def same(shape: Shape) -> Arrangement:
  """Stored as ours."""
  return Arrangement(shape, shape, tuple(range(len(shape))))


def transposed(shape: Shape) -> Arrangement:
  """Torch's `[out, in]`; ours is `[in, out]`."""
  return Arrangement(shape[::-1], shape[::-1], (1, 0))


def convolution(shape: Shape) -> Arrangement:
  """Torch's `[W, 3, p, p]`; ours is `[p·p·3, W]`."""
  patch = math.isqrt(shape[0] // 3)
  stored = (shape[1], 3, patch, patch)
  return Arrangement(stored, stored, (2, 3, 1, 0))


def flax_convolution(shape: Shape) -> Arrangement:
  """Flax's `[p, p, 3, W]`; ours is `[p·p·3, W]`."""
  patch = math.isqrt(shape[0] // 3)
  return same((patch, patch, 3, shape[1]))


def packed_kernel(shape: Shape) -> Arrangement:
  """Torch's `in_proj_weight [3·W, W]`; ours is `[W, 3, W]`."""
  width, parts, out = shape
  return Arrangement((parts * out, width), (parts, out, width), (2, 0, 1))


def packed_bias(shape: Shape) -> Arrangement:
  """Torch's `in_proj_bias [3·W]`; ours is `[3, W]`."""
  return Arrangement((math.prod(shape),), shape, (0, 1))


def leading(count: int) -> Arrange:
  """Stored with `count` leading axes of length 1."""
  return lambda shape: same((1,) * count + shape)


def split_last(heads: int) -> Arrange:
  """Flax attention's `[..., heads, W/heads]`; ours is `[..., W]`."""
  return lambda shape: same((*shape[:-1], heads, shape[-1] // heads))


def split_first(heads: int) -> Arrange:
  """Flax attention's output kernel `[heads, W/heads, W]`; ours is `[W, W]`."""
  return lambda shape: same((heads, shape[0] // heads, *shape[1:]))


def stacked(arrange: Arrange) -> Arrange:
  """All blocks in one array, stored with a leading axis."""

  def arrange_all(shape: Shape) -> Arrangement:
    one = arrange(shape[1:])
    return Arrangement(
      (shape[0], *one.stored), (shape[0], *one.split), (0, *(axis + 1 for axis in one.order))
    )

  return arrange_all


Dialect = Mapping[str, Iterable[tuple[str, str, Arrange]]]  # (suffix there, ours, arrange)

TORCH: Dialect = {
  "array": (("", "", same),),
  "leading": (("", "", leading(1)),),  # stored with a leading axis of length 1
  "leading2": (("", "", leading(2)),),
  "table": ((".weight", "", same),),
  "norm": ((".weight", "/scale", same), (".bias", "/bias", same)),
  "dense": ((".weight", "/kernel", transposed), (".bias", "/bias", same)),
  "matrix": (("", "/kernel", same),),  # a projection kept as a bare array [in, out]
  "convolution": ((".weight", "/kernel", convolution), (".bias", "/bias", same)),
  "packed": (("_weight", "/kernel", packed_kernel), ("_bias", "/bias", packed_bias)),
  "packed dense": ((".weight", "/kernel", packed_kernel), (".bias", "/bias", packed_bias)),
  # Attention pooling keeps its packed projections in two parameters of its own.
  "packed pool": (("_weight", "_kernel", packed_kernel), ("_bias", "_bias", packed_bias)),
  "packed pool dense": ((".weight", "_kernel", packed_kernel), (".bias", "_bias", packed_bias)),
  "dense pool": ((".weight", "_kernel", transposed), (".bias", "_bias", same)),
}
FLAX: Dialect = {
  "array": (("", "", same),),
  "leading": (("", "", leading(1)),),
  "table": ((".embedding", "", same),),
  "norm": ((".scale", "/scale", same), (".bias", "/bias", same)),
  "dense": ((".kernel", "/kernel", same), (".bias", "/bias", same)),
  "convolution": ((".kernel", "/kernel", flax_convolution), (".bias", "/bias", same)),
}


def slots(table: Iterable[Module], dialect: Dialect, shapes: Mapping[str, Shape]) -> list[Slot]:
  """One slot per array that a checkpoint of this model must have.

  A layer's array that the model has no parameter for (a bias, an absent norm) gives none: if
  the checkpoint has it after all, it will be reported as unused.

  Args:
    table: the layers.
    dialect: what arrays they have.
    shapes: of the model's parameters, by path; of blocks `[depth, ...]`.
  """
  result = []
  for module in table:
    for suffix, our_suffix, arrange in dialect[module.kind]:
      path = module.path + our_suffix
      if path not in shapes:
        continue
      if "{}" in module.name:
        result += [
          Slot(module.name.format(block) + suffix, path, block, module.part, arrange)
          for block in range(shapes[path][0])
        ]
      else:
        whole = stacked(arrange) if "/blocks/" in path else arrange
        result.append(Slot(module.name + suffix, path, None, module.part, whole))
  return result
