"""What a head is, and how one task is adapted and evaluated with it: pure functions of one task.

Like `finetune.py`, nothing here knows of batches of tasks; `run.programs` adds them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mdtrap_jax.data.task import Task
from mdtrap_jax.keys import episode_key
from mdtrap_jax.methods import gap, ncc
from mdtrap_jax.methods.method import AdaptState, Evaluation, Work
from mdtrap_jax.methods.ncc import Prediction, Representations
from mdtrap_jax.objectives.chain import Phase
from mdtrap_jax.objectives.pull_back import pull_back, zero_cotangents
from mdtrap_jax.objectives.term import Batch, Context, Features

CPU_BYTES = 8 * 2**20  # of heads, gradients and moments: more spills out of a core's cache
CPU_COPIES = 32  # of a task and its head: more than a step ever needed on a CPU

Params = Any  # what a head trains
Backbone = Any  # a frozen extractor's weights, or None


class Head(NamedTuple):
  """A representation of images and prototypes with trainable parameters.

  The prototypes of the classes are always made of the support *features*, as their means if not
  otherwise asked for; the head maps both.
  """

  init: Callable[[jax.Array, jax.ShapeDtypeStruct], Params]  # key, one row of support
  images: Callable[[Params, jax.Array], jax.Array]  # features [N, ...] -> [N, D]
  prototypes: Callable[[Params, jax.Array], jax.Array]  # means [C, ...] -> [C, D]
  # (params, backbone, support or query) -> features; without one, these are features already
  features: Callable[[Params, Backbone, jax.Array], jax.Array] | None = None


class Prepared(NamedTuple):
  """What stays the same in all steps of a task."""

  task: Task
  # features [N, ...] and class means [C, ...] of the support; None where adapters change them
  support: tuple[jax.Array, jax.Array] | None


class Fit(NamedTuple):
  """An adapted task."""

  params: Params  # of the head
  losses: jax.Array  # [T] float32, in each step before its update
  trace: Any  # `trace`'s values, [T+1, ...]; None without it


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


@dataclasses.dataclass(frozen=True, eq=False)  # compiled programs are kept by identity
class HeadMethod:
  """Adapting tasks by a light head; a `method.Method`.

  Attributes:
    head: what is trained.
    tx: the chain of `make_chain`; `None` for a head that is not trained.
    steps: `T`.
    ways: `C`, the most classes that a task has.
    pool: how a class's features make its prototype, of `ncc.POOLS`.
    distance: between images and prototypes, of `ncc.DISTANCES`.
    logit_scale: that makes logits of what `evaluate` gives.
  """

  head: Head
  tx: optax.GradientTransformationExtraArgs | None
  steps: int
  ways: int
  pool: str = "mean"
  distance: str = "cosine"
  logit_scale: float = 1.0

  @property
  def phases(self) -> tuple[Phase, ...]:
    """One, or none without steps."""
    return (Phase(0, self.steps, clean=False),) if self.steps else ()

  @property
  def marks(self) -> tuple[int, ...]:
    """After the last step."""
    return (self.steps,) if self.steps else ()

  def needed(self, params: Backbone, shards: int = 1) -> Backbone:
    """The backbone where the head adapts it, else nothing."""
    del shards
    return params if self.head.features else None

  def prepare(self, params: Backbone, task: Task) -> tuple[Prepared, AdaptState]:
    """The head at its start, and the support's features where no step changes them.

    Args:
      params: weights of the extractor whose images `task` holds, or `None`.
      task: one task.
    """
    return self._start(params, task, episode_key(task.seed, task.number))

  def _start(self, params, task, key):
    row = jax.ShapeDtypeStruct(task.support.shape[1:], task.support.dtype)
    head = self.head.init(key, row)
    support = None if self.head.features else self._class_means(head, params, task)
    opt_state = self.tx.init(head) if self.tx else {}
    return Prepared(task, support), AdaptState(head, opt_state, jnp.zeros((), jnp.int32))

  def step(
    self, params: Backbone, prepared: Prepared, state: AdaptState, step: jax.Array
  ) -> AdaptState:
    """One step of the head's optimizer.

    A task that becomes non-finite is not frozen step by step, as `finetune.py` does: its own
    numbers are all it can spoil, and its cosines show it.
    """
    task = prepared.task
    batch = Batch(labels=task.support_labels, views=None, clean_labels=None)

    def encode(head):
      features, means = prepared.support or self._class_means(head, params, task)
      return Features(self.head.images(head, features), None, self.head.prototypes(head, means))

    features, features_vjp = jax.vjp(encode, state.params)
    updates, opt_state = self.tx.update(
      zero_cotangents(features),
      state.opt_state,
      state.params,
      features=features,
      batch=batch,
      key=jax.random.key(0),
      step=step,
      features_vjp=features_vjp,
    )
    return AdaptState(optax.apply_updates(state.params, updates), opt_state, state.status)

  def run(
    self,
    params: Backbone,
    prepared: Prepared,
    state: AdaptState,
    start: jax.Array,
    stop: jax.Array,
    *,
    clean: bool = False,
  ) -> AdaptState:
    """Steps `start … stop-1`; see `method.Method`."""
    del clean
    if self.tx is None:
      return state
    step = lambda t, s: self.step(params, prepared, s, t)
    return jax.lax.fori_loop(start, stop, step, state)

  def baseline(self, params: Backbone, prepared: Prepared, state: AdaptState) -> Evaluation:
    """NCC on the frozen, pooled features: no head, no adapters."""
    del state
    task = prepared.task
    rows = [task.support, task.query]
    if self.head.features:
      # The adapters at zero: the backbone as it was published.
      shape = jax.ShapeDtypeStruct(task.support.shape[1:], task.support.dtype)
      head = jax.tree.map(jnp.zeros_like, self.head.init(jax.random.key(0), shape))
      rows = [self.head.features(head, params, images) for images in rows]
    support, query = (r.mean((1, 2)) if r.ndim == 4 else r for r in rows)
    means = ncc.prototypes(support, task.support_labels, self.ways, self.pool)
    return self._evaluation(task, Representations(support, query, means))

  def evaluate(self, params: Backbone, prepared: Prepared, state: AdaptState) -> Evaluation:
    """Classifies the queries by their cosine to the prototypes, and measures the gap."""
    return self._evaluation(prepared.task, self.represent(params, state.params, prepared.task))

  def _evaluation(self, task, representations):
    predicted = self.predict(task, representations)
    length = gap.gap(representations, task.support_labels)
    return Evaluation(predicted.accuracy, predicted.cosines, {"gap": length})

  def work(self, params: Backbone, task: Task, variants: int) -> Work:
    """See `method.Work`: as many as keep heads, gradients and moments in a core's caches."""
    del params, variants
    row = jax.ShapeDtypeStruct(task.support.shape[1:], task.support.dtype)
    head = jax.eval_shape(self.head.init, jax.random.key(0), row)
    size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    own = size((task.support, task.query)) + 4 * size(head)
    return Work(
      each=max(1, CPU_BYTES // own),
      size=None if self.head.features else CPU_COPIES * own,
      alone=False,
      likely=None if self.head.features else CPU_COPIES * own,
    )

  def smaller(self, task: Task) -> None:
    """Heads have no form in less memory."""
    del task

  def fit(
    self,
    params: Backbone,
    task: Task,
    key: jax.Array,
    trace: Callable[[Representations, Params], Any] | None = None,
  ) -> Fit:
    """All steps at once, with what every step shows: for diagnosis and replays.

    Args:
      params: weights of the extractor whose images `task` holds, or `None`.
      task: one task.
      key: typed key of the initial parameters, consumed.
      trace: pure function of the representations and parameters, evaluated before each step
        and after the last.
    """
    prepared, state = self._start(params, task, key)
    look = lambda p: None if trace is None else trace(self.represent(params, p, task), p)
    if self.tx is None:
      seen = jax.tree.map(lambda x: x[None], look(state.params))
      return Fit(state.params, jnp.zeros((0,)), seen)

    def step(state, t):
      seen = look(state.params)
      state = self.step(params, prepared, state, t)
      return state, (state.opt_state["loss"].value, seen)

    state, (losses, seen) = jax.lax.scan(step, state, jnp.arange(self.steps))
    if trace is not None:
      last = look(state.params)
      seen = jax.tree.map(lambda rows, row: jnp.concatenate([rows, row[None]]), seen, last)
    return Fit(state.params, losses, seen)

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
    """Classifies the task's queries by their nearest prototype."""
    return ncc.predict(
      representations.query,
      representations.prototypes,
      task.support_labels,
      task.query_labels,
      self.distance,
    )

  def remember(
    self, params: Backbone, task: Task, trained: Params
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What predictions need beside `trained`: the mapped prototypes `[C, D]`, and nothing else."""
    return self.head.prototypes(trained, self._class_means(trained, params, task)[1]), {}

  def classify(
    self, trained: Params, anchors: jax.Array, memory: Any, rows: jax.Array
  ) -> jax.Array:
    """Cosines (or what `distance` says) `[n, C]` of frozen features `[n, D]`."""
    del memory
    return ncc.similarities(self.head.images(trained, rows), anchors, self.distance)

  def _features(self, params, backbone, rows):
    return self.head.features(params, backbone, rows) if self.head.features else rows

  def _class_means(self, params, backbone, task):
    features = self._features(params, backbone, task.support)
    return features, ncc.prototypes(features, task.support_labels, self.ways, self.pool)
