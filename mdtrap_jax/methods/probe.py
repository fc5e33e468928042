"""What a probe is, and how one task is adapted and evaluated with it: pure functions of one task.

A head (`head.py`) maps images and prototypes and compares them. A probe is any other classifier of
frozen features: solved in closed form, trained by steps of its own, or only remembered; with texts
or without; of each query alone or, transductive, of all together. A new one is a file in
`methods/probes/` and a line in `heads.METHODS`.

Legend: `N` support and `Q` query rows, `C` ways, `D` width. As everywhere, a row whose label is
negative is padding, and a class without support rows is absent: no number depends on either.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mdtrap_jax.data.task import Task
from mdtrap_jax.keys import episode_key, rows_of_step
from mdtrap_jax.methods import ncc
from mdtrap_jax.methods.head import CPU_BYTES, CPU_COPIES
from mdtrap_jax.methods.method import AdaptState, Evaluation, Work
from mdtrap_jax.objectives.chain import Phase
from mdtrap_jax.objectives.term import TermState

Params = Mapping[str, jax.Array]  # what is trained, or solved for; by name, so that it can be saved
Memory = Mapping[str, jax.Array]  # what else logits need of the support set, likewise


class Support(NamedTuple):
  """A task as a probe sees it; in a step on a minibatch, the rows are those of the step."""

  features: jax.Array  # [N, D]; zeros where a row is padding
  labels: jax.Array  # [N] int32; negative for padding
  member: jax.Array  # [N, C], 1 where the row is of the class; all 0 for padding
  counts: jax.Array  # [C], rows of each class in the whole support set
  text: jax.Array | None  # [C, D], the classes' embeddings; None where the probe needs none
  weights: Any  # those of the frozen model that the probe trains, or None
  query: jax.Array | None  # [Q, D], zeros for padding; of transductive probes alone
  is_query: jax.Array | None  # [Q] bool, False for padding
  key: jax.Array  # typed key of a random start

  @property
  def present(self) -> jax.Array:
    """Whether the task has a class, `[C]` bool."""
    return self.counts > 0

  @property
  def size(self) -> jax.Array:
    """Rows here that are not padding, `[]`, at least 1."""
    return jnp.maximum(self.member.sum(), 1)


class Training(NamedTuple):
  """Steps that make a probe's parameters better."""

  init: Callable[[Params, Memory, Support], Any]  # the state that goes from step to step
  # (params, state, memory, support, step) -> (params, state, loss before the step [])
  step: Callable[[Params, Any, Memory, Support, jax.Array], tuple[Params, Any, jax.Array]]


class Probe(NamedTuple):
  """A classifier of frozen features.

  Logits of an absent class may be any finite number: they are masked for it.
  """

  init: Callable[[Support], Params]  # its closed form, or where its steps begin
  logits: Callable[[Params, Memory, jax.Array], jax.Array]  # rows [Q, D] -> [Q, C]
  memory: Callable[[Support], Memory] = lambda support: {}
  train: Training | None = None
  # (weights, rows) -> embeddings, of tasks that hold something from before the last layer
  embed: Callable[[Any, jax.Array], jax.Array] | None = None


class Prepared(NamedTuple):
  """What stays the same in all steps of a task."""

  task: Task
  memory: Memory


def descend(
  loss: Callable[[Params, Memory, Support], jax.Array],
  optimizer: optax.GradientTransformation,
) -> Training:
  """Steps of an optimizer, also of one with a line search, on the whole support set."""
  optimizer = optax.with_extra_args_support(optimizer)

  def step(params, state, memory, support, t):
    del t
    value_of = lambda p: loss(p, memory, support)
    value, gradient = jax.value_and_grad(value_of)(params)
    updates, state = optimizer.update(
      gradient, state, params, value=value, grad=gradient, value_fn=value_of
    )
    return optax.apply_updates(params, updates), state, value

  return Training(lambda params, memory, support: optimizer.init(params), step)


def mask_absent(logits: jax.Array, support: Support) -> jax.Array:
  """`[…, C]`, -inf for a class that the task does not have."""
  return jnp.where(support.present[None], logits, -jnp.inf)


def cross_entropy(logits: jax.Array, support: Support) -> jax.Array:
  """`mean_i CE(logits_i, y_i)`, `[]`, over the rows and classes that the task has."""
  labels = jnp.maximum(support.labels, 0)
  values = optax.softmax_cross_entropy_with_integer_labels(mask_absent(logits, support), labels)
  return jnp.where(support.labels >= 0, values, 0).sum() / support.size


