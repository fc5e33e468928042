"""TIM: the queries' own predictions made certain and balanced, given the support set. Transductive.

Boudiaf et al., NeurIPS 2020, eq. 1-8, on unit-norm features: by alternating closed forms (ADM, 150
iterations) or by Adam (GD, 1000 iterations at 1e-4). Temperature 15 and the weights 0.1, 1 and 0.1
of support, marginal and conditional entropy are those of their code for both and all data sets.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from mdtrap_jax.methods import ncc
from mdtrap_jax.methods.probe import Probe, Support, Training, descend, mask_absent
from mdtrap_jax.methods.probes.span import within_span
from mdtrap_jax.methods.settings import Settings
from mdtrap_jax.objectives.losses import unit_or_zero

SETTINGS = Settings(150, l2=0.1, alpha=0.1, beta=15.0)  # l2 weighs the support, α certainty
SETTINGS_GD = SETTINGS._replace(steps=1000, learning_rate=1e-4)
TINY = 1e-12  # their logarithms'


def _logits(settings: Settings):
  # -τ/2 ‖x - w_k‖², as a unit-norm x has it.
  return lambda params, memory, rows: (
    settings.beta / 2 * ncc.similarities(unit_or_zero(rows), params["prototypes"], "l2")
  )


def _start(support: Support):
  means = ncc.prototypes(unit_or_zero(support.features), support.labels, support.member.shape[1])
  return {"prototypes": means}


def _chances(logits, params, rows, real, support) -> jax.Array:
  """Probabilities `[n, C]`; zeros for padding and for an absent class."""
  found = jax.nn.softmax(mask_absent(logits(params, {}, rows), support))
  return jnp.where(real[:, None], found, 0)


def descent(settings: Settings) -> Probe:
  """TIM-GD: minimizes `λ CE(support) - H(Ŷ) + α H(Ŷ | X)`."""
  logits = _logits(settings)

  def loss(params, memory, support):
    del memory
    own = _chances(logits, params, support.features, support.labels >= 0, support)
    chances = _chances(logits, params, support.query, support.is_query, support)
    queries = jnp.maximum(support.is_query.sum(), 1)
    supervised = -(support.member * jnp.log(own + TINY)).sum() / support.size
    conditional = -(chances * jnp.log(chances + TINY)).sum() / queries
    mean = chances.sum(0) / queries
    marginal = -(mean * jnp.log(jnp.where(mean > 0, mean, 1))).sum()
    return settings.l2 * supervised - (marginal - settings.alpha * conditional)

  optimizer = optax.adam(settings.learning_rate)
  return Probe(_start, logits, train=descend(loss, optimizer))


def alternating(settings: Settings) -> Probe:
  """TIM-ADM: soft labels of the queries, then prototypes, in closed form (their Prop. 1, 2)."""
  logits = _logits(settings)
  power = 1 + settings.alpha
  balance = 0.5  # weight of the marginal entropy over that weight plus one
  share = settings.l2 / power

  def step(params, state, memory, support, t):
    del memory, t
    own = _chances(logits, params, support.features, support.labels >= 0, support)
    chances = _chances(logits, params, support.query, support.is_query, support)
    sharp = chances**power
    total = sharp.sum(0)[None]
    soft = sharp / jnp.where(total > 0, total, 1) ** balance
    whole = soft.sum(1, keepdims=True)
    soft = soft / jnp.where(whole > 0, whole, 1)
    old = params["prototypes"]

    def part(targets, chances, rows):
      gathered = targets.T @ rows + old * chances.sum(0)[:, None] - chances.T @ rows
      return gathered, targets.sum(0)[:, None]

    x, query = unit_or_zero(support.features), unit_or_zero(support.query)
    rest = support.size / jnp.maximum(support.is_query.sum(), 1)
    (known, known_count), (guessed, guessed_count) = (
      part(support.member, own, x),
      part(soft, chances, query),
    )
    count = share * known_count + rest * guessed_count
    new = (share * known + rest * guessed) / jnp.where(count > 0, count, 1)
    new = jnp.where(support.present[:, None], new, old)
    moved = ((new - old) ** 2).sum().astype(old.dtype)  # what is shown in place of a loss
    return {"prototypes": new}, state, moved

  return within_span(Probe(_start, logits, train=Training(lambda *_: {}, step)))
