"""A check that both encoders' configurations share."""

from __future__ import annotations

import dataclasses
import numbers
from typing import Any

MAYBE_ZERO = ("pool_heads", "pool_mlp_width")  # of encoders without attention pooling


def check_sizes(config: Any) -> None:
  """Refuses sizes that are no positive whole numbers.

  Args:
    config: a dataclass; its fields of type `int` are looked at.

  Raises:
    ValueError: names the field and its value.
  """
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    least = 0 if field.name in MAYBE_ZERO else 1
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if field.type == "int" and not (is_whole and value >= least):
      raise ValueError(f"{field.name}={value!r}: must be a whole number from {least}.")
