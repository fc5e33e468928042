"""The losses of both papers as pure functions of embeddings. No weights, phases or state.

Letters: `N` support views, `M` clean support images, `C` classes, `D` width. Embeddings come
in raw and are normalized here, because the gradient goes through the normalization.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def unit(embeddings: jax.Array) -> jax.Array:
  """Rows of `[..., D]` scaled to unit length."""
  return embeddings / jnp.linalg.norm(embeddings, axis=-1, keepdims=True)


def cosine_cross_entropy(
    embeddings: jax.Array, prototypes: jax.Array, labels: jax.Array, logit_scale: float
) -> jax.Array:
  """`mean_i CE(s · cos(e_i, p), y_i)`, the form that `L_vlm`, `L_v` and `L_ad` share.

  Args:
    embeddings: `[N, D]`.
    prototypes: `[C, D]`, one row a class: texts, class means, or random features.
    labels: `[N] int32`.
    logit_scale: `s`.

  Returns:
    `[]`, in nats.
  """
  logits = logit_scale * unit(embeddings) @ unit(prototypes).T
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def class_means(embeddings: jax.Array, membership: jax.Array) -> jax.Array:
  """Mean embedding of each class.

  Args:
    embeddings: `[N, D]`.
    membership: `[N, C]`, 1 where the row counts towards the class and 0 elsewhere.

  Returns:
    `[C, D]`; a class without members gives zeros.
  """
  counts = jnp.maximum(membership.sum(0), 1.0)
  return membership.T @ embeddings / counts[:, None]


def visual_relation(image: jax.Array, clean: jax.Array) -> jax.Array:
  """`R = z hᵀ [N, M]`: cosines between support views and clean support images."""
  return unit(image) @ unit(clean).T


def text_relation(text: jax.Array, labels: jax.Array, clean_labels: jax.Array) -> jax.Array:
  """`R_text[i, j] = u[y_i] · u[y_j]`, `[N, M]`: cosines between the classes' texts.

  Args:
    text: `[C, D]`.
    labels: `[N] int32`, of the views.
    clean_labels: `[M] int32`, of the clean images.
  """
  u = unit(text)
  return (u @ u.T)[labels][:, clean_labels]


def cosine_divergence(target: jax.Array, relation: jax.Array) -> jax.Array:
  """`mean_ij exp(t_ij) (t_ij - r_ij)`, `[]`: what the reference computes.

  It is a KL divergence with log-targets applied to the raw cosines, not to distributions.

  Args:
    target: `[N, M]`.
    relation: `[N, M]`.
  """
  return jnp.mean(jnp.exp(target) * (target - relation))


def softmax_divergence(target: jax.Array, relation: jax.Array) -> jax.Array:
  """`mean_i KL(softmax(r_i) ‖ softmax(t_i))`, `[]`: the paper's `D_KL(A_v ‖ A_fuse)`.

  Args:
    target: `[N, M]`; each row becomes a distribution.
    relation: `[N, M]`, likewise.
  """
  log_relation = jax.nn.log_softmax(relation, axis=-1)
  log_target = jax.nn.log_softmax(target, axis=-1)
  return jnp.mean(jnp.sum(jnp.exp(log_relation) * (log_relation - log_target), axis=-1))


DIVERGENCES = {"cosine": cosine_divergence, "softmax": softmax_divergence}
