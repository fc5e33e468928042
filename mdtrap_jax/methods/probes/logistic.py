"""Linear probe by logistic regression on unit-norm features, fitted with L-BFGS.

Tian et al., "Rethinking few-shot image classification: a good embedding is all you need?" (ECCV
2020): scikit-learn's multinomial LogisticRegression with C = 1, which they do not tune. They fit it
on five augmented copies of each image, which weigh against the penalty as C = 5 does on one.
"""

from __future__ import annotations

import jax.numpy as jnp
import optax

from mdtrap_jax.methods.probe import Probe, cross_entropy, descend
from mdtrap_jax.methods.probes.span import within_span
from mdtrap_jax.methods.settings import Settings
from mdtrap_jax.objectives.losses import unit_or_zero

BACKTRACKS = 6  # halvings of a step
SETTINGS = Settings(50, l2=1.0)  # theirs stops by itself, before 1000; fifty reach float32's end


def probe(settings: Settings) -> Probe:
  """Minimizes `Σ_i CE(x_i Wᵀ + b, y_i) + λ/2 ‖W‖²`, `λ = 1/C`; the bias is free."""

  def init(support):
    ways, width = support.member.shape[1], support.features.shape[1]
    dtype = support.features.dtype
    return {"weight": jnp.zeros((ways, width), dtype), "bias": jnp.zeros(ways, dtype)}

  def logits(params, memory, rows):
    del memory
    return unit_or_zero(rows) @ params["weight"].T + params["bias"][None]

  def loss(params, memory, support):
    penalty = settings.l2 / 2 * (params["weight"] ** 2).sum() / support.size
    return cross_entropy(logits(params, memory, support.features), support) + penalty

  # Backtracking, and not the zoom search that optax has by default: under vmap every task waits for
  # the longest search, and zooming goes on to its limit where float32 has nothing left to find.
  search = optax.scale_by_backtracking_linesearch(BACKTRACKS, decrease_factor=0.5, store_grad=True)
  optimizer = optax.lbfgs(linesearch=search)
  return within_span(Probe(init, logits, train=descend(loss, optimizer)))
