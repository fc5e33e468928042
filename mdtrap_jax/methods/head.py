"""What a head is, and how one task is adapted and evaluated with it: pure functions of one task.

Like `adapt.py`, nothing here knows of batches of tasks; `parallel.over_episodes` adds them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mdtrap_jax.methods import ncc
from mdtrap_jax.methods.ncc import Prediction, Task
from mdtrap_jax.objectives.pull_back import pull_back, zero_cotangents
from mdtrap_jax.objectives.terms import Batch, Context, Features

Params = Any  # what a head trains
Backbone = Any  # a frozen extractor's weights, or None


class Head(NamedTuple):
  """A representation of images and prototypes with trainable parameters.

  The prototypes of the classes are always the means of the support *features*; the head maps
  both.
  """

  init: Callable[[jax.Array, jax.ShapeDtypeStruct], Params]  # key, one row of support
  images: Callable[[Params, jax.Array], jax.Array]  # features [N, ...] -> [N, D]
  prototypes: Callable[[Params, jax.Array], jax.Array]  # means [C, ...] -> [C, D]
  # (params, backbone, support or query) -> features; without one, these are features already
  features: Callable[[Params, Backbone, jax.Array], jax.Array] | None = None


class Fit(NamedTuple):
  """An adapted task."""

  params: Params  # of the head
  losses: jax.Array  # [T] float32, in each step before its update
  trace: Any  # `trace`'s values, [T+1, ...]; None without it


class Representations(NamedTuple):
  """A task as a head sees it; rows are not normalized."""

  support: jax.Array  # [N, D]
  query: jax.Array  # [Q, D]
  prototypes: jax.Array  # [C, D]; zeros for an absent class before a head maps them


def make_chain(
  term: Callable[..., optax.GradientTransformationExtraArgs],
  optimizer: optax.GradientTransformation,
  *,
  steps: int,
  logit_scale: float,
) -> optax.GradientTransformationExtraArgs:
  """A head's objective: one term on (images, prototypes), pulled back to the head.

  Args:
    term: of `objectives.terms.TERMS`, or made like one; prototypes take the place of texts.
    optimizer: of the head's parameters.
    steps: `T`.
    logit_scale: `s`.
  """
  context = Context(
    logit_scale=logit_scale, num_views=0, num_clean=0, start=0, stop=steps, fade=steps
  )
  return optax.named_chain(
    ("loss", term(context)), ("encoder", pull_back()), ("optimizer", optimizer)
  )


@dataclasses.dataclass(frozen=True)
class Method:
  """The static description of how tasks are adapted; its methods are pure.

  Attributes:
    head: what is trained.
    tx: the chain of `make_chain`; `None` for a head that is not trained.
    steps: `T`.
    ways: `C`, the most classes that a task has.
  """

  head: Head
  tx: optax.GradientTransformationExtraArgs | None
  steps: int
  ways: int

  def fit(
    self,
    backbone: Backbone,
    task: Task,
    key: jax.Array,
    trace: Callable[[Representations, Params], Any] | None = None,
  ) -> Fit:
    """Adapts the head to the task's support set.

    A task that becomes non-finite is not frozen step by step, as `adapt.py` does: its own
    numbers are all it can spoil, and `losses` and the prediction show it.

    Args:
      backbone: weights of the extractor whose images `task` holds, or `None`.
      task: one task.
      key: typed key of the initial parameters, consumed.
      trace: pure function of the representations and parameters, evaluated before each step
        and after the last.
    """
    row = jax.ShapeDtypeStruct(task.support.shape[1:], task.support.dtype)
    params = self.head.init(key, row)
    look = lambda p: None if trace is None else trace(self.represent(backbone, p, task), p)
    if self.tx is None:
      return Fit(params, jnp.zeros((0,)), jax.tree.map(lambda x: x[None], look(params)))

    # Fixed in all steps where there is no backbone to adapt.
    fixed = None if self.head.features else self._class_means(params, backbone, task)
    batch = Batch(labels=task.support_labels, views=None, clean_labels=None)

    def encode(p):
      features, means = fixed or self._class_means(p, backbone, task)
      return Features(self.head.images(p, features), None, self.head.prototypes(p, means))

    def step(carry, t):
      p, state = carry
      seen = look(p)
      features, features_vjp = jax.vjp(encode, p)
      updates, state = self.tx.update(
        zero_cotangents(features),
        state,
        p,
        features=features,
        batch=batch,
        key=jax.random.key(0),
        step=t,
        features_vjp=features_vjp,
      )
      return (optax.apply_updates(p, updates), state), (state["loss"].value, seen)

    (params, _), (losses, seen) = jax.lax.scan(
      step, (params, self.tx.init(params)), jnp.arange(self.steps)
    )
    if trace is not None:
      seen = jax.tree.map(
        lambda rows, last: jnp.concatenate([rows, last[None]]), seen, look(params)
      )
    return Fit(params, losses, seen)

  def represent(self, backbone: Backbone, params: Params, task: Task) -> Representations:
    """Support, queries and prototypes of a task as the head maps them."""
    support, means = self._class_means(params, backbone, task)
    query = self._features(params, backbone, task.query)
    return Representations(
      self.head.images(params, support),
      self.head.images(params, query),
      self.head.prototypes(params, means),
    )

  def predict(self, task: Task, representations: Representations) -> Prediction:
    """Classifies the task's queries by their cosine to the prototypes."""
    return ncc.predict(
      representations.query, representations.prototypes, task.support_labels, task.query_labels
    )

  def _features(self, params, backbone, rows):
    return self.head.features(params, backbone, rows) if self.head.features else rows

  def _class_means(self, params, backbone, task):
    features = self._features(params, backbone, task.support)
    return features, ncc.prototypes(features, task.support_labels, self.ways)
