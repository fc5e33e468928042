"""The cells of a sweep: one config each, and a directory of its own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import ml_collections

from mdtrap_jax import config as settings
from mdtrap_jax import files
from mdtrap_jax.config import loading

_SECTION = "sweep."
_KINDS = ("finetune", "heads", "all_way", "all_way_heads")  # whose runs are counted in episodes


class Cell(NamedTuple):
  """One run of a sweep."""

  backbone: str
  target: str
  shots: int
  seed: int
  method: str
  config: str  # what `mdtrap run --config=` takes
  fields: tuple[tuple[str, str], ...]  # of that config, as typed

  @property
  def name(self) -> str:
    """Its directory below the sweep's: methods that adapt the same episodes stand together."""
    parts = (self.backbone, self.target, f"{self.shots}-shot", f"seed-{self.seed}", self.method)
    return "/".join(parts)

  @property
  def arguments(self) -> tuple[str, ...]:
    """Of `mdtrap run`, but for `--workdir`."""
    fields = (f"--config.{name}={text}" for name, text in self.fields)
    return (f"--config={self.config}", *fields)

  def resolve(self) -> ml_collections.ConfigDict:
    """Its config, complete and checked.

    Raises:
      OSError, ValueError: it cannot be right.
    """
    config = settings.resolve(loading.load(self.config, self.fields))
    if config.experiment not in _KINDS:
      raise ValueError(
        f"{self.config} is of kind {config.experiment}: a cell is one of {', '.join(_KINDS)}."
      )
    return config


def load(config: str, fields: Sequence[tuple[str, str]] = ()) -> list[Cell]:
  """The cells of a sweep's config, in an order in which tables fill row by row.

  Args:
    config: `FILE[:TABLE]`, as in `configs/sweep_paper.py`.
    fields: as typed; those of `sweep.` are the sweep's, all others are set in every cell.

  Raises:
    OSError, ValueError: no such config, a field that cannot be right, or cells of one name.
  """
  sweep = _given(config, fields)
  every = tuple((name, text) for name, text in fields if not name.startswith(_SECTION))
  axes = itertools.product(sweep.shots, sweep.backbones, sweep.targets, sweep.seeds, sweep.methods)
  cells = []
  for shots, backbone, target, seed, method in axes:
    names = {
      "backbone": backbone, "target": target, "shots": shots, "seed": seed, "method": method,
    }  # fmt: skip
    pairs = [_filled(field, "fields", names).partition("=") for field in sweep.fields]
    cell = Cell(
      **names,
      config=_filled(sweep.config, "config", names),
      fields=(*((name, text) for name, _, text in pairs), *every),
    )
    for name in (backbone, target, method):  # become folders
      files.check_name(name, f"config.{_SECTION}")
      if files.is_reserved(name):
        raise ValueError(f"config.{_SECTION}: a run keeps files named {name}: name it otherwise.")
    cells.append(cell)
  _check_seeds(cells)
  return cells


def _check_seeds(cells: Sequence[Cell]) -> None:
  """Refuses runs of several seeds each that would have some of them in common."""
  first = [cell for cell in cells if cell.name.split("/")[:3] == cells[0].name.split("/")[:3]]
  for method in dict.fromkeys(cell.method for cell in first):
    own = sorted((cell for cell in first if cell.method == method), key=lambda cell: cell.seed)
    for before, after in itertools.pairwise(own):
      try:
        config, other = before.resolve(), after.resolve()
      except (OSError, ValueError):  # which running it says
        continue
      if config.seed + config.get("seeds", 1) > after.seed == other.seed:
        raise ValueError(
          f"--config.{_SECTION}seeds: of {before.seed} and {after.seed} each run takes "
          f"{config.seeds} seeds, its own and those that follow, and some would count twice; give "
          f"numbers at least {config.seeds} apart, or --config.seeds=1."
        )


def references(config: str, fields: Sequence[tuple[str, str]] = ()) -> tuple[str, ...]:
  """The rows of the sweep's table that the others are compared with; takes what `load` does.

  Raises:
    OSError, ValueError: as `load`, or a row of no method of the sweep.
  """
  sweep = _given(config, fields)
  for name in sweep.references:
    if name.partition("/")[0] not in sweep.methods:
      raise ValueError(
        f"--config.{_SECTION}references: {name!r} is no row; name METHOD or METHOD/VARIANT of "
        f"--config.{_SECTION}methods={tuple(sweep.methods)}, or none for the first."
      )
  return tuple(sweep.references)


def _given(config: str, fields: Sequence[tuple[str, str]]) -> ml_collections.ConfigDict:
  """What a sweep's config says of the sweep itself."""
  own = [(name, text) for name, text in fields if name.startswith(_SECTION)]
  given = settings.resolve(loading.load(config, own))
  if given.experiment != "sweep":
    raise ValueError(f"{config} is one run and no sweep: mdtrap run --config={config}")
  return given.sweep


def _filled(text: str, field: str, names: dict[str, object]) -> str:
  try:
    return text.format(**names)
  except (KeyError, IndexError, ValueError) as error:
    raise ValueError(
      f"--config.{_SECTION}{field}: {text!r} may name {', '.join(f'{{{n}}}' for n in names)}, "
      "and any other brace stands twice."
    ) from error


def part(cells: Sequence[Cell], text: str) -> list[Cell]:
  """The cells of one of several jobs: `I/N`, I from 1.

  Raises:
    ValueError: it is something else.
  """
  index, _, count = text.partition("/")
  if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
    raise ValueError(f"--part={text}: give I/N, such as 2/8: I from 1 to N.")
  return list(cells[int(index) - 1 :: int(count)])