@dataclasses.dataclass(frozen=True, eq=False)  # compiled programs are kept by identity
class ProbeMethod:
  """Adapting tasks by a probe; a `method.Method`.

  Attributes:
    probe: what is trained or solved.
    trained: steps of its training, 0 without. What needs none is done in one step that changes
      nothing, so that a run tells the reference before it from the probe after it.
    ways: `C`, the most classes that a task has.
    text: whether the probe needs the classes' embeddings.
    transductive: whether it sees all queries of a task.
    weights: picks those of the frozen model that it trains.
    batch_size: rows of a step, in a new random order each epoch, of tasks that have more and no
      padding; 0: all.
  """

  probe: Probe
  trained: int
  ways: int
  text: bool = False
  transductive: bool = False
  weights: Callable[[Any], Any] | None = None
  batch_size: int = 0
  logit_scale: float = 1.0  # of what `evaluate` gives: these are logits already

  @property
  def steps(self) -> int:
    """`T`, at least 1."""
    return max(1, self.trained)

  @property
  def phases(self) -> tuple[Phase, ...]:
    """One."""
    return (Phase(0, self.steps, clean=False),)

  @property
  def marks(self) -> tuple[int, ...]:
    """After the last step."""
    return (self.steps,)

  def needed(self, params: Any, shards: int = 1) -> Any:
    """The weights that the probe trains, if any."""
    del shards
    return self.weights(params) if self.weights else None

  def prepare(self, params: Any, task: Task) -> tuple[Prepared, AdaptState]:
    """The probe at its start, or solved.

    Args:
      params: of `needed`.
      task: one task.

    Raises:
      ValueError: the probe needs texts and the task has none.
    """
    support = self._support(params, task)
    memory, start = self.probe.memory(support), self.probe.init(support)
    dtype = support.features.dtype
    nan, zero = jnp.full((), jnp.nan, dtype), jnp.zeros((), dtype)
    opt_state = {}
    if self.probe.train:
      opt_state = {
        "loss": TermState(jnp.ones((), dtype), nan, zero, nan, ()),
        "training": self.probe.train.init(start, memory, support),
      }
    return Prepared(task, memory), AdaptState(start, opt_state, jnp.zeros((), jnp.int32))

  def _support(self, params, task: Task) -> Support:
    if self.text and task.text is None:
      raise ValueError(
        "this method compares images with the texts of their classes, and these tasks have none: "
        "use features of a vision-language model, not of a file or of the ResNet-18."
      )
    zeros = lambda rows, labels: jnp.where((labels >= 0)[:, None], rows, 0)
    query = (zeros(task.query, task.query_labels), task.query_labels >= 0)
    member = ncc.membership(task.support_labels, self.ways, task.support.dtype)
    return Support(
      zeros(task.support, task.support_labels),
      task.support_labels,
      member,
      member.sum(0),
      task.text.astype(task.support.dtype) if self.text else None,
      params if self.weights else None,
      *(query if self.transductive else (None, None)),
      episode_key(task.seed, task.number),
    )

  def step(self, params: Any, prepared: Prepared, state: AdaptState, t: jax.Array) -> AdaptState:
    """One step of the probe's training."""
    support = self._support(params, prepared.task)
    if self.batch_size and self.batch_size < (total := len(support.labels)):
      rows = rows_of_step(support.key, t, self.batch_size, total)
      support = support._replace(
        features=support.features[rows], labels=support.labels[rows], member=support.member[rows]
      )
    new, training, loss = self.probe.train.step(
      state.params, state.opt_state["training"], prepared.memory, support, t
    )
    term = state.opt_state["loss"]._replace(value=loss)
    return AdaptState(new, {"loss": term, "training": training}, state.status)

  def run(
    self,
    params: Any,
    prepared: Prepared,
    state: AdaptState,
    start: jax.Array,
    stop: jax.Array,
    *,
    clean: bool = False,
  ) -> AdaptState:
    """Steps `start … stop-1`; see `method.Method`."""
    del clean
    if not (self.probe.train and self.trained):
      return state
    step = lambda t, s: self.step(params, prepared, s, t)
    return jax.lax.fori_loop(start, stop, step, state)

  def baseline(self, params: Any, prepared: Prepared, state: AdaptState) -> Evaluation:
    """NCC on the frozen embeddings, as for every head."""
    del state
    task = prepared.task
    support, query = task.support, task.query
    if self.probe.embed:
      support, query = (self.probe.embed(params, rows) for rows in (support, query))
    means = ncc.prototypes(support, task.support_labels, self.ways)
    found = ncc.predict(query, means, task.support_labels, task.query_labels)
    return Evaluation(found.accuracy, found.cosines, {})

  def evaluate(self, params: Any, prepared: Prepared, state: AdaptState) -> Evaluation:
    """Classifies the queries; what takes the place of cosines are logits."""
    del params
    task = prepared.task
    logits = self.probe.logits(state.params, prepared.memory, task.query)
    found = ncc.decide(logits, task.support_labels, task.query_labels)
    return Evaluation(found.accuracy, found.cosines, {})

  def work(self, params: Any, task: Task, variants: int) -> Work:
    """See `method.Work`: as many as keep features, parameters and moments in a core's caches."""
    del variants
    prepared, state = jax.eval_shape(self.prepare, self.needed(params), task)
    size = lambda tree: sum(
      leaf.size * leaf.dtype.itemsize
      for leaf in jax.tree.leaves(tree)
      if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )
    own = size((task.support, task.query, prepared.memory)) + size(state) + size(state.params)
    each, size = max(1, CPU_BYTES // own), CPU_COPIES * own
    return Work(each, size, alone=False, likely=size)

  def smaller(self, task: Task) -> None:
    """Probes have no form in less memory."""
    del task

  def remember(self, params: Any, task: Task, trained: Params) -> tuple[jax.Array, Memory]:
    """What predictions need beside `trained`: the classes' means or texts `[C, D]`, the memory."""
    del trained
    support = self._support(params, task)
    anchors = support.text
    if anchors is None:
      anchors = ncc.prototypes(task.support, task.support_labels, self.ways)
    return anchors, self.probe.memory(support)

  def classify(
    self, trained: Params, anchors: jax.Array, memory: Memory, rows: jax.Array
  ) -> jax.Array:
    """Logits `[n, C]` of rows `[n, D]`; not of a transductive probe."""
    del anchors
    return self.probe.logits(trained, memory, rows)
