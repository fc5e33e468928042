"""Rules: what a value of a config must be.

A rule takes a value and returns it as it is kept, or raises ValueError saying what it must be.
Choices come from the module that owns them, imported when they are first asked for.
"""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

Rule = Callable[[Any], Any]

MOST = 2**31 - 1  # of a count: an int32


def whole(least: int, most: int = MOST) -> Rule:
  """An integer, of Python's or NumPy's."""
  upper = "" if most == MOST else f" to {most}"

  def rule(value):
    integral = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not integral or not least <= value <= most:
      raise ValueError(f"must be a whole number from {least}{upper}")
    return int(value)

  return rule


def real(
  least: float = -math.inf,
  most: float = math.inf,
  *,
  above: float = -math.inf,
  below: float = math.inf,
) -> Rule:
  """A finite number; `above` and `below` are bounds that it does not reach."""
  bounds = [
    text
    for text, bound in (
      (f"from {least:g}", least), (f"greater than {above:g}", above),
      (f"up to {most:g}", most), (f"below {below:g}", below),
    )
    if math.isfinite(bound)
  ]  # fmt: skip

  def rule(value):
    try:
      number = math.nan if isinstance(value, bool | str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
      number = math.nan
    if not (math.isfinite(number) and least <= number <= most and above < number < below):
      raise ValueError(" ".join(["must be a finite number", " and ".join(bounds)]).rstrip())
    return number

  return rule


def flag(value: Any) -> bool:
  """True or false."""
  if not isinstance(value, bool):
    raise ValueError("must be true or false")
  return value


def text(value: Any) -> str:
  """Any words, or none."""
  if not isinstance(value, str) or "\0" in value:
    raise ValueError("must be text")
  return value


def path(value: Any) -> str:
  """A place on the disk, or "" for none; `~` is the home folder."""
  return os.path.expanduser(text(value))


def one_of(choices: Callable[[], Iterable[str]]) -> Rule:
  """One of a few words."""

  def rule(value):
    known = list(choices())
    if not isinstance(value, str) or value not in known:
      raise ValueError(f"choose one of {', '.join(known)}")
    return value

  return rule


def owned(module: str, name: str, *more: str) -> Rule:
  """One of the words in `mdtrap_jax.MODULE.NAME`, or of `more`."""
  return one_of(lambda: [*more, *getattr(import_module(f"mdtrap_jax.{module}"), name)])


def several(rule: Rule, example: str, *, least: int = 0, most: float = math.inf) -> Rule:
  """A tuple of what another rule takes; `example` shows one."""

  def check(value):
    shown = example
    if isinstance(value, str) and "," in value and example.startswith("('"):  # a shell took the '
      parts = [part.strip() for part in value.strip("() ").split(",") if part.strip()]
      shown = "({}{})".format(",".join(map(repr, parts)), "," * (len(parts) == 1))
    if not isinstance(value, list | tuple) or not least <= len(value) <= most:
      raise ValueError(f'must be a tuple, as in "{shown}"')
    return tuple(rule(item) for item in value)

  return check


def distinct(rule: Rule) -> Rule:
  """What another rule takes, each item once."""

  def check(value):
    value = rule(value)
    if len(set(value)) < len(value):
      raise ValueError("names one thing twice; give each once")
    return value

  return check


def optional(rule: Rule) -> Rule:
  """What another rule takes, or `None`: the published value."""
  return lambda value: None if value is None else rule(value)


def increasing(rule: Rule) -> Rule:
  """What another rule takes; the second item is greater than the first."""

  def check(value):
    value = rule(value)
    if len(value) > 1 and not value[0] < value[1]:
      raise ValueError("the first number must be below the second")
    return value

  return check
