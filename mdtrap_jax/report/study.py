"""The paper's study on generated targets: which terms help, when, and how far from the source.

A cell is a domain, a severity and a number of shots. Within a cell all methods adapt the same
episodes; those that differ in the terms' weights alone run in one program (`variants`), those
that differ in the terms' window in another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import ml_collections

from mdtrap_jax import config as settings
from mdtrap_jax import files
from mdtrap_jax.report import comparison, tables
from mdtrap_jax.report.figures import plot_study
from mdtrap_jax.run import claim
from mdtrap_jax.run import finetune as runner

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
    severity = "" if self.severity is None else f"-{self.severity:g}"
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


def run(config: ml_collections.ConfigDict, workdir: Path) -> str:
  """Runs all cells, resuming what is there, and writes `study.csv` and `study.png`.

  Returns:
    The table of differences from cross-entropy alone, in Markdown.
  """
  table = {}
  todo = list(cells(config))
  if not todo:
    raise ValueError("config.study has no cell: give domains, severities and shots.")
  for run_config in (c for cell in todo for c in cell_configs(config, cell)):
    # A mistake in the last cell shows before the first is run.
    runner.load_source(settings.resolve(run_config))
  workdir = claim.claim_root(workdir)
  for number, cell in enumerate(todo, 1):
    print(f"cell {number} of {len(todo)}: {cell.name}", flush=True)
    for run_config in cell_configs(config, cell):
      runner.run(run_config, workdir, cell.name)
    table[cell] = _compare(workdir / cell.name)
  write_csv(workdir / "study.csv", table)
  plot_study(table, workdir / "study.png")
  return format_markdown(table)


def _compare(directory: Path) -> dict[str, comparison.Row]:
  """The methods of a cell, against cross-entropy alone."""
  names = [name for methods in METHODS.values() for name in methods]
  rows = comparison.compare([directory / name for name in names])
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
