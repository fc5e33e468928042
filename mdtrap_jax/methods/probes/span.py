"""A probe in the coordinates of the rows that it is made of, of which a few-shot task has few.

Whatever is a function of inner products alone (gradient descent with momentum, L-BFGS and closed
forms from a start within the span; not Adam, which looks at coordinates) never leaves the span of
its rows. There exactly the same costs a twentieth: 5-way 5-shot is 25 rows, not 512 features.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mdtrap_jax.methods.probe import Probe, Support, Training


def within_span(probe: Probe) -> Probe:
  """The same probe, of parameters `[C, r + 1]` in place of `[C, D]`.

  `r` rows span the task: support, texts and, where they are seen, queries. The last coordinate is
  the length of what a query has beyond them, so that its norm stays what it was; nothing that the
  probe is made of has any. A task with as many rows as features is left as it is.
  """

  def memory(support):
    basis = _basis(support)
    kept = {} if basis is None else {"basis": basis}
    return {**probe.memory(_reduced(support, kept)), **kept}

  def init(support):
    basis = _basis(support)
    return probe.init(_reduced(support, {} if basis is None else {"basis": basis}))

  logits = lambda params, memory, rows: probe.logits(params, memory, coordinates(memory, rows))
  train = Training(
    lambda params, memory, support: probe.train.init(params, memory, _reduced(support, memory)),
    lambda params, state, memory, support, t: probe.train.step(
      params, state, memory, _reduced(support, memory), t
    ),
  )
  return Probe(init, logits, memory, train)


def coordinates(memory, rows: jax.Array) -> jax.Array:
  """`[n, r + 1]` of rows `[n, D]`; the rows themselves where there is no basis."""
  if "basis" not in memory:
    return rows
  inside = rows @ memory["basis"].T
  beyond = (rows**2).sum(1) - (inside**2).sum(1)
  # What rounding leaves of a row within the span is none.
  beyond = jnp.where(beyond > 1e-6 * (rows**2).sum(1), beyond, 0)
  return jnp.concatenate([inside, jnp.sqrt(beyond)[:, None]], axis=1)


def _basis(support: Support) -> jax.Array | None:
  """Orthonormal rows `[r, D]` whose span holds all that a probe sees."""
  seen = [r for r in (support.features, support.text, support.query) if r is not None]
  rows = jnp.concatenate(seen)
  if len(rows) + 1 >= rows.shape[1]:
    return None
  return jnp.linalg.qr(rows.T)[0].T


def _reduced(support: Support, memory) -> Support:
  part = lambda rows: None if rows is None else coordinates(memory, rows)
  return support._replace(
    features=part(support.features), text=part(support.text), query=part(support.query)
  )
