"""What a checkpoint is before conversion, and what a published layout says about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mdtrap_jax.checkpoints.arrays import Arrays
from mdtrap_jax.checkpoints.rules import Dialect, Module, Shape, Slot, slots
from mdtrap_jax.models.families import Family
from mdtrap_jax.models.image_stem import ImageConfig
from mdtrap_jax.models.text_stem import TextConfig

Channels = tuple[float, float, float]

ACTIVATIONS = {
    "quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh"}


class Checkpoint(NamedTuple):
  """Arrays by name and the config files that lie beside them."""

  arrays: Arrays
  source: str  # for messages
  folder: Path | None = None
  config: Mapping[str, Any] | None = None  # Hugging Face's config.json
  open_clip_config: Mapping[str, Any] | None = None
  preprocessor: Mapping[str, Any] | None = None  # preprocessor_config.json
  is_torchscript: bool = False

  def shape(self, name: str) -> Shape:
    """Shape of one array.

    Raises:
      ValueError: there is none of that name.
    """
    if name not in self.arrays:
      raise ValueError(f"{self.source}: the array {name} is missing.")
    return self.arrays[name].shape

  def require_config(self) -> Mapping[str, Any]:
    """Hugging Face's `config.json`.

    Raises:
      FileNotFoundError: there is none.
    """
    if self.config is None:
      raise FileNotFoundError(
          f"{self.source}: this layout needs its config.json in the same folder.")
    return self.config

  def mean_and_std(self, family: Family) -> tuple[Channels, Channels]:
    """Per-channel statistics from the files beside the weights, else the family's."""
    preprocess = (self.open_clip_config or {}).get("preprocess_cfg", {})
    preprocessor = self.preprocessor or {}
    mean = preprocess.get("mean") or preprocessor.get("image_mean") or family.image_mean
    std = preprocess.get("std") or preprocessor.get("image_std") or family.image_std
    return tuple(mean), tuple(std)


class Description(NamedTuple):
  """The model that a checkpoint holds."""

  image: ImageConfig
  text: TextConfig
  image_mean: Channels
  image_std: Channels


class Layout(NamedTuple):
  """One published way of naming and arranging a family's arrays."""

  name: str
  family: str
  markers: tuple[str, ...]  # arrays that tell this layout
  table: Iterable[Module] | Callable[[Description], Iterable[Module]]
  dialect: Dialect | Callable[[Description], Dialect]
  describe: Callable[[Checkpoint], Description]
  ignored: tuple[str, ...] = ()  # regular expressions of harmless extra arrays
  excluded: tuple[str, ...] = ()  # arrays that tell another layout
  resample: str = "bicubic"  # of the image positions, at another input size

  def fits(self, arrays: Arrays) -> bool:
    """Whether the arrays' names are of this layout."""
    return all(m in arrays for m in self.markers) and not any(
        e in arrays for e in self.excluded)

  def slots(self, description: Description, shapes: Mapping[str, Shape]) -> list[Slot]:
    """One slot per array that a checkpoint of this model has."""
    table = self.table(description) if callable(self.table) else self.table
    dialect = self.dialect(description) if callable(self.dialect) else self.dialect
    return slots(table, dialect, shapes)


def activation(name: str) -> str:
  """Our name of a Hugging Face activation.

  Raises:
    ValueError: it is none that these families use.
  """
  if name not in ACTIVATIONS:
    raise ValueError(
        f"hidden_act={name!r} in config.json: choose one of {sorted(ACTIVATIONS)}.")
  return ACTIVATIONS[name]


def count_blocks(arrays: Iterable[str], template: str) -> int:
  """One more than the largest block number that a name begins with.

  Args:
    arrays: names.
    template: the beginning of the names, `{}` where the number is.
  """
  pattern = re.compile(re.escape(template).replace(r"\{\}", r"(\d+)"))
  numbers = [int(match[1]) for name in arrays if (match := pattern.match(name))]
  return max(numbers, default=-1) + 1


def merged_config(
    config: Mapping[str, Any], part: str, defaults: Mapping[str, Any]
) -> dict[str, Any]:
  """One encoder's fields; Hugging Face's files leave out what equals the defaults.

  Old files carry a second dictionary, `<part>_dict`, which wins.
  """
  return {**defaults, **(config.get(part) or {}), **(config.get(f"{part}_dict") or {})}
