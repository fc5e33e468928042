"""ProLIP: the image encoder's last projection, tuned and held near what it was.

Fahes et al., 2025 (arXiv 2410.05270), eq. 3-4, without a validation set: λ = 1/K, Adam at 1e-5,
300 epochs. Its tasks hold what the encoder gives before the projection.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax

from mdtrap_jax.methods.probe import Probe, cross_entropy, descend
from mdtrap_jax.methods.probes.schedules import cosine
from mdtrap_jax.methods.probes.texts import zero_shot
from mdtrap_jax.methods.settings import Settings

SETTINGS = Settings(300, 1e-5)
EPSILON = 1e-4  # of Adam


def weights(params: Any) -> dict[str, Any]:
  """The projection of a vision-language model's image encoder.

  Raises:
    ValueError: it has none.
  """
  if "projection" not in params["image"]["stem"]:
    raise ValueError(
      "prolip tunes the image encoder's last projection, and this model has none (SigLIP's "
      "embeddings are the encoder's own width); use a CLIP, or taskres, which tunes the texts."
    )
  return params["image"]["stem"]["projection"]


def embed(weights, rows):
  """Embeddings `[Q, D]` of what comes before the projection, `[Q, width]`."""
  return rows @ weights["kernel"].astype(rows.dtype) + (
    weights["bias"].astype(rows.dtype)[None] if "bias" in weights else 0
  )


def probe(settings: Settings) -> Probe:
  """Minimizes `mean_i CE(s · cos(x_i W, t), y_i) + λ ‖W - W₀‖²`; a bias stays as it is."""

  def memory(support):
    bias = {"bias": support.weights["bias"]} if "bias" in support.weights else {}
    return {"text": support.text, **bias}

  def logits(params, memory, rows):
    images = embed({**params, **{k: v for k, v in memory.items() if k == "bias"}}, rows)
    return zero_shot(images, memory["text"], settings.logit_scale)

  def loss(params, memory, support):
    shots = support.counts.sum() / jnp.maximum(support.present.sum(), 1)
    moved = ((params["kernel"] - support.weights["kernel"]) ** 2).sum()
    return cross_entropy(logits(params, memory, support.features), support) + moved / shots

  return Probe(
    init=lambda support: {"kernel": support.weights["kernel"].astype(support.features.dtype)},
    logits=logits,
    memory=memory,
    train=descend(loss, optax.adam(cosine(settings.learning_rate, settings.steps), eps=EPSILON)),
    embed=embed,
  )
