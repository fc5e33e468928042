"""Nearest class mean by Mahalanobis distance, each class with a regularized covariance of its own.

Simple CNAPS (Bateni et al., CVPR 2020, eq. 2-4), as URL compares with it ("SCM"), on features as
they are. The code's covariance of a single image is no covariance (it adds one number everywhere);
here it is zero.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mdtrap_jax.methods import ncc
from mdtrap_jax.methods.probe import Probe, Support
from mdtrap_jax.methods.settings import Settings

SETTINGS = Settings(0, l2=1.0)


def probe(settings: Settings) -> Probe:
  """`-(x - μ_k)ᵀ Q_k⁻¹ (x - μ_k)`, `Q_k = λ_k Σ_k + (1 - λ_k) Σ + β I`, `λ_k = n_k / (n_k + 1)`.

  All covariances are `Fᵀ S F` of the `N` support rows `F`, so that
  `Q_k⁻¹ = (I - Fᵀ A_k F) / β` with `A_k = (β I + S_k F Fᵀ)⁻¹ S_k [N, N]`: with fewer rows than
  features that is what is kept, else `Q_k⁻¹ [D, D]`.
  """
  beta = settings.l2

  def memory(support):
    rows, width = support.features.shape
    features = support.features
    means = ncc.prototypes(features, support.labels, support.member.shape[1])
    if rows < width:
      spread = _spreads(support)
      inner = beta * jnp.eye(rows)[None] + spread @ (features @ features.T)[None]
      return {"means": means, "rows": features, "inner": jnp.linalg.solve(inner, spread)}
    return {"means": means, "precision": _precisions(support, beta)}

  def logits(params, memory, rows):
    del params
    means = memory["means"]
    if "precision" in memory:
      away = rows[None] - means[:, None]  # [C, Q, D]
      return -jnp.einsum("cqd,cde,cqe->qc", away, memory["precision"], away)
    plain = -ncc.similarities(rows, means, "l2")
    inner = rows @ memory["rows"].T, means @ memory["rows"].T
    away = inner[0][None] - inner[1][:, None]  # [C, Q, N]
    return -(plain - ((away @ memory["inner"]) * away).sum(-1).T) / beta

  return Probe(lambda support: {}, logits, memory=memory)


def _precisions(support: Support, beta: float) -> jax.Array:
  """`Q_k⁻¹ [C, D, D]`, a class at a time: each looks at all rows."""
  features, present = support.features, support.member.sum(1)

  def covariance(own):  # [N], 1 for a row that counts
    count = own.sum()
    away = own[:, None] * (features - (own @ features / jnp.maximum(count, 1))[None])
    return away.T @ away / jnp.maximum(count - 1, 1)

  whole, beyond = covariance(present), beta * jnp.eye(features.shape[1], dtype=features.dtype)

  def precision(own):
    share = own.sum() / (own.sum() + 1)
    return jnp.linalg.inv(share * covariance(own) + (1 - share) * whole + beyond)

  return jax.lax.map(precision, support.member.T)


def _spreads(support: Support):
  """`S_k [C, N, N]`, with which the support rows give `λ_k Σ_k + (1 - λ_k) Σ`."""
  dtype = support.features.dtype

  def centered(own):  # [C, N], 1 for a row that counts: S of those rows minus their mean
    count = own.sum(1)[:, None, None]
    diagonal = own[:, :, None] * jnp.eye(own.shape[1], dtype=dtype)[None]
    spread = diagonal - own[:, :, None] * own[:, None] / jnp.maximum(count, 1)
    return spread / jnp.maximum(count - 1, 1)

  whole = centered(support.member.sum(1)[None])
  share = (support.counts / (support.counts + 1))[:, None, None]
  return share * centered(support.member.T) + (1 - share) * whole
