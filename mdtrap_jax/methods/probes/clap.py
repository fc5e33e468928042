"""CLAP: class prototypes tuned from the texts and held near them, each class as it deserves.

Silva-Rodríguez et al., CVPR 2024, eq. 4-8 with the constant multipliers of their code's runs
(constraint "l2"): no validation set is used there. SGD at 0.1, 300 epochs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from mdtrap_jax.methods.probe import Probe, cross_entropy, descend, mask_absent
from mdtrap_jax.methods.probes.schedules import warm_cosine
from mdtrap_jax.methods.probes.span import within_span
from mdtrap_jax.methods.probes.texts import zero_shot
from mdtrap_jax.methods.settings import Settings

SETTINGS = Settings(300, 0.1)
MOMENTUM = 0.9


def probe(settings: Settings) -> Probe:
  """Minimizes `mean_i CE(s · cos(x_i, w), y_i) + mean_k λ_k ‖w_k - t_k‖²`.

  `λ_k` is the mean probability that zero-shot gives to class `k` on its own support images.
  """
  logits = lambda params, memory, rows: zero_shot(rows, params["prototypes"], settings.logit_scale)

  def multipliers(support):
    found = zero_shot(support.features, support.text, settings.logit_scale)
    chances = jax.nn.softmax(mask_absent(found, support))
    return (support.member * chances).sum(0) / jnp.maximum(support.counts, 1)

  def loss(params, memory, support):
    moved = ((params["prototypes"] - support.text) ** 2).sum(-1)
    # Absent classes have the multiplier 0.
    held = (memory["multipliers"] * moved).sum() / jnp.maximum(support.present.sum(), 1)
    return cross_entropy(logits(params, memory, support.features), support) + held

  optimizer = optax.sgd(warm_cosine(settings), MOMENTUM)
  return within_span(
    Probe(
      init=lambda support: {"prototypes": support.text},
      logits=logits,
      memory=lambda support: {"multipliers": multipliers(support)},
      train=descend(loss, optimizer),
    )
  )
