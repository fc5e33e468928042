"""LaplacianShot: nearest prototypes, and neighboring queries agree. Transductive, closed in form.

Ziko et al., ICML 2020, eq. 1-8, with the defaults of their code: λ = 0.5, two neighbors of each
query (their `knn` of three counts the query itself), 20 bound updates. Features are of unit norm
("L2N"; the mean over a base data set, which CL2N subtracts, is not known here); prototypes are not
rectified.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mdtrap_jax.methods import ncc
from mdtrap_jax.methods.probe import Probe
from mdtrap_jax.methods.settings import Settings
from mdtrap_jax.objectives.losses import unit_or_zero

SETTINGS = Settings(0, alpha=0.5, neighbors=2)
UPDATES = 20


def probe(settings: Settings) -> Probe:
  """Iterates `Y = softmax(-‖x - m‖² + λ W Y)` over all queries; gives the last sum."""

  def memory(support):
    means = ncc.prototypes(unit_or_zero(support.features), support.labels, support.member.shape[1])
    return {"means": means, "present": support.present, "is_query": support.is_query}

  def logits(params, memory, rows):
    del params
    x, is_query = unit_or_zero(rows), memory["is_query"]
    unary = ncc.similarities(x, memory["means"], "l2")
    unary = jnp.where(memory["present"][None], unary, -jnp.inf)
    near = _affinity(x, is_query, settings.neighbors)

    def update(_, found):
      return unary + settings.alpha * near @ jax.nn.softmax(found)

    return jax.lax.fori_loop(0, UPDATES, update, unary)

  return Probe(lambda support: {}, logits, memory=memory)


def _affinity(rows: jax.Array, real: jax.Array, neighbors: int) -> jax.Array:
  """`W [Q, Q]`, 1 where the column is among the nearest of the row; none is its own."""
  count = len(rows)
  others = real[None] & ~jnp.eye(count, dtype=bool)
  similarity = jnp.where(others, rows @ rows.T, -jnp.inf)
  nearest, index = jax.lax.top_k(similarity, min(neighbors, count))
  chosen = jax.nn.one_hot(index, count, dtype=rows.dtype)
  return jnp.where(jnp.isfinite(nearest)[..., None], chosen, 0).sum(1)
