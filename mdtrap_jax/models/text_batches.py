"""The text encoder over many prompts, in batches that any memory holds."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mdtrap_jax.models.vlm import VisionLanguageModel


def encode_texts(
  model: VisionLanguageModel, params: Any, token_ids: np.ndarray, batch_size: int = 256
) -> np.ndarray:
  """Embeddings of any number of texts by the base model, by one compiled program.

  Args:
    model: its text encoder is used.
    params: of the model.
    token_ids: `[n, L]` integers.
    batch_size: rows at once; the last batch is filled up with copies of the last row.

  Returns:
    `[n, D] float32`, not normalized.

  Raises:
    ValueError: `batch_size` is below 1.
  """
  if batch_size < 1:
    raise ValueError(f"{batch_size=}: must be at least 1.")
  ids, count = np.asarray(token_ids, np.int32), len(token_ids)
  size = max(min(batch_size, count), 1)
  embeddings = np.empty((count, model.text.embed_dim), np.float32)
  for start in range(0, count, size):
    rows = np.minimum(np.arange(start, start + size), count - 1)
    batch = np.asarray(_encode(model, params, ids[rows]))
    embeddings[start : start + size] = batch[: count - start]
  return embeddings


@functools.partial(jax.jit, static_argnums=0)
def _encode(model: VisionLanguageModel, params: Any, token_ids: jax.Array) -> jax.Array:
  return model.encode_text(params, token_ids).astype(jnp.float32)
