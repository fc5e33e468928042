"""Rows that are encoded a few at a time, to save memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def in_chunks(fn: Callable[..., Any], size: int | None, *rows: jax.Array) -> Any:
  """`fn(*rows)`, arrays of rows from rows `[N, ...]`, evaluated for `size` of them at a time.

  The backward pass evaluates each chunk again instead of keeping what it computed.
  """
  count = len(rows[0])
  if size is None or size >= count:
    return fn(*rows)
  index = jnp.arange(-(-count // size) * size).reshape(-1, size) % count  # the last is filled up
  chunks = jax.tree.map(lambda leaf: leaf[index], rows)
  out = jax.lax.map(lambda chunk: jax.checkpoint(fn)(*chunk), chunks)
  return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count], out)
