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


def unit_or_zero(embeddings: jax.Array) -> jax.Array:
  """`unit`, but a row of zeros (an absent class) stays one and has zero gradient."""
  squares = jnp.sum(embeddings * embeddings, axis=-1, keepdims=True)
  nonzero = squares > 0  # two `where`s: the unselected side's gradient must be finite
  return embeddings * jnp.where(nonzero, jax.lax.rsqrt(jnp.where(nonzero, squares, 1)), 0)


def symmetric_cross_entropy(
  embeddings: jax.Array, prototypes: jax.Array, labels: jax.Array, logit_scale: float
) -> jax.Array:
  """CoPA's contrastive loss: each image finds its prototype, each prototype its image.

  Prototypes are expanded by label to one per image, `[N, D]`; the logits are
  `s · z pᵀ [N, N]`, the targets the diagonal in both directions, the loss the mean of the two.
  Rows of one class share a prototype, so the loss cannot fall below the logarithm of their
  number.

  Args:
    embeddings: `[N, D]`.
    prototypes: `[C, D]`, one row a class: class means or texts. A row of zeros is allowed.
    labels: `[N] int32`; negative ones mark rows that are left out.
    logit_scale: `s`; CoPA's is `e^2`.

  Returns:
    `[]`, in nats.
  """
  z, p = (unit_or_zero(rows) for rows in (embeddings, prototypes))
  # Rows of a class share a column: [N, C] logits say all that [N, N] would.
  logits = logit_scale * z @ p.T
  member = jax.nn.one_hot(labels, p.shape[0], dtype=z.dtype)
  counts, real = member.sum(0)[None], (labels >= 0)[:, None]
  log_counts = jnp.log(jnp.maximum(counts, 1))
  over_prototypes = jax.nn.logsumexp(jnp.where(counts > 0, logits + log_counts, -jnp.inf), axis=1)
  over_images = jax.nn.logsumexp(jnp.where(real, logits, -jnp.inf), axis=0)
  # Sums over `member` pick each row's own entry, without a gather to scatter back.
  total = (member * (over_prototypes[:, None] + over_images[None] - 2 * logits)).sum()
  return total / (2 * jnp.maximum(member.sum(), 1))
