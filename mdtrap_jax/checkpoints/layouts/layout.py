"""What a checkpoint is before conversion, and what a published layout says about it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mdtrap_jax.checkpoints.formats.arrays import Arrays, nearest
from mdtrap_jax.checkpoints.rules import Dialect, Module, Shape, Slot, same, slots
from mdtrap_jax.models.families.family import FAMILIES
from mdtrap_jax.models.image_stem import ImageConfig
from mdtrap_jax.models.text_stem import TextConfig

Channels = tuple[float, float, float]

ACTIVATIONS = {
  "quick_gelu": "quick_gelu",
  "gelu": "gelu",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_new": "gelu_tanh",
  "gelu_fast": "gelu_tanh",
}


_HEADS = ((".kernel", "", same), (".bias", "", same))  # of kinds that `adapt` adds


class Choices(NamedTuple):
  """What shapes do not tell, where the caller knows it."""

  image_heads: int | None = None
  text_heads: int | None = None
  pool_heads: int | None = None  # of PE-Core's attention pooling
  activation: str | None = None


class Checkpoint(NamedTuple):
  """Arrays by name and the config files that lie beside them."""

  arrays: Arrays
  source: str  # for messages
  folder: Path | None = None
  config: Mapping[str, Any] | None = None  # Hugging Face's config.json
  open_clip_config: Mapping[str, Any] | None = None
  preprocessor: Mapping[str, Any] | None = None  # preprocessor_config.json
  is_torchscript: bool = False
  choices: Choices = Choices()

  def shape(self, name: str) -> Shape:
    """Shape of one array.

    Raises:
      ValueError: there is none of that name.
    """
    if name not in self.arrays:
      near = nearest(name, self.arrays)
      raise ValueError(
        f"{self.source}: the array {name} is missing"
        + (f" (is {near} it?)" if near else "")
        + ". Check that the file is complete and unmodified."
      )
    return self.arrays[name].shape

  def require_config(self, model_type: str) -> Mapping[str, Any]:
    """Hugging Face's `config.json`.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it describes another kind of model.
    """
    if self.config is None:
      raise FileNotFoundError(
        f"{self.source}: this layout needs its config.json in the same folder."
      )
    if (found := self.config.get("model_type")) != model_type:
      raise ValueError(
        f"{self.source}: its arrays are those of a {model_type} model, but config.json says "
        f"model_type={found!r:.40}. Give the config.json that belongs to the weights."
      )
    return self.config


class Description(NamedTuple):
  """The model that a checkpoint holds."""

  family: str  # of `families.FAMILIES`
  image: ImageConfig
  text: TextConfig
  sigmoid_bias: bool = False

  def mean_and_std(self, checkpoint: Checkpoint) -> tuple[Channels, Channels]:
    """Per-channel statistics from the files beside the weights, else the family's.

    Raises:
      ValueError: the files give something else than three numbers.
    """
    preprocess = (checkpoint.open_clip_config or {}).get("preprocess_cfg", {})
    preprocessor, family = checkpoint.preprocessor or {}, FAMILIES[self.family]
    mean = preprocess.get("mean") or preprocessor.get("image_mean") or family.image_mean
    std = preprocess.get("std") or preprocessor.get("image_std") or family.image_std
    for name, values, least in (("mean", mean, -math.inf), ("std", std, 0)):
      numbers = isinstance(values, list | tuple) and all(type(x) in (int, float) for x in values)
      if not numbers or len(values) != 3 or not all(least < x < math.inf for x in values):
        raise ValueError(
          f"{checkpoint.source}: the config beside it says that the images' "
          f"{name} is {values!r:.100}, which are not three numbers"
          + (" above 0." if name == "std" else ".")
        )
    return tuple(mean), tuple(std)


class Layout(NamedTuple):
  """One published way of naming and arranging a family's arrays."""

  name: str
  table: Iterable[Module]
  dialect: Dialect
  describe: Callable[[Checkpoint], Description]
  ignored: tuple[str, ...] = ()  # regular expressions of harmless extra arrays
  resample: str = "bicubic"  # of the image positions, at another input size
  adapt: Callable[[Description], Dialect] | None = None  # additions to the dialect

  def slots(self, description: Description, shapes: Mapping[str, Shape]) -> list[Slot]:
    """One slot per array that a checkpoint of this model has."""
    dialect = self.dialect
    if self.adapt is not None:
      dialect = {**dialect, **self.adapt(description)}
    return slots(self.table, dialect, shapes)

  def count_known(self, names: Iterable[str]) -> int:
    """How many of the names are of this layout's kind, whatever their shapes."""
    templates = {
      module.name + suffix
      for module in self.table
      for suffix, _, _ in self.dialect.get(module.kind, _HEADS)
    }
    pattern = "|".join(re.escape(name).replace(r"\{\}", r"\d+") for name in sorted(templates))
    match = re.compile(pattern)
    return sum(match.fullmatch(name) is not None for name in names)


def activation(name: str) -> str:
  """Our name of a Hugging Face activation.

  Raises:
    ValueError: it is none that these families use.
  """
  if not isinstance(name, str) or name not in ACTIVATIONS:
    raise ValueError(
      f"hidden_act={name!r:.40} in config.json: choose one of {sorted(ACTIVATIONS)}."
    )
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
