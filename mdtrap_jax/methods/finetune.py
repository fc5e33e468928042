"""Fine-tuning a vision-language model, as pure functions of one task (an episode).

What is trained of the model is a parameterization's choice; see `methods.tuning`.
Nothing here knows of batches of tasks or of meshes; `run.programs` adds both by one `vmap`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mdtrap_jax.data.task import Task
from mdtrap_jax.data.views import make_views, normalize
from mdtrap_jax.keys import episode_key, row_keys, rows_of_step, stream
from mdtrap_jax.methods.method import AdaptState, Work
from mdtrap_jax.methods.text_classifier import Prepared, TextClassifier, float32
from mdtrap_jax.methods.tuning.parameterization import Trained
from mdtrap_jax.models import sharding
from mdtrap_jax.models.chunks import in_chunks
from mdtrap_jax.models.transformer import LARGE
from mdtrap_jax.models.vlm import Params
from mdtrap_jax.objectives.chain import Phase, evaluation_marks
from mdtrap_jax.objectives.pull_back import zero_cotangents
from mdtrap_jax.objectives.term import Batch, Features

CPU_ROWS = 2048  # tokens per step that keep a CPU core busy; more leave its caches
CPU_COPIES = 32  # of an encoder's activations: more than a step ever needed on a CPU
# What a step of a large encoder keeps, by a TPU's compiler and on a GPU 11 to 13, of a small one's
# all that a CPU keeps. A guess that is too high is the dearer one.
LIKELY_COPIES = 14


class StepRows(NamedTuple):
  """What one step encodes."""

  tokens: jax.Array  # [B, S, W], or [B, D] of a fixed encoder
  clean: jax.Array | None  # likewise, of the clean images; None where no term needs them
  batch: Batch


@dataclasses.dataclass(frozen=True, eq=False)  # compiled programs are kept by identity
class FineTuning(TextClassifier):
  """The static description of how episodes are adapted; its methods are pure.

  Attributes:
    tx: the objective chain of `objectives.chain.make_objective`.
    steps: `T`.
    phases: of the schedule, from `objectives.chain.make_phases`.
    views: `V`, how many of the view recipes are used.
    batch_size: views per step, or `None` for all `N`.
    fifths: of the steps, after which the queries are classified.
    patches: whether steps give patch tokens too, for terms that need them.
    terms: of the objective, each by itself, for looking at them one by one.
  """

  tx: optax.GradientTransformationExtraArgs
  steps: int
  phases: tuple[Phase, ...]
  views: int = 5
  batch_size: int | None = None
  fifths: tuple[int, ...] = (1, 2, 3, 4, 5)
  patches: bool = False
  terms: Mapping[str, optax.GradientTransformationExtraArgs] = dataclasses.field(
    default_factory=dict
  )

  @property
  def marks(self) -> tuple[int, ...]:
    """`T/5, 2T/5, …, T`, where the reference logs accuracy, or some of them."""
    return evaluation_marks(self.steps, self.fifths)

  def needed(self, params: Params, shards: int = 1) -> Params:
    """The model's parameters without those of a text encoder that stays as it is.

    Its embeddings come with the episodes, so that its weights need no memory while they run.

    Args:
      params: of the model, arrays or their shapes.
      shards: between how many devices the weights of the blocks are split.
    """
    needed, encoders = {}, self.parameterization.encoders
    weights = functools.partial(self.parameterization.weights, self.model)
    abstract = isinstance(jax.tree.leaves(params)[0], jax.ShapeDtypeStruct)
    params = jax.eval_shape(weights, params) if abstract else weights(params)
    for name, leaf in params.items():
      if name in ("image", *encoders):
        leaf = leaf | {"blocks": sharding.split(leaf["blocks"], shards)}
      if name != "text" or "text" in encoders:
        needed[name] = leaf
    return needed

  def prepare(self, params: Params, task: Task) -> tuple[Prepared, AdaptState]:
    """Draws the views and computes what never changes of the images.

    Args:
      params: of the model.
      task: one episode, its images uint8.

    Returns:
      The fixed part and the state before step 0; all views, `[N, ...]`, are view-major.
    """
    mean, std = self.model.image_mean, self.model.image_std
    dtype = params["image"]["stem"]["position"].dtype
    key = episode_key(task.seed, task.number)
    views = make_views(stream(key, "views"), task.support, self.views)
    images = normalize(views, mean, std, dtype)
    query = normalize(task.query, mean, std, dtype)
    return self.prepare_images(
      params,
      images,
      query,
      key=key,
      labels=task.support_labels,
      query_labels=task.query_labels,
      token_ids=task.token_ids,
      text=task.text,
    )

  def prepare_images(
    self,
    params: Params,
    views: jax.Array,
    query: jax.Array,
    *,
    key: jax.Array,
    labels: jax.Array,
    query_labels: jax.Array,
    token_ids: jax.Array,
    text: jax.Array,
  ) -> tuple[Prepared, AdaptState]:
    """`prepare` from normalized images: `views [V, M, S, S, 3]`, `query [C·Q, S, S, 3]`."""
    num_views, clean = views.shape[:2]
    embed = functools.partial(self.parameterization.embed_image, self.model, params)
    batch = Batch(
      labels=jnp.tile(labels, num_views),
      views=jnp.repeat(jnp.arange(num_views, dtype=jnp.int32), clean),
      clean_labels=labels,
    )
    prepared = Prepared(
      key=key,
      tokens=embed(views.reshape(num_views * clean, *views.shape[2:]), patches=self.patches),
      batch=batch,
      query_tokens=embed(query),
      query_labels=query_labels,
      token_ids=token_ids,
      text=text,
    )
    start = self.parameterization.init(self.model, params, stream(key, "lora"), token_ids)
    return prepared, self.init(start)

  def init(self, trained: Trained) -> AdaptState:
    """The state before step 0."""
    return AdaptState(trained, self.tx.init(trained), jnp.zeros((), jnp.int32))

  def run(
    self,
    params: Params,
    prepared: Prepared,
    state: AdaptState,
    start: jax.Array,
    stop: jax.Array,
    *,
    clean: bool,
  ) -> AdaptState:
    """Steps `start … stop-1`.

    Args:
      params: of the model.
      prepared: the episode's fixed part.
      state: after step `start-1`.
      start: `[] int32`; shared by all episodes, as `stop` is, so that one compiled program
        serves every segment.
      stop: `[] int32`.
      clean: whether the clean pass runs; static.
    """
    step = lambda t, s: self.step(params, prepared, s, t, clean=clean)
    return jax.lax.fori_loop(start, stop, step, state)

  def step(
    self,
    params: Params,
    prepared: Prepared,
    state: AdaptState,
    step: jax.Array,
    *,
    clean: bool,
  ) -> AdaptState:
    """One fine-tuning step: encode, terms, one pull-back, optimizer.

    A step that would leave a parameter non-finite is not taken: the episode keeps its last
    finite state and reports `non-finite`.
    """
    forward = self.forward(params, prepared, state, step, clean=clean)
    zeros = zero_cotangents(forward["features"])
    updates, opt_state = self.tx.update(zeros, state.opt_state, state.params, **forward)
    trained = optax.apply_updates(state.params, updates)
    finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(trained)]).all()
    alive = finite & (state.status == 0)
    proposed = AdaptState(trained, opt_state, state.status)
    frozen = state._replace(status=jnp.ones((), jnp.int32))
    return jax.tree.map(lambda new, old: jnp.where(alive, new, old), proposed, frozen)

  def forward(
    self,
    params: Params,
    prepared: Prepared,
    state: AdaptState,
    step: jax.Array,
    *,
    clean: bool,
  ) -> dict[str, Any]:
    """What the chain takes of a step: `features`, `features_vjp`, `batch`, `key` and `step`."""
    rows = self._rows(params, prepared, step, clean)
    dropout = stream(prepared.key, "dropout", step)

    def encode(trained):
      return self._features(params, prepared, trained, rows, dropout)

    features, features_vjp = jax.vjp(encode, state.params)
    key = stream(prepared.key, "terms", step)
    return dict(features=features, batch=rows.batch, key=key, step=step, features_vjp=features_vjp)

  def work(self, params: Params, task: Task, variants: int) -> Work:
    """See `method.Work`: a number of token rows; a large encoder has all cores to itself."""
    support = task.support.shape[0]
    images = jax.ShapeDtypeStruct((self.views * support, *task.support.shape[1:]), jnp.uint8)
    embed = functools.partial(self._embed, patches=self.patches)
    embedded = jax.eval_shape(embed, params, images)
    clean = any(phase.clean for phase in self.phases)
    views, again = len(embedded), clean * support
    text_tokens = self.parameterization.text_tokens
    rows = {  # of each encoder that may run in the steps, the number of its tokens
      "image": (self.model.image, (views + again) * self.model.image.tokens),
      "text": (self.model.text, text_tokens(self.model, task.token_ids.shape)),
    }
    running = [rows[name] for name in self.parameterization.encoders]
    tokens = variants * sum(count for _, count in running)
    activations = variants * sum(one.depth * count * one.width for one, count in running)
    activations *= embedded.dtype.itemsize
    large = embedded.size >= LARGE
    part = min(1.0, (self.chunk or views + again) / (views + again))
    return Work(
      each=max(1, CPU_ROWS // tokens),
      size=CPU_COPIES * activations,
      alone=large,
      likely=int((LIKELY_COPIES if large else CPU_COPIES) * part * activations),
    )

  def smaller(self, task: Task) -> FineTuning | None:
    """The same with half as many support rows encoded at once."""
    rows = task.support.shape[0] * (self.views + 1)
    chunk = (self.chunk or rows) // 2
    return dataclasses.replace(self, chunk=chunk) if chunk else None

  def _rows(self, params: Params, prepared: Prepared, step: jax.Array, clean: bool) -> StepRows:
    """The views of one step: all, or the next batch of this epoch's random order."""
    del params
    tokens, batch = prepared.tokens, prepared.batch
    clean_tokens = tokens[: prepared.batch.clean_labels.shape[0]] if clean else None
    size, total = self.batch_size, tokens.shape[0]
    if size is not None and size < total:
      rows = rows_of_step(prepared.key, step, size, total)
      tokens = tokens[rows]
      batch = batch._replace(labels=batch.labels[rows], views=batch.views[rows])
    return StepRows(tokens, clean_tokens, batch)

  def _features(
    self,
    params: Params,
    prepared: Prepared,
    trained: Trained,
    rows: StepRows,
    dropout: jax.Array,
  ) -> Features:
    """The embeddings of one step, in at least float32."""
    count, tokens = rows.tokens.shape[0], rows.tokens
    image_key, text_key = jax.random.split(dropout)
    if rows.clean is not None:  # the clean images again: dropout masks of their own
      tokens = jnp.concatenate([tokens, rows.clean])
    if "image" in self.parameterization.encoders or self.patches:
      encode = functools.partial(self.parameterization.encode_image, self.model, params)
      tokens = in_chunks(
        lambda rows, keys: encode(rows, trained, keys, self.patches),
        self.chunk,
        tokens,
        row_keys(image_key, len(tokens)),
      )
    image, patches = jax.tree.map(float32, tokens if self.patches else (tokens, None))
    views = lambda x: None if x is None else x[:count]
    clean = lambda x: None if x is None or rows.clean is None else x[count:]
    text = self._text(params, prepared, trained, text_key)
    return Features(views(image), clean(image), text, views(patches), clean(patches))
