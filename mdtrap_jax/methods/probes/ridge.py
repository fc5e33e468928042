"""Linear probe in closed form: ridge regression of one-hot labels.

As R2-D2 solves it for every task (Bertinetto et al., ICLR 2019, eq. 4-5), on unit-norm features and
without bias. The weight 1 is our choice for such features: their code starts from 50 on features as
they are, divided by √N, and a network is meta-learned with it.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve

from mdtrap_jax.methods.probe import Probe
from mdtrap_jax.methods.settings import Settings
from mdtrap_jax.objectives.losses import unit_or_zero

SETTINGS = Settings(0, l2=1.0)


def probe(settings: Settings) -> Probe:
  """`W = Xᵀ (X Xᵀ + λ I)⁻¹ Y`, or `(Xᵀ X + λ I)⁻¹ Xᵀ Y` where there are more rows than features."""

  solve = lambda matrix, right: cho_solve(cho_factor(matrix, lower=True), right)

  def init(support):
    x, y = unit_or_zero(support.features), support.member
    rows, width = x.shape
    if rows <= width:
      return {"weight": x.T @ solve(x @ x.T + settings.l2 * jnp.eye(rows), y)}
    return {"weight": solve(x.T @ x + settings.l2 * jnp.eye(width), x.T @ y)}

  logits = lambda params, memory, rows: unit_or_zero(rows) @ params["weight"]
  return Probe(init, logits)
