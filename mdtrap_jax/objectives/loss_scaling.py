"""Dynamic loss scaling for float16, as one transform around the pull-back and the optimizer."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

# Those of PyTorch's GradScaler, which the CVPR 2026 reference trains with.
START, GROWTH, BACKOFF, PERIOD = 2.0**16, 2.0, 0.5, 2000
LEAST = 1.0  # a gradient that overflows unscaled does so for another reason than its scale


class LossScaleState(NamedTuple):
  """State of `scale_loss`."""

  scale: jax.Array  # [] float32, a power of two
  good: jax.Array  # [] int32, finite steps since it last changed
  inner: Any


def scale_loss(
  inner: optax.GradientTransformationExtraArgs,
  *,
  start: float = START,
  growth: float = GROWTH,
  backoff: float = BACKOFF,
  period: int = PERIOD,
) -> optax.GradientTransformationExtraArgs:
  """Keeps float16 gradients from vanishing: the loss, and with it every cotangent, is scaled.

  `inner` is the pull-back with an optimizer behind it. The updates go into the encoder's
  vector-Jacobian product times the scale, and what comes out is divided by it in the
  parameters' own float32, so that the optimizer sees the gradient itself. A gradient that is not
  finite in spite of finite cotangents has overflowed on its way: that step is skipped, updates
  are zero and the state of `inner` stays as it was, and the scale is multiplied by `backoff`.
  After `period` finite steps it is multiplied by `growth`.

  Unlike GradScaler it gives up where no scale could help, so that an episode is frozen as
  non-finite instead of standing still unseen: when the cotangents are not finite, for the
  forward pass has overflowed, or the gradient is not at the scale `LEAST`.

  Args:
    inner: whose `update` takes `features_vjp` among its keyword arguments.
    start: the first scale.
    growth: factor on it after `period` finite steps.
    backoff: factor on it after a step that has overflowed.
    period: finite steps in a row before the scale grows.
  """

  def init(params):
    return LossScaleState(
      jnp.asarray(start, jnp.float32), jnp.zeros((), jnp.int32), inner.init(params)
    )

  def update(updates, state, params=None, *, features_vjp, **extra_args):
    gradient_finite = []

    def scaled_vjp(cotangents):
      scaled = jax.tree.map(lambda c: c * state.scale, cotangents)
      (gradient,) = features_vjp(scaled)
      gradient = jax.tree.map(lambda g: g / state.scale, gradient)
      gradient_finite.append(_finite(gradient))
      return (gradient,)

    found, inner_state = inner.update(
      updates, state.inner, params, features_vjp=scaled_vjp, **extra_args
    )
    (finite,) = gradient_finite
    skip = ~finite & _finite(updates) & (state.scale > LEAST)
    keep = lambda new, old: jnp.where(skip, old, new)
    grow = finite & (state.good + 1 >= period)
    scale = jnp.where(grow, state.scale * growth, state.scale)
    return (
      jax.tree.map(lambda update: keep(update, jnp.zeros_like(update)), found),
      LossScaleState(
        scale=keep(scale, jnp.maximum(state.scale * backoff, LEAST)),
        good=jnp.where(finite & ~grow, state.good + 1, 0),
        inner=jax.tree.map(keep, inner_state, state.inner),
      ),
    )

  return optax.GradientTransformationExtraArgs(init, update)


def _finite(tree: Any) -> jax.Array:
  """`[] bool`: whether all numbers of a pytree are."""
  return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
