"""LP++: a linear probe beside the text logits, blended per class by learned multipliers.

Huang et al., CVPR 2024. Step sizes follow from Lipschitz constants of the features, and so does the
multipliers' start, so that nothing is searched. As in their code, W starts at the sums of the
classes' features, and the multipliers move in every tenth epoch by the gradient summed up since the
first (there it is never set to zero). Their epoch is chosen on validation images, here it is the
last one; the bias starts at zero, not at random.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mdtrap_jax.methods.probe import Probe, Training, cross_entropy
from mdtrap_jax.methods.probes.span import within_span
from mdtrap_jax.methods.settings import Settings
from mdtrap_jax.objectives.losses import unit_or_zero

SETTINGS = Settings(300)
MOMENTUM = 0.9
EVERY = 10  # steps between those of the multipliers
START = 250.0  # of the multipliers, times the mean cosine of an image to its own text


def probe(settings: Settings) -> Probe:
  """`x Wᵀ + b + α_k (x · t_k)`, all of unit norm."""
  del settings

  def init(support):
    x, member = unit_or_zero(support.features), support.member
    own = (member * (x @ unit_or_zero(support.text).T)).sum(0)  # [C]
    mean = own / jnp.maximum(support.counts, 1)
    start = START * mean.sum() / jnp.maximum(support.present.sum(), 1)
    return {
      "weight": member.T @ x,
      "bias": jnp.zeros_like(start, shape=member.shape[1]),
      "multiplier": jnp.full_like(start, start, shape=member.shape[1]),
    }

  def logits(params, memory, rows):
    x = unit_or_zero(rows)
    linear = x @ params["weight"].T + params["bias"][None]
    return linear + params["multiplier"][None] * (x @ unit_or_zero(memory["text"]).T)

  memory = lambda support: {"text": support.text}
  return within_span(Probe(init, logits, memory, _training(logits)))


def rates(support) -> tuple[jax.Array, jax.Array]:
  """Of the probe, `4N / λ_max(XᵀX)`, and of the multipliers, `N / (4 max_k Σ_i (x_i·t_k)²)`."""
  x = unit_or_zero(support.features)
  rows, width = x.shape
  gram = x @ x.T if rows <= width else x.T @ x  # the same largest eigenvalue
  to_text = ((x @ unit_or_zero(support.text).T) ** 2).sum(0)
  return (
    4 * support.size / jnp.linalg.eigvalsh(gram)[-1],
    support.size / (4 * jnp.where(support.present, to_text, 0).max()),
  )


def _training(logits) -> Training:
  def init(params, memory, support):
    del memory
    linear, multiplier = rates(support)
    return {
      "trace": jax.tree.map(jnp.zeros_like, params),  # SGD's momentum; the multipliers' plain sum
      "linear": linear,
      "multiplier": multiplier,
    }

  def step(params, state, memory, support, t):
    loss = lambda p: cross_entropy(logits(p, memory, support.features), support)
    value, gradient = jax.value_and_grad(loss)(params)
    keep = {"weight": MOMENTUM, "bias": MOMENTUM, "multiplier": 1.0}
    trace = {name: keep[name] * old + gradient[name] for name, old in state["trace"].items()}
    blend = jnp.where((t + 1) % EVERY == 0, state["multiplier"], 0)
    rate = {"weight": state["linear"], "bias": state["linear"], "multiplier": blend}
    params = {name: old - rate[name] * trace[name] for name, old in params.items()}
    return params, {**state, "trace": trace}, value

  return Training(init, step)
