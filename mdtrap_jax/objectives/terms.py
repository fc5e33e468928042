"""The terms by name: `config.objective.NAME`, those of both papers and any of one's own.

A new term is a function of `term.Features`, made known by `register`; see `docs/terms.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mdtrap_jax.objectives import losses
from mdtrap_jax.objectives.relation_alignment import (
  add_relation_alignment,
  add_relation_alignment_in_minibatches,
)
from mdtrap_jax.objectives.term import Context, make_term


def add_cross_entropy(context: Context, weight: float = 1.0):
  """`L_vlm`, cross-entropy between images and texts (METHOD: CLIP's own objective)."""

  def loss(features, batch, memory, key, step):
    del key, step
    value = losses.cosine_cross_entropy(
      features.image, features.text, batch.labels, context.logit_scale
    )
    return value, memory

  return make_term("vlm", loss, weight, context.start, context.stop)


def add_visual_strengthening(context: Context, weight: float):
  """`L_v`, cross-entropy to the classes' own visual prototypes: the trap itself.

  Prototypes are the class means of the clean view; the gradient flows through them too.
  """

  def loss(features, batch, memory, key, step):
    del key, step
    classes = jnp.arange(features.text.shape[0])
    member = (batch.labels[:, None] == classes[None]) & (batch.views[:, None] == 0)
    prototypes = losses.class_means(features.image, member.astype(features.image.dtype))
    value = losses.cosine_cross_entropy(
      features.image, prototypes, batch.labels, context.logit_scale
    )
    return value, memory

  return make_term("visual", loss, weight, context.start, context.stop)


def draw_prototypes(key: jax.Array, step: jax.Array, num_views: int, ways: int) -> jax.Array:
  """`[C] int32`: for each class a view, drawn uniformly and independently of its label."""
  del step
  return jax.random.randint(key, (ways,), 0, num_views)


def add_random_prototypes(context: Context, weight: float = 0.1, draw=draw_prototypes):
  """`L_ad` (SVL), cross-entropy to randomly drawn current features; suppresses visual learning.

  Args:
    context: of the chain.
    weight: λ, 0.1 where the vision encoder is tuned, 0.001 for the text encoder alone.
    draw: `(key, step, N, C) -> [C] int32`, which rows serve as the classes' prototypes.
  """

  def loss(features, batch, memory, key, step):
    rows = draw(key, step, features.image.shape[0], features.text.shape[0])
    value = losses.cosine_cross_entropy(
      features.image, features.image[rows], batch.labels, context.logit_scale
    )
    return value, memory

  return make_term("svl", loss, weight, context.start, context.stop)


def add_symmetric_cross_entropy(context: Context, weight: float = 1.0):
  """CoPA's contrastive loss between images and the prototypes of their classes.

  With texts as prototypes it is CLIP's own pre-training loss on the support set.
  """

  def loss(features, batch, memory, key, step):
    del key, step
    value = losses.symmetric_cross_entropy(
      features.image, features.text, batch.labels, context.logit_scale
    )
    return value, memory

  return make_term("symmetric", loss, weight, context.start, context.stop)


class Term(NamedTuple):
  """A term of the objective: how it is made, and what it needs of a step."""

  make: Callable[..., optax.GradientTransformationExtraArgs]  # (context, weight, **options)
  clean: bool = False  # the clean pass, `Features.clean`
  all_views: bool = False  # all N views in every step, so that no batches of them can be drawn
  patches: bool = False  # patch tokens, `Features.patches`, and of the clean pass where it runs
  # what takes its place in minibatches of a large support, where it needs all views otherwise
  minibatch: Callable[..., optax.GradientTransformationExtraArgs] | None = None


_PAPERS = ("vlm", "visual", "svl", "ra", "symmetric")
_TERMS: dict[str, Term] = {}
TERMS: Mapping[str, Term] = MappingProxyType(_TERMS)  # in the order of registration; read only


def register(
  name: str,
  make: Callable[..., optax.GradientTransformationExtraArgs],
  *,
  clean: bool = False,
  all_views: bool = False,
  patches: bool = False,
  minibatch: Callable[..., optax.GradientTransformationExtraArgs] | None = None,
) -> None:
  """Makes a term known by name, for `config.objective.NAME`.

  A term of one's own may be registered again, as when a notebook's cell runs twice.

  Args:
    name: of the term.
    make: `(context, weight, **options)` to a transform, such as `make_term` returns.
    clean: whether it needs the clean pass.
    all_views: whether it needs all views in every step.
    patches: whether it needs patch tokens.
    minibatch: what is made instead where a step sees a part of a large support, if it does.

  Raises:
    ValueError: the name is that of a term of the papers.
  """
  term = Term(make, clean, all_views, patches, minibatch)
  if name in _PAPERS and _TERMS.get(name, term) != term:
    raise ValueError(f"there is a term {name!r} already: register yours under another name.")
  _TERMS[name] = term


register("vlm", add_cross_entropy)
register("visual", add_visual_strengthening, all_views=True)
register("svl", add_random_prototypes)
register(
  "ra",
  add_relation_alignment,
  clean=True,
  all_views=True,
  minibatch=add_relation_alignment_in_minibatches,
)
register("symmetric", add_symmetric_cross_entropy)
