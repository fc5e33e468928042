"""From a checkpoint to a model and its parameters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mdtrap_jax import buckets
from mdtrap_jax.checkpoints import merge
from mdtrap_jax.checkpoints.convert import convert, parameter_shapes
from mdtrap_jax.checkpoints.formats.arrays import Arrays, in_memory, normalized
from mdtrap_jax.checkpoints.layouts import clip, pe_core, siglip
from mdtrap_jax.checkpoints.layouts.foreign import find_foreign
from mdtrap_jax.checkpoints.layouts.layout import Checkpoint, Choices, Description, Layout
from mdtrap_jax.checkpoints.positions import resample
from mdtrap_jax.checkpoints.source import base_of, find_weights, fingerprint, open_checkpoint
from mdtrap_jax.checkpoints.tokenizer_files import Tokenize, read_tokenizer
from mdtrap_jax.models import MODELS
from mdtrap_jax.models.families.family import FAMILIES
from mdtrap_jax.models.tokenizers import HashTokenizer
from mdtrap_jax.models.vlm import VisionLanguageModel

# Where two know the same number of a checkpoint's names, the first is taken: PE-Core's tables
# contain CLIP's.
LAYOUTS: tuple[Layout, ...] = (*clip.LAYOUTS, *siglip.LAYOUTS, *pe_core.LAYOUTS)
_FIRST = {module.name.partition(".")[0] for layout in LAYOUTS for module in layout.table}
_QUANTIZED = ("qweight", "qzeros", "SCB", "weight_scale", "absmax", "weight_format")


def load(
  source: str | Path,
  *,
  dtype: Any = jnp.float32,
  image_size: int | None = None,
  tokenize: Tokenize | None = None,
) -> tuple[VisionLanguageModel, Any]:
  """Loads published weights.

  Args:
    source: a Hugging Face hub name, a named size such as "clip-vit-b16", a local folder or a
      local file. The folder of a LoRA adapter in peft's format is its base model, adapted.
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
  weights = find_weights(source)
  if merge.is_adapter(weights):
    return _adapted(weights.parent, str(source), dtype, image_size, tokenize)
  checkpoint, layout, description = describe(open_checkpoint(weights))  # asked for once
  if tokenize is None:
    tokenize = read_tokenizer(checkpoint.folder, description.family, description.text)
  model = assemble(checkpoint, description, str(source), tokenize)
  params = fill(model, checkpoint, layout, description, dtype)
  return resized(model, params, layout, image_size)


def _adapted(
  folder: Path, name: str, dtype: Any, image_size: int | None, tokenize: Tokenize | None
) -> tuple[VisionLanguageModel, Any]:
  """An adapter's base model with the adapter in its weights."""
  base = base_of(folder)
  merge.check_base(folder, lambda: fingerprint(base))
  model, params = load(base, dtype=dtype, image_size=image_size, tokenize=tokenize)
  model = dataclasses.replace(model, name=name)
  changed = merge.add(model, params, merge.read_differences(folder).items(), str(folder))
  return model, jax.device_put(changed)


def from_arrays(
  flat: Mapping[str, np.ndarray],
  *,
  dtype: Any = jnp.float32,
  image_size: int | None = None,
  image_heads: int | None = None,
  text_heads: int | None = None,
  pool_heads: int | None = None,
  activation: str | None = None,
  tokenize: Tokenize | None = None,
) -> tuple[VisionLanguageModel, Any]:
  """A model from arrays in memory under published names that need no config file.

  Args:
    flat: arrays by the names of OpenAI, open_clip, big_vision or Meta's PE-Core; sizes follow
      from their shapes.
    dtype: of the weights; float64 needs `jax_enable_x64`.
    image_size: as in `load`.
    image_heads: where shapes do not tell and it is not the published size's.
    text_heads: likewise.
    pool_heads: likewise, of PE-Core's attention pooling.
    activation: of the MLPs, under OpenAI's names only.
    tokenize: texts to ids; without it words are hashed.

  Raises:
    ValueError: arrays that do not fit, all named.
  """
  choices = Choices(image_heads, text_heads, pool_heads, activation)
  checkpoint, layout, description = describe(
    Checkpoint(in_memory(flat), "arrays in memory", choices=choices)
  )
  if tokenize is None:
    text = description.text
    tokenize = HashTokenizer(text.vocabulary_size, text.context_length, text.pool == "last")
  model = assemble(checkpoint, description, description.family, tokenize)
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
  """A CLIP from arrays in memory under OpenAI's state-dict names; see `from_arrays`.

  Heads are the widths divided by 64 where they are not given.
  """
  return from_arrays(
    flat,
    dtype=dtype,
    image_heads=image_heads,
    text_heads=text_heads,
    activation=activation,
    tokenize=tokenize,
  )


def family_of(source: str | Path) -> str:
  """The family of a checkpoint, of `families.FAMILIES`; reads no weights.

  Published ones are known by name. Of others the arrays' names and config files are read.

  Args:
    source: as `load` takes it.

  Raises:
    FileNotFoundError, ValueError: as `load` raises them.
  """
  name = str(source)
  if not buckets.is_bucket(name) and not Path(source).expanduser().exists():
    for known, specification in MODELS.items():
      if name in (known, specification.hub):
        return specification.family
  return describe(open_checkpoint(source))[2].family


