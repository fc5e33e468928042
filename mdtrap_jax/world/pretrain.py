"""Pretraining of the miniature on generated scenes, as a method of one task.

The batch of a step follows from the seed and the step's number alone. The task's queries are
held-out scenes; they are classified as few-shot episodes are before adaptation, zero-shot.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mdtrap_jax.data.task import Task
from mdtrap_jax.data.views import normalize
from mdtrap_jax.methods.method import AdaptState, Evaluation, Work
from mdtrap_jax.models.image_stem import ImageStem
from mdtrap_jax.models.text_stem import TextStem
from mdtrap_jax.models.transformer import run_blocks
from mdtrap_jax.models.vlm import Params, VisionLanguageModel
from mdtrap_jax.objectives.chain import Phase
from mdtrap_jax.objectives.losses import unit
from mdtrap_jax.world import VOCABULARY, sample_batch, zero_shot
from mdtrap_jax.world.scenes import BACKGROUNDS, COLORS, SHAPES, SIZES, TEXTURES

CPU_COPIES = 32  # of an encoder's activations: more than a step ever needed on a CPU


class Metrics(NamedTuple):
  """Of one step, or of all steps, `[T]`."""

  loss: jax.Array  # [] float32
  accuracy: jax.Array  # [] float32, how often the own caption (and image) scores highest


@dataclasses.dataclass(frozen=True, eq=False)  # compiled programs are kept by identity
class Pretraining:
  """The static description of a pretraining; its methods are pure.

  It starts from nothing: the methods' `params` are empty, and what is trained is the whole model.
  `AdaptState.opt_state` is `{"optimizer": …, "curve": Metrics [T]}`, 0 for steps to come.

  Attributes:
    model: what is trained.
    tx: the optimizer.
    steps: `T`.
    marks: steps after which the held-out scenes are classified.
    batch_size: pairs of image and caption in a step.
    seed: of the start, and of the pairs of each step.
    max_scale: of the learned logit scale.
    episodes: into the task's queries.
    sample: draws the pairs of a step, as `world.sample_batch` does.
  """

  model: VisionLanguageModel
  tx: optax.GradientTransformation
  steps: int
  marks: tuple[int, ...]
  batch_size: int
  seed: int
  max_scale: float
  episodes: zero_shot.Episodes
  sample: Callable[[jax.Array, int], tuple[jax.Array, jax.Array]] = sample_batch

  baseline = None  # the untrained model is the evaluation before the first step

  @property
  def phases(self) -> tuple[Phase, ...]:
    """All steps are alike."""
    return (Phase(0, self.steps, False),)

  def needed(self, params: Any, shards: int = 1) -> Any:
    """Nothing: see `Pretraining`."""
    return params

  def prepare(self, params: Any, task: Task) -> tuple[Task, AdaptState]:
    """The held-out scenes as they are, and the untrained model.

    Args:
      params: empty.
      task: `query` `[Q, S, S, 3] uint8`, and `token_ids` `[C, L]` of all their classes' prompts.
    """
    params = self.model.init(jax.random.fold_in(jax.random.key(self.seed), 2**31))
    # Without weak types, so that the first segment's program serves the others.
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype), params)
    curve = Metrics(jnp.zeros(self.steps), jnp.zeros(self.steps))
    opt_state = {"optimizer": self.tx.init(params), "curve": curve}
    return task, AdaptState(params, opt_state, jnp.zeros((), jnp.int32))

  def run(
    self, params: Any, prepared: Task, state: AdaptState, start: Any, stop: Any, *, clean: bool
  ) -> AdaptState:
    """Steps `start … stop-1`, rendering included; see `methods.method.Method`."""
    return jax.lax.fori_loop(start, stop, self.step, state)

  def step(self, step: jax.Array, state: AdaptState) -> AdaptState:
    """One step: draw pairs, contrast them, update; a loss that is not finite sets the status."""
    key = jax.random.fold_in(jax.random.key(self.seed), step)
    images, ids = self.sample(key, self.batch_size)

    def loss(params):
      image, text = encode(self.model, params, images, ids)
      scale = self.model.logit_scale(params)
      metrics = contrastive_loss(image, text, caption_facts(ids), scale)
      return metrics.loss, metrics

    gradient, metrics = jax.grad(loss, has_aux=True)(state.params)
    updates, optimizer = self.tx.update(gradient, state.opt_state["optimizer"], state.params)
    params = optax.apply_updates(state.params, updates)
    params["logit_scale"] = jnp.minimum(params["logit_scale"], math.log(self.max_scale))
    curve = jax.tree.map(lambda all, one: all.at[step].set(one), state.opt_state["curve"], metrics)
    status = jnp.where(jnp.isfinite(metrics.loss), state.status, 1)
    return AdaptState(params, {"optimizer": optimizer, "curve": curve}, status)

  def evaluate(self, params: Any, prepared: Task, state: AdaptState) -> Evaluation:
    """Zero-shot accuracy, the mean over the episodes."""
    image = zero_shot.encode_image(self.model, state.params, prepared.query)
    text = unit(self.model.encode_text(state.params, prepared.token_ids))
    scores = zero_shot.scores(image @ text.T, self.episodes)  # [E, C, Q, C]
    correct = jnp.argmax(scores, axis=-1) == jnp.arange(scores.shape[1])[None, :, None]
    return Evaluation(jnp.mean(correct), scores.reshape(-1, scores.shape[-1]), {})

  def work(self, params: Any, task: Task, variants: int) -> Work:
    """See `methods.method.Work`: the activations of a step or of an evaluation."""
    rows = max(self.batch_size, task.query.shape[0])
    encoders = (self.model.image.tokens, self.model.image), (
      self.model.text.context_length, self.model.text,
    )  # fmt: skip
    size = sum(4 * rows * tokens * encoder.width * encoder.depth for tokens, encoder in encoders)
    return Work(each=1, size=CPU_COPIES * size, alone=True)

  def smaller(self, task: Task) -> None:
    """There is no such thing."""


def caption_facts(ids: jax.Array) -> jax.Array:
  """What captions say: `[B, 2·words] float32`, 1 for each attribute named.

  A word before "background" counts as another one than the same word elsewhere; how a caption
  begins ("a photo of a") does not count.

  Args:
    ids: `[B, L] int32`.
  """
  words = len(VOCABULARY)
  named = {*SHAPES, *TEXTURES, *COLORS, *BACKGROUNDS, *SIZES}
  counts = jnp.asarray([word in named for word in VOCABULARY], jnp.float32)
  following = jnp.concatenate([ids[:, 1:], jnp.zeros_like(ids[:, :1])], axis=1)
  place = ids + words * (following == VOCABULARY.index("background"))
  return jnp.sum(jax.nn.one_hot(place, 2 * words) * counts[ids][..., None], axis=1)


def contrastive_loss(
  image: jax.Array, text: jax.Array, facts: jax.Array, scale: jax.Array
) -> Metrics:
  """CLIP's symmetric cross-entropy, without the negatives that are none.

  Captions leave attributes out, so within a batch some are equal and many are true of several
  images: "a photo of a red object" of every red one. CLIP's loss would push such an image and
  caption apart as if the caption were wrong. Here caption `j` is no negative of image `i`, in
  either direction, if all it says is also said by caption `i`; equal captions are so in
  particular. What caption `i` leaves out is not known, and can still make a false negative.

  Args:
    image: `[B, D]`, unit norm.
    text: `[B, D]`, unit norm; row `i` is the caption of image `i`.
    facts: `[B, F]`, 1 where a caption states a fact, else 0.
    scale: `[]`, of the cosines.
  """
  logits = scale * image @ text.T
  own = jnp.eye(len(logits), dtype=bool)
  true_of = facts @ facts.T == jnp.sum(facts, axis=1)[None, :]
  logits = jnp.where(true_of & ~own, -jnp.inf, logits)
  labels = jnp.arange(len(logits))
  both = [
    optax.softmax_cross_entropy_with_integer_labels(part, labels) for part in (logits, logits.T)
  ]
  best = [jnp.argmax(part, axis=1) == labels for part in (logits, logits.T)]
  return Metrics(jnp.mean(jnp.stack(both)), jnp.mean(jnp.stack(best)))


def encode(
  model: VisionLanguageModel, params: Params, images: jax.Array, ids: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Unit-norm embeddings `[B, D]` of uint8 images and of word ids.

  As the model's own methods, but block by block: the compiler then unrolls the loop over
  blocks, which saves a quarter of a step's time on a CPU.
  """

  def blocks(encoder, config, tokens):
    for block in range(config.depth):
      tokens = run_blocks(encoder["blocks"], tokens, config.block, start=block, stop=block + 1)
    return tokens

  images = normalize(images, model.image_mean, model.image_std)
  tokens = blocks(params["image"], model.image, model.embed_image(params, images))
  stem, variables = ImageStem(model.image), {"params": params["image"]["stem"]}
  image = stem.apply(variables, tokens, method="pool")
  stem, variables = TextStem(model.text), {"params": params["text"]["stem"]}
  tokens = blocks(params["text"], model.text, stem.apply(variables, ids, method="embed"))
  text = stem.apply(variables, tokens, ids, method="pool")
  return unit(image), unit(text)


def make_optimizer(
  *,
  steps: int,
  learning_rate: float,
  warmup_steps: int,
  weight_decay: float,
  b1: float,
  b2: float,
  clip_norm: float,
) -> optax.GradientTransformation:
  """AdamW with clipped gradients, warm-up and cosine; only matrices decay."""
  schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup_steps, steps)
  is_matrix = functools.partial(
    jax.tree_util.tree_map_with_path, lambda path, _: path[-1].key == "kernel"
  )
  return optax.chain(
    optax.clip_by_global_norm(clip_norm),
    optax.adamw(schedule, b1, b2, weight_decay=weight_decay, mask=is_matrix),
  )
