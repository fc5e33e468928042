"""The paper's study on generated targets: which terms help, when, and how far from the source.

A cell is a domain, a severity and a number of shots. Within a cell all methods adapt the same
episodes; those that differ in the terms' weights alone run in one program (`variants`), those
that differ in the terms' window in another.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import ml_collections

from mdtrap_jax import config as configs
from mdtrap_jax import files
from mdtrap_jax.experiments import finetune
from mdtrap_jax.report import comparison, tables
from mdtrap_jax.run.experiment import Experiment

BASELINE = "vlm"
# Weights to switch off, by window in fifths of the steps; the others keep the config's.
METHODS = {
  (0, 3): {
    "vlm": ("visual", "svl", "ra"),
    "visual": ("svl", "ra"),
    "svl": ("visual", "ra"),
    "ra": ("visual", "svl"),
    "svl_ra": ("visual",),
  },
  (1, 4): {"svl_ra_middle": ("visual",)},
  (2, 5): {"svl_ra_late": ("visual",)},
}


class Cell(NamedTuple):
  """One setting in which all methods are compared."""

  domain: str
  severity: float | None  # None for the digits, which have no such knob
  shots: int

  @property
  def name(self) -> str:
    """Its subdirectory."""
    # All digits: no two severities may share a directory.
    severity = "" if self.severity is None else f"-{float(self.severity)!r}".removesuffix(".0")
    return f"{self.domain}{severity}/{self.shots}-shot"


def cells(config: ml_collections.ConfigDict) -> Iterator[Cell]:
  """All cells of `config.study`."""
  for shots in config.study.shots:
    for domain in config.study.domains:
      severities = (None,) if domain == "digits" else config.study.severities
      yield from (Cell(domain, severity, shots) for severity in severities)


def cell_configs(
  config: ml_collections.ConfigDict, cell: Cell
) -> Iterator[ml_collections.ConfigDict]:
  """One config for each program of a cell."""
  for window, methods in METHODS.items():
    run = config.copy_and_resolve_references()
    with run.unlocked():
      del run.study
    run.experiment = "finetune"
    run.data.shots = cell.shots
    run.data.name = "digits" if cell.severity is None else "world"
    if cell.severity is not None:
      run.data.domain, run.data.severity = cell.domain, cell.severity
    for term in ("visual", "svl", "ra"):
      run.objective[term].window = window
    run.variants = ml_collections.ConfigDict(
      {name: {term: 0.0 for term in off} for name, off in methods.items()}
    )
    yield run


def experiment(config: ml_collections.ConfigDict) -> Experiment:
  """All cells as groups of one experiment, one group for each program of a cell.

  Raises:
    ValueError, OSError: input that cannot be right, in any cell.
  """
  config = configs.resolve(config)
  load = functools.cache(functools.partial(finetune.load_model, finetune.settled(config)))
  runs, sources, groups = {}, {}, []
  for cell in cells(config):
    for number, cell_config in enumerate(cell_configs(config, cell)):
      cell_config = finetune.settled(cell_config)
      finetune.check(cell_config, configs.variants(cell_config))
      source = finetune.load_source(cell_config)
      own = {f"{cell.name}/{name}": run for name, run in configs.variants(cell_config).items()}
      runs |= own
      sources |= dict.fromkeys(own, finetune.identity(cell_config, source))
      name = f"{cell.name}, program {number}"
      groups.append(finetune.make_group(name, cell_config, own, source, load))
  return Experiment(runs, sources, groups, finetune.placing(config))


def tabulate(config: ml_collections.ConfigDict, directories, workdir: Path) -> str:
  """Writes `study.csv` and `study.png`.

  Args:
    config: of the study.
    directories: of all runs, by name.
    workdir: where the files go.

  Returns:
    The table of differences from cross-entropy alone, in Markdown.
  """
  from mdtrap_jax.report.figures import plot_study  # matplotlib, which no run waits for

  table = {cell: _compare(directories, cell) for cell in cells(config)}
  write_csv(workdir / "study.csv", table)
  plot_study(table, workdir / "study.png")
  return format_markdown(table)


def _compare(directories, cell: Cell) -> dict[str, comparison.Row]:
  """The methods of a cell, against cross-entropy alone."""
  names = [name for methods in METHODS.values() for name in methods]
  rows = comparison.compare([directories[f"{cell.name}/{name}"].path for name in names])
  return dict(zip(names, rows, strict=True))


def format_markdown(table: dict[Cell, dict[str, comparison.Row]]) -> str:
  """One row a cell: accuracies of zero-shot and baseline, and paired differences from it."""
  methods = [name for name in next(iter(table.values())) if name != BASELINE]
  header = ["target", "severity", "shots", "zero-shot", BASELINE, *methods]
  lines = [
    [
      cell.domain,
      "–" if cell.severity is None else f"{cell.severity:g}",
      cell.shots,
      rows[BASELINE].zero_shot.points(1),
      rows[BASELINE].accuracy.points(1),
      *(rows[name].difference.points(sign="+") for name in methods),
    ]
    for cell, rows in table.items()
  ]
  return tables.markdown(header, lines)


def write_csv(path: Path, table: dict[Cell, dict[str, comparison.Row]]) -> None:
  """The numbers of all cells, for a spreadsheet."""
  columns: Sequence[str] = (
    "domain",
    "severity",
    "shots",
    "method",
    "episodes",
    "zero_shot_mean",
    "accuracy_mean",
    "accuracy_ci95",
    "difference_mean",
    "difference_ci95",
  )
  none = (0.0, 0.0)  # the baseline's difference from itself
  rows = [
    (
      *cell,
      name,
      row.episodes,
      row.zero_shot.mean,
      *row.accuracy[:2],
      *(none if row.difference is None else row.difference[:2]),
    )
    for cell, rows in table.items()
    for name, row in rows.items()
  ]
  files.write(path, tables.csv(columns, rows))