def describe(checkpoint: Checkpoint) -> tuple[Checkpoint, Layout, Description]:
  """The checkpoint under the names that its layout knows, the layout, and what model it is.

  Raises:
    FileNotFoundError: the layout needs a config file that is missing.
    ValueError: quantized, of no known layout, or not what its config says.
  """
  layout = find_layout(checkpoint)
  checkpoint = checkpoint._replace(arrays=normalized(checkpoint.arrays, _FIRST))
  try:
    description = layout.describe(checkpoint)
    check_description(description, layout, checkpoint.arrays)
    description.mean_and_std(checkpoint)
  except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
    if checkpoint.source in str(error):
      raise
    raise ValueError(
      f"{checkpoint.source}: its arrays' shapes or the config beside it describe no model "
      f"({str(error)[:300]}). Check that both are complete, unmodified and belong together."
    ) from error
  return checkpoint, layout, description


def check_description(description: Description, layout: Layout, arrays: Arrays) -> None:
  """Refuses sizes that the arrays cannot have, before anything is made of those sizes.

  Raises:
    ValueError: names the field and its value.
  """
  largest = max(math.prod(array.shape) for array in arrays.values())
  is_unrolled = any("{}" in module.name for module in layout.table)
  for encoder, config in (("image", description.image), ("text", description.text)):
    for field in dataclasses.fields(config):
      size = getattr(config, field.name)
      most = len(arrays) if field.name == "depth" and is_unrolled else largest
      if field.type == "int" and size > most:
        raise ValueError(
          f"{field.name}={str(size)[:20]} of the {encoder} encoder is more than its arrays hold"
        )
    if type(epsilon := config.epsilon) not in (int, float) or not 0 <= epsilon < 1:
      raise ValueError(f"epsilon={epsilon!r:.40} of the {encoder} encoder: must be in [0, 1)")
  end, size = description.text.end_token, description.text.vocabulary_size
  if end is not None and not 0 <= end < size:
    raise ValueError(f"eos_token_id={str(end)[:20]}: must be the id of one of the {size} tokens")


def find_layout(checkpoint: Checkpoint) -> Layout:
  """The published layout that most of the arrays' names are of.

  Raises:
    ValueError: quantized weights, or none of the known layouts.
  """
  quantized = [name for name in checkpoint.arrays if name.rsplit(".", 1)[-1] in _QUANTIZED]
  if quantized or "quantization_config" in (checkpoint.config or {}):
    raise ValueError(
      f"{checkpoint.source} is quantized ({', '.join(quantized[:3]) or 'see config.json'}); "
      "quantized weights cannot be fine-tuned, use the original release."
    )
  names = normalized(checkpoint.arrays, _FIRST)
  if (known := find_foreign(names)) is not None:
    raise ValueError(f"{checkpoint.source} is {known.what}, which is not supported. {known.remedy}")
  counts = [layout.count_known(names) for layout in LAYOUTS]
  if 2 * max(counts) <= len(names):
    some = ", ".join(name[:100] for name in list(checkpoint.arrays)[:4])
    raise ValueError(
      f"{checkpoint.source}: no known layout of {', '.join(sorted(FAMILIES))}; its arrays "
      f"are named {some}, … . Give a checkpoint with both encoders of one of these families."
    )
  return LAYOUTS[counts.index(max(counts))]


def assemble(
  checkpoint: Checkpoint, description: Description, name: str, tokenize: Tokenize
) -> VisionLanguageModel:
  """The model that a checkpoint describes."""
  mean, std = description.mean_and_std(checkpoint)
  return VisionLanguageModel(
    name=name,
    image=description.image,
    text=description.text,
    tokenize=tokenize,
    image_mean=mean,
    image_std=std,
    family=description.family,
    sigmoid_bias=description.sigmoid_bias,
  )


def fill(
  model: VisionLanguageModel,
  checkpoint: Checkpoint,
  layout: Layout,
  description: Description,
  dtype: Any,
) -> Any:
  """The model's parameters from the checkpoint's arrays."""
  shapes = parameter_shapes(model)
  return convert(
    checkpoint.arrays,
    layout.slots(description, shapes),
    shapes,
    dtype=dtype,
    ignored=layout.ignored,
    source=f"{checkpoint.source} ({layout.name})",
  )


def resized(
  model: VisionLanguageModel, params: Any, layout: Layout, image_size: int | None
) -> tuple[VisionLanguageModel, Any]:
  """The same model for another input size, its image positions resampled."""
  if image_size is None or image_size == model.image.image_size:
    return model, params
  image = dataclasses.replace(model.image, image_size=image_size)
  if image.grid == model.image.grid:
    return dataclasses.replace(model, image=image), params
  stem = params["image"]["stem"]
  position = np.asarray(stem["position"])
  first = int(image.class_token)
  grid = resample(position[first:].astype(np.float64), image.grid, layout.resample)
  position = np.concatenate([position[:first], grid.astype(position.dtype)])
  stem = {**stem, "position": jax.device_put(position)}
  params = {**params, "image": {**params["image"], "stem": stem}}
  return dataclasses.replace(model, image=image), params
