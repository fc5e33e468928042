"""Nearest neighbors by cosine: one, as URL's code compares with (Li et al., ICCV 2021).

More than one vote with the weights `exp(cos/τ)`, τ = 0.07, of Wu et al. (CVPR 2018, section 3.4).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mdtrap_jax.methods.probe import Probe
from mdtrap_jax.methods.settings import Settings
from mdtrap_jax.objectives.losses import unit_or_zero

SETTINGS = Settings(0, neighbors=1)
TEMPERATURE = 0.07
SMOOTHING = 1e-3  # of the votes' shares, so that a class without any has a finite logit


def probe(settings: Settings) -> Probe:
  """Logits are the logarithms of the classes' shares in the votes."""

  def logits(params, memory, rows):
    del params
    similarity = unit_or_zero(rows) @ memory["keys"].T
    real = memory["member"].sum(1) > 0
    similarity = jnp.where(real[None], similarity, -jnp.inf)
    count = min(settings.neighbors, similarity.shape[1])
    nearest, index = jax.lax.top_k(similarity, count)  # of equal ones the first, as argmax has it
    votes = jnp.where(jnp.isfinite(nearest), jnp.exp((nearest - nearest[:, :1]) / TEMPERATURE), 0)
    shares = jnp.einsum("qk,qkc->qc", votes, memory["member"][index]) / votes.sum(1, keepdims=True)
    return jnp.log(shares + SMOOTHING)

  return Probe(lambda support: {}, logits, memory=remember)


def remember(support):
  """The support set as unit-norm keys with their labels."""
  return {"keys": unit_or_zero(support.features), "member": support.member}
