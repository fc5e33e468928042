"""Fills our parameters from stored arrays, each used exactly once, and the way back."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mdtrap_jax.checkpoints.formats.arrays import Arrays, StoredArray, aligned_empty, nearest
from mdtrap_jax.checkpoints.rules import Arrangement, Shape, Slot, same

_PART = 2**24  # bytes read at once
_SHOWN = 6  # names listed in one message


@functools.lru_cache(maxsize=16)
def parameter_shapes(model: Any) -> dict[str, Shape]:
  """Shapes of a model's parameters by path, without memory for them."""
  tree = jax.eval_shape(model.init, jax.random.key(0))
  return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(tree, sep="/").items()}


def convert(
  arrays: Arrays,
  slots: Sequence[Slot],
  shapes: Mapping[str, Shape],
  *,
  dtype: Any,
  ignored: Iterable[str] = (),
  source: str = "checkpoint",
) -> Any:
  """Our parameters from stored arrays, read one at a time straight into their final place.

  Args:
    arrays: of the checkpoint.
    slots: which array fills what.
    shapes: of all parameters, by path.
    dtype: of the result; scalars stay in at least float32.
    ignored: regular expressions of whole names that a checkpoint may have beside its weights.
    source: for messages.

  Raises:
    ValueError: missing, unknown, misshaped or quantized arrays, all named.
  """
  check(arrays, slots, shapes, ignored, source)
  if np.dtype(dtype) == np.float64 and not jax.config.jax_enable_x64:
    raise ValueError("dtype=float64 needs jax.config.update('jax_enable_x64', True).")
  by_path: dict[str, list[Slot]] = {}
  for slot in slots:
    by_path.setdefault(slot.path, []).append(slot)
  params = {}
  for path, shape in shapes.items():
    buffer = aligned_empty(shape, jnp.promote_types(dtype, jnp.float32) if not shape else dtype)
    for slot in by_path[path]:
      _copy(arrays[slot.name], piece(buffer, slot), slot)
    params[path] = jax.device_put(buffer)  # shares the buffer on a CPU
    del buffer
  return traverse_util.unflatten_dict(params, sep="/")


def export(params: Any, slots: Sequence[Slot], dtype: Any) -> dict[str, np.ndarray]:
  """The way back: stored arrays by name from our parameters."""
  flat = traverse_util.flatten_dict(params, sep="/")
  stored = {}
  for slot in slots:
    view = piece(np.asarray(flat[slot.path]), slot)
    arrangement = slot.arrange(view.shape)
    middle = tuple(arrangement.split[axis] for axis in arrangement.order)
    array = view.reshape(middle).transpose(np.argsort(arrangement.order))
    stored[slot.name] = np.ascontiguousarray(
      array.reshape(arrangement.stored), dtype=dtype
    ).reshape(arrangement.stored)
  return stored


def check(
  arrays: Arrays,
  slots: Sequence[Slot],
  shapes: Mapping[str, Shape],
  ignored: Iterable[str],
  source: str,
) -> None:
  """Raises one `ValueError` that names every array that does not fit."""
  if problems := find_problems(arrays, slots, shapes, ignored):
    raise ValueError(
      f"{source} does not fit the model: "
      + "; ".join(problems)
      + ". Check that the file is complete and unmodified, and that its config file belongs "
      "to it."
    )


def find_problems(
  arrays: Arrays, slots: Sequence[Slot], shapes: Mapping[str, Shape], ignored: Iterable[str]
) -> list[str]:
  """What keeps the arrays from being converted, one sentence a kind; empty if nothing does."""
  expected = {slot.name: expected_shape(slot, shapes).stored for slot in slots}
  unknown = [
    name
    for name in arrays
    if name not in expected and not any(re.fullmatch(p, name) for p in ignored)
  ]
  missing = [name for name in expected if name not in arrays]
  present = [name for name in expected if name in arrays]
  misshaped = [name for name in present if tuple(arrays[name].shape) != expected[name]]
  unfit = [name for name in present if not arrays[name].is_float]
  unfilled = sorted(set(shapes) - {slot.path for slot in slots})
  problems = []
  if unfit:
    dtypes = _listed([f"{name} ({arrays[name].dtype})" for name in unfit])
    problems.append(
      f"not floating-point weights: {dtypes}; quantized checkpoints cannot be fine-tuned, "
      "use the original release"
    )
  if missing:
    lines = []
    for name in missing[:_SHOWN]:
      near = nearest(name, unknown)
      lines.append(f"{name} {list(expected[name])}" + (f" (is {near} it?)" if near else ""))
    problems.append("missing arrays: " + _listed(lines, len(missing)))
  if unknown:
    lines = [f"{name} {list(arrays[name].shape)}" for name in unknown]
    problems.append("unknown arrays: " + _listed(lines))
  if misshaped:
    lines = [
      f"{name} has shape {list(arrays[name].shape)}, expected {list(expected[name])}"
      for name in misshaped
    ]
    problems.append("misshaped arrays: " + _listed(lines))
  if unfilled:
    problems.append("nothing in this layout fills our parameters " + _listed(unfilled))
  return problems


def expected_shape(slot: Slot, shapes: Mapping[str, Shape]) -> Arrangement:
  """How the checkpoint must hold the slot's array, given our parameters' shapes."""
  # A view of nothing: the same indexing as in `_piece`, without memory.
  shape = piece(np.broadcast_to(np.empty((), np.uint8), shapes[slot.path]), slot).shape
  return slot.arrange(shape)


def _copy(stored: StoredArray, view: np.ndarray, slot: Slot) -> None:
  """Fills a piece of a parameter; large tables, which are stored as ours, in parts."""
  arrangement = slot.arrange(view.shape)
  if stored.read_rows is not None and slot.arrange is same:
    rows = max(1, _PART // (stored.dtype.itemsize * math.prod(view.shape[1:])))
    for start in range(0, len(view), rows):
      view[start : start + rows] = stored.read_rows(start, min(start + rows, len(view)))
    return
  array = np.asarray(stored.read())
  view[...] = array.reshape(arrangement.split).transpose(arrangement.order).reshape(view.shape)


def piece(buffer: np.ndarray, slot: Slot) -> np.ndarray:
  """The part of a parameter that a stored array fills, a view."""
  if slot.block is not None:
    buffer = buffer[slot.block]
  if slot.part is None:
    return buffer
  part = slice(*slot.part) if isinstance(slot.part, tuple) else slot.part
  return buffer[..., part, :]


def _listed(lines: Sequence[str], total: int | None = None) -> str:
  more = (len(lines) if total is None else total) - len(lines[:_SHOWN])
  return ", ".join(lines[:_SHOWN]) + (f" and {more} more" if more else "")
