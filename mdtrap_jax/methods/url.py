"""URL's pre-classifier alignment (PA): one linear map shared by images and prototypes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from mdtrap_jax.methods import ncc
from mdtrap_jax.methods.head import Head
from mdtrap_jax.methods.linear import linear
from mdtrap_jax.objectives.term import Context, make_term

LOGIT_SCALE = 10.0
RHO, EPSILON = 0.9, 1e-6  # of Adadelta


def shared_linear() -> Head:
  """One `W [D, D]` for both, the identity at the start.

  A mean of mapped features is the mapped mean, so mapping the class means gives the paper's
  prototypes of mapped features at a `C`th of the cost.
  """
  init = lambda key, row: {"shared": jnp.eye(row.shape[-1], dtype=row.dtype)}
  apply = lambda params, rows: linear(rows, params["shared"])
  return Head(init=init, images=apply, prototypes=apply)


def prototype_cross_entropy(
  embeddings: jax.Array,
  prototypes: jax.Array,
  labels: jax.Array,
  logit_scale: float,
  distance: str = "cosine",
) -> jax.Array:
  """`mean_i CE(s · cos(x_i, p), y_i)` over the classes and rows that the task has.

  Args:
    embeddings: `[N, D]`.
    prototypes: `[C, D]`.
    labels: `[N] int32`; negative for padding.
    logit_scale: `s`.
    distance: of `ncc.DISTANCES`; with "l2" logits are `-‖x_i - p‖²`.

  Returns:
    `[]`, in nats.
  """
  present = ncc.membership(labels, prototypes.shape[0], jnp.float32).sum(0) > 0
  scale = logit_scale if distance == "cosine" else 1.0
  logits = scale * ncc.similarities(embeddings, prototypes, distance)
  logits = jnp.where(present[None], logits, -jnp.inf)
  real = labels >= 0
  values = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
  return jnp.where(real, values, 0).sum() / jnp.maximum(real.sum(), 1)


def add_prototype_cross_entropy(context: Context, weight: float = 1.0, distance: str = "cosine"):
  """PA's loss as a term; the gradient flows through the prototypes too."""

  def loss(features, batch, memory, key, step):
    del key, step
    value = prototype_cross_entropy(
      features.image, features.text, batch.labels, context.logit_scale, distance
    )
    return value, memory

  return make_term("prototypes", loss, weight, context.start, context.stop)


def adadelta(learning_rate: float) -> optax.GradientTransformation:
  """Adadelta as torch has it."""
  return optax.adadelta(learning_rate, rho=RHO, eps=EPSILON)
