"""What `mdtrap analyze` writes: numbers as JSON, figures as PNG and SVG, a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mdtrap_jax import files
from mdtrap_jax.analysis import figures, measures, projection
from mdtrap_jax.analysis.readapt import Readapted
from mdtrap_jax.analysis.summary import Analysis, Band
from mdtrap_jax.methods import text_gap
from mdtrap_jax.report import tables

SUFFIXES = (".png", ".svg")


def write(
  folder: Path, name: str, found: Sequence[Readapted], analysis: Analysis, plane: str = "pca"
) -> None:
  """Writes `analysis.json` and the figures.

  Args:
    folder: where; it exists.
    name: of the run, for titles.
    found: the tasks; the first is drawn.
    analysis: of `summary.summarize`.
    plane: of `projection.PROJECTIONS`.
  """
  files.write(folder / "analysis.json", json.dumps(to_json(analysis), indent=2) + "\n")
  paths = lambda figure: [folder / f"{figure}{suffix}" for suffix in SUFFIXES]
  figures.plot_shift(paths("shift"), name, analysis)
  figures.plot_measures(paths("measures"), name, analysis)
  if analysis.norm is not None:
    figures.plot_gradients(paths("gradients"), name, analysis)
  first = found[0]
  if first.look is not None:
    figures.plot_attention(paths("attention"), name, first.class_names, first.look)
  figures.plot_map(
    paths("map"), name, first.class_names, *_maps(first, projection.PROJECTIONS[plane])
  )


def _maps(task: Readapted, project):
  """Queries and texts before and after in one plane, so that the panels can be compared."""
  parts = [measures.unit(part) for e in (task.before, task.after) for part in (e.query, e.classes)]
  plane = project(np.concatenate(parts))
  points = np.split(plane.points, np.cumsum([len(part) for part in parts])[:-1])
  return points, task.before.query_labels, plane.about


def to_json(analysis: Analysis) -> dict[str, Any]:
  """The numbers as `analysis.json` has them; what cannot be told is null."""
  result: dict[str, Any] = {
    "episodes": analysis.tasks,
    "episodes_with_the_run's_accuracy": analysis.agreeing,
    "measures": analysis.measures,
    "shift": {
      "shifts": _listed(text_gap.SHIFTS),
      **{
        stage: {part: _band(value) for part, value in parts.items()}
        for stage, parts in analysis.shift.items()
      },
    },
  }
  if analysis.norm is not None and analysis.cosine is not None:
    result["gradients"] = {
      "terms": analysis.terms,
      "norm": _band(analysis.norm),
      "cosine": _band(analysis.cosine),
    }
  return result


def _band(value: Band) -> dict[str, Any]:
  return {"mean": _listed(value.mean), "ci95": _listed(value.ci95)}


def _listed(values: np.ndarray) -> Any:
  if np.ndim(values):
    return [_listed(value) for value in values]
  return round(float(values), 6) if np.isfinite(values) else None


def format_text(runs: Mapping[str, Analysis]) -> str:
  """One table: for each run and measure before, after and the paired change."""
  show = lambda value: (
    f"{value['mean']:.4f} ± " + ("–" if value["ci95"] is None else f"{value['ci95']:.4f}")
  )
  rows = [
    (name, measure, *(show(values[part]) for part in ("before", "after", "change")))
    for name, analysis in runs.items()
    for measure, values in analysis.measures.items()
  ]
  return tables.text(("run", "measure", "before", "after", "change"), rows)
