"""Tip-Adapter and Tip-Adapter-F: the support set as a cache that adds to zero-shot logits.

Zhang et al., ECCV 2022, eq. 4-6. Without a validation set to search them on, α = 1 and β = 5.5, the
best of the paper's study on ImageNet (the code starts its search from β = 1 and α = 1.17 there);
"F" tunes the keys by AdamW for 20 epochs, its last ones count.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from mdtrap_jax.methods.probe import Probe, cross_entropy, descend
from mdtrap_jax.methods.probes.schedules import cosine
from mdtrap_jax.methods.probes.texts import zero_shot
from mdtrap_jax.methods.settings import Settings
from mdtrap_jax.objectives.losses import unit_or_zero

SETTINGS = Settings(0, alpha=1.0, beta=5.5)
SETTINGS_F = SETTINGS._replace(steps=20, learning_rate=1e-3)
EPSILON, DECAY = 1e-4, 1e-2  # of AdamW; the decay is torch's default


def _logits(settings: Settings, keys: jax.Array, memory, rows: jax.Array) -> jax.Array:
  affinity = unit_or_zero(rows) @ keys.T  # [Q, N]; tuned keys are not normalized again
  cache = jnp.exp(-settings.beta * (1 - affinity)) @ memory["member"]
  return zero_shot(rows, memory["text"], settings.logit_scale) + settings.alpha * cache


def probe(settings: Settings) -> Probe:
  """`s · cos(x, t) + α exp(-β (1 - x Kᵀ)) Y`, the keys `K` the unit-norm support features."""
  memory = lambda support: {
    "text": support.text,
    "member": support.member,
    "keys": unit_or_zero(support.features),
  }
  logits = lambda params, memory, rows: _logits(settings, memory["keys"], memory, rows)
  return Probe(lambda support: {}, logits, memory=memory)


def tuned(settings: Settings) -> Probe:
  """The same with keys that are trained."""
  logits = lambda params, memory, rows: _logits(settings, params["keys"], memory, rows)
  loss = lambda params, memory, support: cross_entropy(
    logits(params, memory, support.features), support
  )
  schedule = cosine(settings.learning_rate, settings.steps)
  return Probe(
    init=lambda support: {"keys": unit_or_zero(support.features)},
    logits=logits,
    memory=lambda support: {"text": support.text, "member": support.member},
    train=descend(loss, optax.adamw(schedule, eps=EPSILON, weight_decay=DECAY)),
  )
