"""Each term's gradient by itself, along the steps: how large, and with which others it agrees.

The gradient is that on the trained parameters, after the pull-back and before the optimizer. Where
a chain's own step pulls back the sum of all terms at once, this pulls back each: for a few tasks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mdtrap_jax.methods.finetune import FineTuning
from mdtrap_jax.methods.method import AdaptState
from mdtrap_jax.methods.text_classifier import Prepared
from mdtrap_jax.objectives.pull_back import zero_cotangents


class Gradients(NamedTuple):
  """Of `K` terms, in the order of `FineTuning.terms`, in each of `T` steps."""

  norm: jax.Array  # [T, K], of the weighted gradient; 0 while a term is off
  cosine: jax.Array  # [T, K, K], NaN where one of the two is off


def compare(gradients: jax.Array) -> Gradients:
  """Norms `[K]` and cosines `[K, K]` of gradients `[K, n]`."""
  gram = gradients @ gradients.T
  norm = jnp.sqrt(jnp.diagonal(gram))
  both = norm[:, None] * norm[None]
  return Gradients(norm, jnp.where(both > 0, gram / jnp.where(both > 0, both, 1), jnp.nan))


def of_terms(
  method: FineTuning, params: Any, prepared: Prepared, state: AdaptState, step: Any, *, clean: bool
) -> jax.Array:
  """The terms' gradients in one step, `[K, n]`; arguments as of `FineTuning.step`."""
  forward = method.forward(params, prepared, state, step, clean=clean)
  rows = []
  for name, term in method.terms.items():
    zeros = zero_cotangents(forward["features"])
    cotangent, _ = term.update(zeros, state.opt_state[name], state.params, **forward)
    (gradient,) = forward["features_vjp"](cotangent)
    rows.append(jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient)]))
  return jnp.stack(rows)


def run(
  method: FineTuning,
  params: Any,
  prepared: Prepared,
  state: AdaptState,
  start: int,
  stop: int,
  *,
  clean: bool,
) -> tuple[AdaptState, Gradients]:
  """`FineTuning.run`, and what the terms' gradients are before each step; static steps."""

  def step(state, number):
    found = compare(of_terms(method, params, prepared, state, number, clean=clean))
    return method.step(params, prepared, state, number, clean=clean), found

  return jax.lax.scan(step, state, jnp.arange(start, stop))
