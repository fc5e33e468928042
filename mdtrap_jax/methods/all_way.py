"""Adapting to all classes of a data set at once, where a support set is many times a step.

`FineTuning` keeps all views of an episode as tokens and uses them in every step. Here the images
stay bytes, a step takes a minibatch of them, and their augmentations are made in the step.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mdtrap_jax.data.crops import random_crops
from mdtrap_jax.data.task import Task
from mdtrap_jax.data.views import view_rows
from mdtrap_jax.keys import episode_key, rows_of_step, stream
from mdtrap_jax.methods.finetune import FineTuning, StepRows
from mdtrap_jax.methods.method import AdaptState, Work
from mdtrap_jax.methods.text_classifier import Prepared
from mdtrap_jax.models.transformer import LARGE
from mdtrap_jax.models.vlm import Params
from mdtrap_jax.objectives.term import Batch

AUGMENTATIONS = ("crops", "views")


@dataclasses.dataclass(frozen=True, eq=False)  # compiled programs are kept by identity
class AllWay(FineTuning):
  """`FineTuning` in minibatches of `B = batch_size` images, or all `M` where these are fewer.

  The clean pass of a step is over the images of its minibatch; see
  `objectives.relation_alignment.add_relation_alignment_in_minibatches`.

  Attributes:
    augmentation: "crops", drawn anew in every step, or "views", the `V` fixed views of an episode.
    evaluated: images that are classified at once.
  """

  augmentation: str = "crops"
  evaluated: int = 64

  def prepare(self, params: Params, task: Task) -> tuple[Prepared, AdaptState]:
    """The images as they are, and the state before step 0.

    Args:
      params: of the model.
      task: `M` support images uint8 of all `C` classes, and images of any number to look at
        meanwhile.
    """
    key = episode_key(task.seed, task.number)
    labels = task.support_labels
    prepared = Prepared(
      key=key,
      tokens=task.support,
      batch=Batch(labels=labels, views=jnp.zeros_like(labels), clean_labels=labels),
      query_tokens=task.query,
      query_labels=task.query_labels,
      token_ids=task.token_ids,
      text=task.text,
    )
    start = self.parameterization.init(self.model, params, stream(key, "lora"), task.token_ids)
    return prepared, self.init(start)

  def _rows(self, params: Params, prepared: Prepared, step: jax.Array, clean: bool) -> StepRows:
    """The next minibatch of this epoch's random order, augmented."""
    images, labels = prepared.tokens, prepared.batch.labels
    copies = self.views if self.augmentation == "views" else 1
    total = copies * len(images)
    rows = rows_of_step(prepared.key, step, min(self.batch_size or total, total), total)
    views, numbers = rows // len(images), rows % len(images)
    drawn = images[numbers]
    if self.augmentation == "views":
      changed = view_rows(stream(prepared.key, "views"), drawn, views, numbers)
    else:
      changed = random_crops(stream(prepared.key, "views", step), drawn)
    batch = Batch(labels[numbers], views, labels[numbers], numbers)
    embed = lambda pixels: self._embed(params, pixels, self.patches)
    return StepRows(embed(changed), embed(drawn) if clean else None, batch)

  def _query_cosines(self, params, prepared, trained, text):
    pixels = prepared.query_tokens
    classify = lambda image: self.pixel_cosines(params, image[None], trained, text)[0]
    return jax.lax.map(classify, pixels, batch_size=min(self.evaluated, max(len(pixels), 1)))

  def work(self, params: Params, task: Task, variants: int) -> Work:
    """See `method.Work`: a step has the rows of a minibatch, twice where clean images go along."""
    rows = min(self.batch_size or len(task.support), len(task.support)) * variants
    rows *= 1 + any(phase.clean for phase in self.phases)
    image = self.model.image
    return Work(each=1, size=None, alone=rows * image.tokens * image.width >= LARGE)

  def smaller(self, task: Task) -> AllWay | None:
    """The same with half as many rows encoded at once."""
    rows = 2 * min(self.batch_size or len(task.support), len(task.support))
    chunk = (self.chunk or rows) // 2
    return dataclasses.replace(self, chunk=chunk) if chunk else None
