"""A vision-language model as a classifier: images are told apart by their cosines to texts.

As it was published, or with what was trained of it; `methods.finetune` says how that is learned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mdtrap_jax.data.views import normalize
from mdtrap_jax.methods import text_gap
from mdtrap_jax.methods.method import AdaptState, Embeddings, Evaluation
from mdtrap_jax.methods.tuning.parameterization import Parameterization, Trained
from mdtrap_jax.models.vlm import Params, VisionLanguageModel
from mdtrap_jax.objectives.losses import unit
from mdtrap_jax.objectives.term import Batch


class Prepared(NamedTuple):
  """What stays the same in all steps of an episode, computed once."""

  key: jax.Array  # [] typed key
  # [N, S, W], support views as far as they never change, view-major; [N, D] of a fixed encoder
  tokens: jax.Array
  batch: Batch  # rows of `tokens`
  query_tokens: jax.Array  # [C·Q, S, W], likewise
  query_labels: jax.Array  # [C·Q] int32
  token_ids: jax.Array  # [C, L] int32, or [C, P, L] for P templates
  text: jax.Array  # [C, D] float32, by the pretrained model


@dataclasses.dataclass(frozen=True, eq=False)
class TextClassifier:
  """What an adapted model gives for images and texts; its methods are pure.

  Attributes:
    model: the vision-language model; its weights are the methods' `params`.
    parameterization: what is trained of it; its state is the methods' `trained`, `None` for the
      pretrained model.
    chunk: how many rows are encoded at once, or `None` for all. Fewer need less memory and one
      more forward pass; the result is the same but for rounding.
    diagnose: whether each evaluation has the extras of `methods.text_gap.diagnose`.
  """

  model: VisionLanguageModel
  parameterization: Parameterization
  chunk: int | None = dataclasses.field(default=None, kw_only=True)
  diagnose: bool = dataclasses.field(default=False, kw_only=True)

  @property
  def baseline(self) -> Callable[[Params, Prepared, AdaptState], Evaluation] | None:
    """Zero-shot, where that is not the evaluation before the first step."""
    return None if self.parameterization.pretrained_start else self._zero_shot

  def evaluate(self, params: Params, prepared: Prepared, state: AdaptState) -> Evaluation:
    """Classifies the queries by their cosine to the classes' texts, without dropout."""
    text = self._text(params, prepared, state.params, None)
    return self._classify(params, prepared, state.params, text)

  def _zero_shot(self, params: Params, prepared: Prepared, state: AdaptState) -> Evaluation:
    """The same by the pretrained model."""
    del state
    return self._classify(params, prepared, None, prepared.text)

  def cosines(
    self, params: Params, tokens: jax.Array, trained: Trained | None, text: jax.Array
  ) -> jax.Array:
    """`[B, C]` between images, as `Parameterization.embed_image` left them, and texts `[C, D]`."""
    image = self.parameterization.encode_image(self.model, params, tokens, trained)
    return _unit(image) @ _unit(text).T

  def pixel_cosines(
    self, params: Params, pixels: jax.Array, trained: Trained | None, text: jax.Array
  ) -> jax.Array:
    """`[B, C]` between images, uint8 `[B, S, S, 3]`, and texts `[C, D]`."""
    return self.cosines(params, self._embed(params, pixels), trained, text)

  def _embed(self, params, pixels, patches=False):
    """What never changes of uint8 images `[B, S, S, 3]`: tokens, or embeddings."""
    dtype = params["image"]["stem"]["position"].dtype
    images = normalize(pixels, self.model.image_mean, self.model.image_std, dtype)
    return self.parameterization.embed_image(self.model, params, images, patches)

  def _query_cosines(self, params, prepared, trained, text):
    return self.cosines(params, prepared.query_tokens, trained, text)

  def _classify(self, params, prepared, trained, text):
    cosines = self._query_cosines(params, prepared, trained, text)
    correct = jnp.argmax(cosines, axis=-1) == prepared.query_labels
    # A NaN row has an argmax too: it must not count as a hit.
    correct &= jnp.isfinite(cosines).all(-1)
    extras = {}
    if self.diagnose:
      extras = text_gap.diagnose(self._embeddings(params, prepared, trained, text))
    return Evaluation(correct.astype(jnp.float32).mean(), cosines, extras)

  def embeddings(
    self, params: Params, prepared: Prepared, state: AdaptState | None = None
  ) -> Embeddings:
    """Clean support images, queries and texts, without dropout.

    Args:
      params: of the model.
      prepared: the episode's fixed part.
      state: of the adapted model, or `None` for the pretrained one.
    """
    if state is None:
      return self._embeddings(params, prepared, None, prepared.text)
    text = self._text(params, prepared, state.params, None)
    return self._embeddings(params, prepared, state.params, text)

  def _embeddings(self, params, prepared, trained, text) -> Embeddings:
    labels = prepared.batch.clean_labels
    encode = lambda tokens: float32(
      self.parameterization.encode_image(self.model, params, tokens, trained)
    )
    return Embeddings(
      support=encode(prepared.tokens[: len(labels)]),
      support_labels=labels,
      query=encode(prepared.query_tokens),
      query_labels=prepared.query_labels,
      classes=text,
      scale=self.model.logit_scale(params),
    )

  def _text(self, params, prepared, trained, key):
    """`[C, D]`, recomputed where the text encoder is trained."""
    if "text" not in self.parameterization.encoders:
      return prepared.text
    return self.texts(params, prepared.token_ids, trained, key)

  def texts(
    self, params: Params, token_ids: jax.Array, trained: Trained, key: jax.Array | None = None
  ) -> jax.Array:
    """`[C, D]` by the trained text encoder, of `[C, L]` or of `P` templates `[C, P, L]`."""
    rows = token_ids.reshape(-1, token_ids.shape[-1])
    encode = self.parameterization.encode_text
    text = float32(encode(self.model, params, rows, trained, key, self.chunk))
    return text if token_ids.ndim == 2 else template_mean(text.reshape(*token_ids.shape[:2], -1))


def template_mean(text: jax.Array) -> jax.Array:
  """`[C, D]` from the embeddings `[C, P, D]` of `P` templates: the mean of unit vectors."""
  return unit(jnp.asarray(text)).mean(axis=1)


def float32(x: jax.Array) -> jax.Array:
  """In at least float32."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _unit(x: jax.Array) -> jax.Array:
  return unit(float32(x))
