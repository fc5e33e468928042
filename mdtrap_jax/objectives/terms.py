"""Loss terms as optax transforms whose updates are cotangents on the embeddings.

A term adds the gradient of its own loss with respect to `Features`; `pull_back` turns their
sum into a gradient on the trainable parameters. The gradient is linear in the cotangent, so
the chain equals the gradient of the summed loss and costs one backward pass however many
terms there are. What a term adds, before it is added, is the paper's decomposition: each term
keeps its value, its norm and its cosine with the terms before it in its state.

A new term is a function of `Features`, made known by `register`; see `docs/terms.md`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mdtrap_jax.objectives import losses


class Features(NamedTuple):
  """The embeddings of one step, raw (not normalized)."""

  image: jax.Array  # [N, D] float32, support views: view-major, then class, then shot
  clean: jax.Array | None  # [M, D] float32, clean images; None while no term needs them
  text: jax.Array  # [C, D] float32
  # [N, P, W] and [M, P, W] float32, the patch tokens of the same images, row by row, after the
  # encoder's last norm and without a class token; None while no term needs them
  patches: jax.Array | None = None
  clean_patches: jax.Array | None = None


class Batch(NamedTuple):
  """What a step knows about the rows of its features."""

  labels: jax.Array  # [N] int32
  views: jax.Array  # [N] int32, the recipe that made the row; 0 is the clean view
  clean_labels: jax.Array  # [M] int32
  images: jax.Array | None = None  # [N] int32, in minibatches of a large support: which are these


class Context(NamedTuple):
  """What a term may need to know when it is built; all static."""

  logit_scale: float  # s
  num_views: int  # N
  num_clean: int  # M
  start: int  # first step in which the term is on
  stop: int  # one past the last
  fade: int  # steps in which RA's target goes from the visual relation to the textual one
  width: int = 0  # D; known where steps see minibatches of a large support


class TermState(NamedTuple):
  """State of one term; `weight` may be replaced to sweep it by `vmap`."""

  weight: jax.Array  # [] float32
  value: jax.Array  # [] float32, the unweighted loss when the term was last on, else NaN
  norm: jax.Array  # [] float32, length of its weighted cotangent on `image`, 0 while off
  cosine: jax.Array  # [] float32, between that and the terms before it, NaN without one
  memory: Any  # what the loss carries from step to step; () for most


# (features, batch, memory, key, step) -> (loss [], memory)
Loss = Callable[[Features, Batch, Any, jax.Array, jax.Array], tuple[jax.Array, Any]]


def make_term(
  name: str, loss: Loss, weight: float, start: int, stop: int, memory: Any = ()
) -> optax.GradientTransformationExtraArgs:
  """Wraps a loss on features as a transform that adds its weighted cotangent.

  Args:
    name: of the term; makes its random stream its own.
    loss: pure; called in every step, also while the term is off, so that `memory` is current.
    weight: initial value of `TermState.weight`.
    start: first step in which the cotangent is added.
    stop: one past the last such step.
    memory: initial memory; arrays of fixed shape.

  Returns:
    A transform whose `update` takes the keyword arguments `features`, `batch`, `key` and
    `step` and ignores further ones. Where the term is off it returns the updates untouched.
  """
  stream = zlib.crc32(name.encode())

  def init(params):
    dtype = jnp.result_type(*jax.tree.leaves(params), jnp.float32)
    nan = jnp.full((), jnp.nan, dtype)
    return TermState(jnp.asarray(weight, dtype), nan, jnp.zeros((), dtype), nan, memory)

  def update(updates, state, params=None, *, features, batch, key, step, **extra_args):
    del params, extra_args
    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    key = jax.random.fold_in(key, stream)
    (value, new_memory), gradient = value_and_grad(features, batch, state.memory, key, step)
    on = (step >= start) & (step < stop) & (state.weight != 0)
    cotangent = jax.tree.map(
      lambda g: jnp.where(on, state.weight.astype(g.dtype) * g, jnp.zeros_like(g)), gradient
    )
    norm, before = jnp.linalg.norm(cotangent.image), jnp.linalg.norm(updates.image)
    cosine = jnp.vdot(cotangent.image, updates.image) / (norm * before)
    new_state = TermState(
      weight=state.weight,
      value=jnp.where(on, value, state.value).astype(state.value.dtype),
      norm=norm.astype(state.norm.dtype),
      cosine=cosine.astype(state.cosine.dtype),
      memory=new_memory,
    )
    # `where` and not `+ 0`: a loss that overflows while its term is off must not leak NaN.
    added = jax.tree.map(lambda u, c: jnp.where(on, u + c.astype(u.dtype), u), updates, cotangent)
    return added, new_state

  return optax.GradientTransformationExtraArgs(init, update)


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


class RelationMemory(NamedTuple):
  """What RA carries from step to step."""

  relation: jax.Array  # [N, M], `R_t` of the step just done
  target: jax.Array  # [N, M], the target it was compared with


def add_relation_alignment(context: Context, weight: float = 3.0, divergence: str = "cosine"):
  """`L_ra` (RA): pulls the visual relation from its own past to the textual relation.

  `target_t = a_t R_{t-1} + (1 - a_t) R_text`, `a_t = 1 - t / fade`, `t` counted from `start`.
  There is no previous relation in the first step, which is only remembered.

  Args:
    context: of the chain; `num_views` and `num_clean` give the relation's shape.
    weight: β.
    divergence: `cosine` (the reference's code) or `softmax` (the paper's text).

  Raises:
    ValueError: an unknown divergence.
  """
  if divergence not in losses.DIVERGENCES:
    raise ValueError(f"divergence={divergence!r}: choose one of {sorted(losses.DIVERGENCES)}.")
  zeros = jnp.zeros((context.num_views, context.num_clean))

  def loss(features, batch, memory, key, step):
    del key
    relation = losses.visual_relation(features.image, features.clean)
    text = losses.text_relation(features.text, batch.labels, batch.clean_labels)
    # Where T is no multiple of 5, `fade` may end a few steps before the window does.
    share = jnp.maximum(1 - (step - context.start) / context.fade, 0.0)
    target = share * memory.relation + (1 - share) * text
    value = losses.DIVERGENCES[divergence](target, relation)
    return value, jax.lax.stop_gradient(RelationMemory(relation, target))

  memory = RelationMemory(zeros, zeros)
  return _only_with_clean(make_term("ra", loss, weight, context.start + 1, context.stop, memory))


def _only_with_clean(term: optax.GradientTransformationExtraArgs):
  """The same term, which rests in a phase without the clean pass: there is nothing to compare."""

  def update(updates, state, params=None, *, features, **extra_args):
    if features.clean is None:
      return updates, state._replace(norm=jnp.zeros_like(state.norm))
    return term.update(updates, state, params, features=features, **extra_args)

  return optax.GradientTransformationExtraArgs(term.init, update)


class SeenMemory(NamedTuple):
  """What RA carries from minibatch to minibatch: each image as it was last seen."""

  image: jax.Array  # [M, D], of unit length: its augmented view
  clean: jax.Array  # [M, D], likewise
  seen: jax.Array  # [M] bool


def add_relation_alignment_in_minibatches(
  context: Context, weight: float = 3.0, divergence: str = "cosine"
):
  """RA where a step sees `B` of `M` images: relations are those within the minibatch.

  `R_{t-1}` of two images is between them as each was when it was last in a minibatch. One with an
  image that has not been in any (those of the first epoch) is only remembered, as the first step
  is. With one row of every image in each step this is `add_relation_alignment`. The papers do not
  say what they do; this is the definition of the library.

  Args:
    context: of the chain; `num_clean` is `M` and `width` is `D`.
    weight: β.
    divergence: as there.

  Raises:
    ValueError: an unknown divergence.
  """
  if divergence not in losses.DIVERGENCES:
    raise ValueError(f"divergence={divergence!r}: choose one of {sorted(losses.DIVERGENCES)}.")
  size = (context.num_clean, context.width)
  memory = SeenMemory(jnp.zeros(size), jnp.zeros(size), jnp.zeros(size[:1], bool))

  def loss(features, batch, memory, key, step):
    del key
    z, h, rows = losses.unit(features.image), losses.unit(features.clean), batch.images
    text = losses.text_relation(features.text, batch.labels, batch.clean_labels)
    share = jnp.maximum(1 - (step - context.start) / context.fade, 0.0)
    target = share * memory.image[rows] @ memory.clean[rows].T + (1 - share) * text
    value = losses.DIVERGENCES[divergence](target, z @ h.T)
    value = jnp.where(memory.seen[rows].all(), value, jnp.zeros_like(value))
    # Of an image that is in a minibatch several times, in several views, the last row counts.
    turn = jnp.full(memory.seen.shape, -1).at[rows].max(jnp.arange(len(rows)))
    now = lambda old, new: jnp.where(turn[:, None] >= 0, new[turn].astype(old.dtype), old)
    remembered = SeenMemory(
      now(memory.image, z), now(memory.clean, h), memory.seen.at[rows].set(True)
    )
    return value, jax.lax.stop_gradient(remembered)

  return _only_with_clean(make_term("ra", loss, weight, context.start + 1, context.stop, memory))


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
