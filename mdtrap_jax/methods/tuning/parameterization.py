"""What is trained of a model: the protocol by which fine-tuning knows it.

A parameterization says which numbers an episode owns, what of the encoders never changes
meanwhile and is computed once, and what the encoders give with these numbers. All of it is pure
and written for one episode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save as to_safetensors

from mdtrap_jax.checkpoints.formats.safetensors_file import open_safetensors
from mdtrap_jax.data.prompts import make_prompts
from mdtrap_jax.models.vlm import Params, VisionLanguageModel

WEIGHTS = "tuned.safetensors"
Trained = Any  # a pytree of float32 arrays, which an episode owns


class Parameterization:
  """A frozen dataclass of settings; what is not said otherwise holds for fixed encoders.

  Attributes:
    encoders: of `image` and `text`, those that depend on what is trained and run in each step.
    pretrained_start: whether the model before the first step is the pretrained one.
  """

  encoders: tuple[str, ...] = ()
  pretrained_start: bool = True

  def check(self, model: VisionLanguageModel) -> None:
    """Refuses a model that has not what would be trained.

    Raises:
      ValueError: names the field, its value and the remedy.
    """

  def token_ids(
    self, model: VisionLanguageModel, class_names: Sequence[str], template: str | Sequence[str]
  ) -> np.ndarray:
    """`[C·P, L] int32`, what the text encoder reads in the steps, for `P` templates.

    Args:
      model: whose texts they are.
      class_names: `C` of them.
      template: of the pretrained model's prompts, or several.

    Raises:
      ValueError: a name that does not fit.
    """
    return model.tokenize(make_prompts(class_names, template))

  def weights(self, model: VisionLanguageModel, params: Params) -> Params:
    """The frozen weights that the steps use, before they are split between devices."""
    del model
    return params

  def init(
    self, model: VisionLanguageModel, params: Params, key: jax.Array, token_ids: jax.Array
  ) -> Trained:
    """What is trained, before the first step.

    Args:
      model: that is adapted.
      params: of the model, from `weights`.
      key: typed key; consumed.
      token_ids: `[C, L]`, or `[C, P, L]` for `P` templates, of the episode's classes.
    """
    raise NotImplementedError

  def embed_image(
    self, model: VisionLanguageModel, params: Params, images: jax.Array, patches: bool = False
  ) -> jax.Array:
    """What stays the same of normalized images `[B, H, W, 3]`: tokens `[B, S, W]`.

    Where the image encoder is fixed, that is all of it: embeddings `[B, D]`, or with `patches`,
    which `encode_image` is then asked for, the last block's tokens.
    """
    if patches:
      return model.embed_image(params, images, stop=model.image.depth)
    return model.encode_image(params, images)

  def encode_image(
    self,
    model: VisionLanguageModel,
    params: Params,
    tokens: jax.Array,
    trained: Trained | None,
    key: jax.Array | None = None,
    patches: bool = False,
  ) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Embeddings `[B, D]`, not normalized.

    Args:
      model: that is adapted.
      params: of the model, from `weights`.
      tokens: from `embed_image`.
      trained: the episode's own, or `None` for the pretrained model.
      key: typed key of dropout, or one for each row, `[B]`; consumed. `None` for none.
      patches: whether patch tokens `[B, P, W]` come along, as a pair with the embeddings; see
        `VisionLanguageModel.encode_image_tokens`.
    """
    del trained, key
    if tokens.ndim == 2:
      return tokens
    return model.encode_image_tokens(params, tokens, start=model.image.depth, patches=patches)

  def encode_text(
    self,
    model: VisionLanguageModel,
    params: Params,
    token_ids: jax.Array,
    trained: Trained,
    key: jax.Array | None = None,
    chunk: int | None = None,
  ) -> jax.Array:
    """Embeddings `[B, D]`, not normalized, of token ids `[B, L]`; only for trained encoders.

    Args:
      model: that is adapted.
      params: of the model, from `weights`.
      token_ids: of the episode's classes, in their order.
      trained: the episode's own.
      key: typed key of dropout; consumed. `None` for none.
      chunk: how many rows are encoded at once, where rows do not depend on each other's draws.
    """
    raise NotImplementedError

  def text_tokens(self, model: VisionLanguageModel, shape: tuple[int, ...]) -> int:
    """How many tokens the text encoder computes of token ids of `shape`, `[…, L]`."""
    del model
    return math.prod(shape)

  def save(
    self, model: VisionLanguageModel, trained: Trained, base: str, fingerprint: str | None = None
  ) -> dict[str, bytes]:
    """Files that hold what was trained, by name.

    Args:
      model: that is adapted.
      trained: NumPy arrays.
      base: name of the pretrained model.
      fingerprint: of it.
    """
    del model, base, fingerprint
    arrays = {name: np.ascontiguousarray(leaf) for name, leaf in _flatten(trained)}
    return {WEIGHTS: to_safetensors(arrays)}

  def export(
    self,
    model: VisionLanguageModel,
    params: Params,
    trained: Trained,
    base: str,
    fingerprint: str | None = None,
  ) -> dict[str, bytes]:
    """Files by which the library `peft` adapts the pretrained model, by name.

    Raises:
      ValueError: it has no such thing.
    """
    del model, params, trained, base, fingerprint
    raise ValueError(
      f"{type(self).__name__} is no LoRA, and peft has no adapter of it: hand on the folder itself."
    )

  def load(self, folder: Path, model: VisionLanguageModel, classes: int) -> Trained:
    """What `save` wrote.

    Args:
      folder: where the files are.
      model: that is adapted.
      classes: `C`.

    Raises:
      OSError, ValueError: they are not there, damaged, or of other settings.
    """
    stored = open_safetensors(folder / WEIGHTS)
    expected = jax.eval_shape(
      lambda key: self.init(
        model,
        self.weights(model, model.init(key)),
        key,
        jnp.zeros((classes, model.text.context_length), jnp.int32),
      ),
      jax.random.key(0),
    )
    names = dict(_flatten(expected))
    if stored.keys() != names.keys():
      odd = min(stored.keys() ^ names.keys())
      raise ValueError(f"{folder / WEIGHTS} does not fit what is trained: see {odd}.")
    arrays = [stored[name].read() for name in names]
    for (name, leaf), array in zip(names.items(), arrays, strict=True):
      if leaf.shape != array.shape:
        raise ValueError(
          f"{folder / WEIGHTS}: {name} has shape {array.shape}, expected {leaf.shape}."
        )
    return jax.tree.unflatten(jax.tree.structure(expected), arrays)

  def merge(self, model: VisionLanguageModel, params: Params, trained: Trained) -> Params:
    """The weights of a model that computes what the adapted one does.

    Raises:
      ValueError: there is no such model of the same architecture.
    """
    del model, params, trained
    raise ValueError(
      f"{type(self).__name__} trains tokens, which no model of the same architecture holds: hand "
      "on the folder itself."
    )


def _flatten(trained: Trained) -> list[tuple[str, Any]]:
  """Leaves and their names, such as `image.norm1.scale`."""
  leaves, _ = jax.tree.flatten_with_path(trained)
  return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in leaves]
