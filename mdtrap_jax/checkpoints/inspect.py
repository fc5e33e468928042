"""What a checkpoint is, without loading its weights."""

from __future__ import annotations

import collections
import math
from pathlib import Path
from typing import NamedTuple

from mdtrap_jax.checkpoints.convert import find_problems, parameter_shapes
from mdtrap_jax.checkpoints.layouts.layout import Description
from mdtrap_jax.checkpoints.load import assemble, describe
from mdtrap_jax.checkpoints.source import open_checkpoint
from mdtrap_jax.checkpoints.tokenizer_files import read_tokenizer
from mdtrap_jax.models import MODELS


class Report(NamedTuple):
  """The findings."""

  layout: str
  description: Description
  name: str | None  # of the published size, if it is one
  parameters: dict[str, int]  # by encoder
  precisions: dict[str, int]  # number of arrays by dtype
  problems: list[str]  # empty if the checkpoint can be loaded

  def lines(self) -> list[tuple[str, str]]:
    """The report as names and values."""
    image, text = self.description.image, self.description.text
    rows = [
      ("family", self.description.family),
      ("size", self.name or "not a published one"),
      (
        "image",
        f"{image.image_size} px, patch {image.patch_size}, {_blocks(image)}, "
        f"{self.parameters['image']:,} parameters",
      ),
      (
        "text",
        f"{text.context_length} tokens of {text.vocabulary_size}, {_blocks(text)}, "
        f"{self.parameters['text']:,} parameters",
      ),
      ("layout", self.layout),
      (
        "precision",
        ", ".join(f"{dtype} ({count} arrays)" for dtype, count in self.precisions.items()),
      ),
    ]
    return rows + [("problem", problem) for problem in self.problems or ["none"]]


def inspect(source: str | Path) -> Report:
  """Reads names, shapes, config and tokenizer files, but no weights.

  Args:
    source: as `load` takes it.

  Raises:
    FileNotFoundError: no such checkpoint or config file.
    ValueError: the file is damaged, quantized or of an unknown layout.
  """
  checkpoint, layout, description = describe(open_checkpoint(source))
  model = assemble(checkpoint, description, str(source), tokenize=None)
  shapes = parameter_shapes(model)
  parameters = {
    side: sum(math.prod(shape) for path, shape in shapes.items() if path.startswith(side))
    for side in ("image", "text")
  }
  precisions = collections.Counter(str(a.dtype) for a in checkpoint.arrays.values())
  problems = find_problems(
    checkpoint.arrays, layout.slots(description, shapes), shapes, layout.ignored
  )
  try:
    read_tokenizer(checkpoint.folder, description.family, description.text)
  except (OSError, ValueError) as error:
    problems.append(f"tokenizer: {error}")
  return Report(
    layout.name,
    description,
    _published_name(description),
    parameters,
    dict(precisions.most_common()),
    problems,
  )


def _published_name(description: Description) -> str | None:
  """The named size with the same encoders, activation and end token aside."""

  def key(family, image, text):
    return (
      family,
      image.image_size,
      image.patch_size,
      image.width,
      image.depth,
      image.heads,
      text.context_length,
      text.vocabulary_size,
      text.width,
      text.depth,
      text.heads,
    )

  wanted = key(*description[:3])
  return next(
    (
      name for name, model in MODELS.items() if key(model.family, model.image, model.text) == wanted
    ),
    None,
  )


def _blocks(config) -> str:
  return f"{config.depth} blocks of width {config.width} with {config.heads} heads"
