"""TaskRes: a residual on the classes' text embeddings, tuned from zero.

Yu et al., CVPR 2023, eq. 4, on the regular base: scale 0.5, Adam at 0.002, 100 epochs for up to
four shots and 200 for more.
"""

from __future__ import annotations

import jax.numpy as jnp
import optax

from mdtrap_jax.methods.probe import Probe, cross_entropy, descend
from mdtrap_jax.methods.probes.schedules import warm_cosine
from mdtrap_jax.methods.probes.texts import zero_shot
from mdtrap_jax.methods.settings import Domain, Settings


def settings_of(domain: Domain) -> Settings:
  """Epochs by the number of shots; the L2 in Adam is the default of their library, Dassl."""
  return Settings(100 if domain.shots <= 4 else 200, 2e-3, 5e-4, alpha=0.5)


def probe(settings: Settings) -> Probe:
  """`s · cos(x, t + α r)`; `t` as the text encoder gives it, of no certain length."""

  def logits(params, memory, rows):
    text = memory["text"] + settings.alpha * params["residual"]
    return zero_shot(rows, text, settings.logit_scale)

  def loss(params, memory, support):
    return cross_entropy(logits(params, memory, support.features), support)

  optimizer = optax.chain(
    optax.add_decayed_weights(settings.l2),
    optax.adam(warm_cosine(settings)),
  )
  return Probe(
    init=lambda support: {"residual": jnp.zeros_like(support.text)},
    logits=logits,
    memory=lambda support: {"text": support.text},
    train=descend(loss, optimizer),
  )
