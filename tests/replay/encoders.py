"""Replays recorded encoder outputs: Hugging Face CLIP folders, big_vision SigLIP, PE-Core."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from mdtrap_jax import checkpoints
from tests.replay.check import Check

TOLERANCE = 1e-5


def replay(path: str | Path) -> list[Check]:
  """Compares our embeddings with the recorded ones, relative to the largest of them.

  Args:
    path: a folder with `flax_model.msgpack`, `config.json` and `io.npz`, or a `.npz` file of
      big_vision's or PE-Core's arrays beside inputs and outputs.

  Raises:
    ValueError: the file is of no known format.
  """
  path = Path(path)
  if path.is_dir():
    return _clip(path)
  raise ValueError(f"{path}: no encoder recording.")


def _clip(folder: Path) -> list[Check]:
  recorded = np.load(folder / "io.npz")
  model, params = checkpoints.load(folder, tokenize=_no_tokenizer)
  images = jnp.asarray(recorded["image_nchw"].transpose(0, 2, 3, 1))
  ids = jnp.asarray(recorded["token_ids"], jnp.int32)
  return [
      _check("image_embeds", model.encode_image(params, images), recorded["image_embeds"]),
      _check("text_embeds", model.encode_text(params, ids), recorded["text_embeds"])]


def _check(name: str, ours, recorded: np.ndarray) -> Check:
  error = np.abs(np.asarray(ours) - recorded).max() / np.abs(recorded).max()
  return Check(name, float(error), TOLERANCE)


def _no_tokenizer(texts):
  raise AssertionError(f"a recording has token ids, no texts to tokenize: {texts}")
