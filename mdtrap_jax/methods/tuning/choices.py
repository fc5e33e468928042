"""The parameterizations by name: `config.tune`, each made from a config's section of that name."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from mdtrap_jax.methods.tuning.coop import Coop
from mdtrap_jax.methods.tuning.lora import Lora
from mdtrap_jax.methods.tuning.maple import Maple
from mdtrap_jax.methods.tuning.parameterization import Parameterization
from mdtrap_jax.methods.tuning.subset import SUBSETS, Subset
from mdtrap_jax.models.lora import LoraConfig


def make_parameterization(config: ml_collections.ConfigDict) -> Parameterization:
  """What `config.tune` trains, as its section has it.

  Raises:
    ValueError: settings that cannot be.
  """
  name = config.get("tune", "lora")  # configs from before there was a choice have none
  return PARAMETERIZATIONS[name](**config[name].to_dict())


def _subset(kind: str, encoder: str, position: str) -> Subset:
  return Subset(kind, encoder, _blocks(position))


def _lora(position: str, projections: Any, **settings: Any) -> Lora:
  return Lora(LoraConfig(position=_blocks(position), projections=tuple(projections), **settings))


def _blocks(position: str) -> str | tuple[int, ...]:
  """A name of `models.lora.POSITIONS`, or numbers as "0,1,2"."""
  blocks = [block.strip() for block in position.split(",") if block.strip()]
  return tuple(map(int, blocks)) if all(block.isdigit() for block in blocks) else position


PARAMETERIZATIONS: Mapping[str, Callable[..., Parameterization]] = {
  "lora": _lora,
  "coop": Coop,
  "maple": Maple,
  **{kind: functools.partial(_subset, kind) for kind in SUBSETS},
}
