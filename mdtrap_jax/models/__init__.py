"""Vision-language models by name, and their construction without weights."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from typing import Any

import jax

from mdtrap_jax.models.families.clip import CLIP_MODELS
from mdtrap_jax.models.families.family import FAMILIES
from mdtrap_jax.models.families.miniature import MINIATURE_MODELS, tokenizer
from mdtrap_jax.models.families.pe_core import PE_CORE_MODELS
from mdtrap_jax.models.families.siglip import SIGLIP_MODELS
from mdtrap_jax.models.families.specification import Specification
from mdtrap_jax.models.tokenizers import HashTokenizer
from mdtrap_jax.models.vlm import VisionLanguageModel

__all__ = [
  "FAMILIES",
  "MODELS",
  "Specification",
  "VisionLanguageModel",
  "build",
  "find",
  "random_weights",
]

MODELS: dict[str, Specification] = {
  **CLIP_MODELS,
  **SIGLIP_MODELS,
  **PE_CORE_MODELS,
  **MINIATURE_MODELS,
}


def find(name: str) -> Specification:
  """The named size.

  Raises:
    ValueError: there is none of that name; the nearest names are suggested.
  """
  if name not in MODELS:
    near = difflib.get_close_matches(name, MODELS, 3, 0.4) or sorted(MODELS)
    raise ValueError(f"no model is named {name!r}; the nearest names are {', '.join(near)}.")
  return MODELS[name]


def build(name: str | Specification, *, image_size: int | None = None) -> VisionLanguageModel:
  """A model for random weights: `build("clip-vit-b16").init(key)`.

  Its tokenizer hashes words, since no tokenizer's files are at hand (but for the
  miniature's); use `checkpoints.load` for published weights and their tokenizer.

  Args:
    name: of `MODELS`, or a specification of one's own.
    image_size: in pixels, where it is not the size's own.

  Raises:
    ValueError: no such name.
  """
  specification = find(name) if isinstance(name, str) else name
  image, text = specification.image, specification.text
  if image_size is not None:
    image = dataclasses.replace(image, image_size=image_size)
  family = FAMILIES[specification.family]
  tokenize = HashTokenizer(text.vocabulary_size, text.context_length, text.pool == "last")
  if name in MINIATURE_MODELS:  # its words are part of the package
    tokenize = tokenizer()
  return VisionLanguageModel(
    name=name if isinstance(name, str) else specification.family,
    image=image,
    text=text,
    tokenize=tokenize,
    image_mean=family.image_mean,
    image_std=family.image_std,
    family=specification.family,
    sigmoid_bias=specification.family.startswith("siglip"),
  )


@functools.partial(jax.jit, static_argnums=0)  # one program for all models that are equal
def random_weights(model: Any, key: jax.Array) -> Any:
  """`model.init(key)`; `key` is consumed."""
  return model.init(key)
