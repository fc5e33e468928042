"""From a checkpoint to a model and its parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mdtrap_jax.checkpoints import clip
from mdtrap_jax.checkpoints.arrays import in_memory, without_prefix
from mdtrap_jax.checkpoints.convert import convert, parameter_shapes
from mdtrap_jax.checkpoints.layout import Checkpoint, Description, Layout
from mdtrap_jax.checkpoints.positions import resample
from mdtrap_jax.checkpoints.source import open_checkpoint
from mdtrap_jax.models import tokenizers
from mdtrap_jax.models.families import FAMILIES
from mdtrap_jax.models.vlm import VisionLanguageModel

LAYOUTS: tuple[Layout, ...] = (*clip.LAYOUTS,)
_QUANTIZED = ("qweight", "qzeros", "SCB", "weight_scale", "absmax", "weight_format")


Tokenize = Callable[[Sequence[str]], np.ndarray]  # n texts to ids [n, L] int32


def load(
    source: str | Path, *, dtype: Any = jnp.float32, image_size: int | None = None,
    tokenize: Tokenize | None = None,
) -> tuple[VisionLanguageModel, Any]:
  """Loads published weights.

  Args:
    source: a Hugging Face hub name, a named size such as "clip-vit-b16", a local folder or a
      local file.
    dtype: of the weights; scalars stay in at least float32.
    image_size: in pixels, where it is not the checkpoint's own; the position embeddings are
      then resampled as the original does it.
    tokenize: used instead of the tokenizer whose files belong to the checkpoint.

  Returns:
    The model and its parameters, on the default device.

  Raises:
    FileNotFoundError: no such checkpoint, or its config or tokenizer files are missing.
    ValueError: the file is damaged, of an unknown layout, or its arrays do not fit.
  """
  checkpoint = open_checkpoint(source)
  layout = find_layout(checkpoint)
  checkpoint = checkpoint._replace(arrays=normalized(checkpoint.arrays))
  description = layout.describe(checkpoint)
  text = description.text
  if tokenize is None:
    tokenize = tokenizers.from_folder(
        checkpoint.folder, layout.family, context_length=text.context_length,
        vocabulary_size=text.vocabulary_size)
  model = assemble(description, str(source), tokenize)
  params = fill(model, checkpoint, layout, description, dtype)
  return resized(model, params, layout, image_size)


def from_openai(
    flat: Mapping[str, np.ndarray],
    *,
    dtype: Any = jnp.float32,
    image_heads: int | None = None,
    text_heads: int | None = None,
    activation: str = "quick_gelu",
    tokenize: Tokenize | None = None,
) -> tuple[VisionLanguageModel, Any]:
  """A CLIP from arrays in memory under OpenAI's state-dict names.

  Args:
    flat: arrays by name; sizes follow from their shapes.
    dtype: of the weights; float64 needs `jax_enable_x64`.
    image_heads: where it is not the image width divided by 64.
    text_heads: where it is not the text width divided by 64.
    activation: of the MLPs.
    tokenize: texts to ids; without it words are hashed.

  Raises:
    ValueError: arrays that do not fit, all named.
  """
  layout = LAYOUTS[0]
  checkpoint = Checkpoint(normalized(in_memory(flat)), "state dict")
  for name in layout.markers:
    checkpoint.shape(name)
  image, text = clip.openai_configs(
      checkpoint.arrays, activation=activation, image_heads=image_heads,
      text_heads=text_heads)
  family = FAMILIES[layout.family]
  description = Description(image, text, family.image_mean, family.image_std)
  if tokenize is None:
    tokenize = tokenizers.HashTokenizer(text.vocabulary_size, text.context_length)
  model = assemble(description, "openai", tokenize)
  return model, fill(model, checkpoint, layout, description, dtype)


def find_layout(checkpoint: Checkpoint) -> Layout:
  """The published layout that the arrays' names are of.

  Raises:
    ValueError: quantized weights, or none of the known layouts.
  """
  quantized = [name for name in checkpoint.arrays if name.rsplit(".", 1)[-1] in _QUANTIZED]
  if quantized or "quantization_config" in (checkpoint.config or {}):
    raise ValueError(
        f"{checkpoint.source} is quantized ({', '.join(quantized[:3]) or 'see config.json'}); "
        "quantized weights cannot be fine-tuned, use the original release.")
  arrays = normalized(checkpoint.arrays)
  for layout in LAYOUTS:
    if layout.fits(arrays):
      return layout
  some = ", ".join(list(checkpoint.arrays)[:4])
  raise ValueError(
      f"{checkpoint.source}: no known layout of {', '.join(sorted(FAMILIES))}; its arrays are "
      f"named {some}, … . Give a checkpoint with both encoders of one of these families.")


def normalized(arrays: Any) -> Any:
  """Without the prefix that distributed training puts before every name."""
  return without_prefix(arrays, "module.")


def assemble(
    description: Description, name: str, tokenize: Tokenize
) -> VisionLanguageModel:
  """The model that a checkpoint describes."""
  return VisionLanguageModel(
      name=name, image=description.image, text=description.text, tokenize=tokenize,
      image_mean=description.image_mean, image_std=description.image_std)


def fill(
    model: VisionLanguageModel, checkpoint: Checkpoint, layout: Layout,
    description: Description, dtype: Any,
) -> Any:
  """The model's parameters from the checkpoint's arrays."""
  shapes = parameter_shapes(model)
  return convert(
      checkpoint.arrays, layout.slots(description, shapes), shapes, dtype=dtype,
      ignored=layout.ignored, source=f"{checkpoint.source} ({layout.name})")


def resized(
    model: VisionLanguageModel, params: Any, layout: Layout, image_size: int | None
) -> tuple[VisionLanguageModel, Any]:
  """The same model for another input size, its image positions resampled."""
  if image_size is None or image_size == model.image.image_size:
    return model, params
  image = dataclasses.replace(model.image, image_size=image_size)
  stem = params["image"]["stem"]
  position = np.asarray(stem["position"])
  first = int(image.class_token)
  grid = resample(position[first:].astype(np.float64), image.grid, layout.resample)
  position = np.concatenate([position[:first], grid.astype(position.dtype)])
  stem = {**stem, "position": jax.device_put(position)}
  params = {**params, "image": {**params["image"], "stem": stem}}
  return dataclasses.replace(model, image=image), params
