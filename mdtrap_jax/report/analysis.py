"""What `mdtrap analyze` writes: numbers as JSON, figures as PNG and SVG, a table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mdtrap_jax import files
from mdtrap_jax.analysis import measures, projection
from mdtrap_jax.analysis.readapt import Readapted
from mdtrap_jax.methods import text_gap
from mdtrap_jax.report import analysis_figures, tables
from mdtrap_jax.statistics import mean_and_ci

SUFFIXES = (".png", ".svg")


class Band(NamedTuple):
  """A curve's mean over tasks with its 95 % interval."""

  mean: np.ndarray  # [x], NaN where no task has a number
  ci95: np.ndarray  # [x], half width; NaN for fewer than two


class Analysis(NamedTuple):
  """A run's numbers."""

  tasks: int
  agreeing: int  # tasks whose accuracy is the one that the run wrote
  measures: dict[str, dict[str, dict[str, float | None]]]  # {measure: {before, after, change}}
  shift: dict[str, dict[str, Band]]  # {before, after: {loss, accuracy}} over `text_gap.SHIFTS`
  terms: list[str]  # K
  norm: Band | None  # [T, K]
  cosine: Band | None  # [T, K, K]


def summarize(found: Sequence[Readapted], terms: Sequence[str]) -> Analysis:
  """Means over tasks.

  Args:
    found: the tasks, at least one.
    terms: of the objective, in the order of `Gradients`.
  """
  stages = {"before": [task.before for task in found], "after": [task.after for task in found]}
  numbers = {name: [measures.measure(task) for task in stage] for name, stage in stages.items()}
  curves = {name: [measures.shift_curve(task) for task in stage] for name, stage in stages.items()}
  traced = [task.gradients for task in found if task.gradients is not None]
  return Analysis(
    tasks=len(found),
    agreeing=sum(
      math.isclose(number["accuracy"], task.line["accuracy"], abs_tol=2e-6)
      for number, task in zip(numbers["after"], found, strict=True)
    ),
    measures={
      name: {
        "before": _number([n[name] for n in numbers["before"]]),
        "after": _number([n[name] for n in numbers["after"]]),
        "change": _number(
          [b[name] - a[name] for a, b in zip(numbers["before"], numbers["after"], strict=True)]
        ),
      }
      for name in numbers["before"][0]
    },
    shift={
      name: {part: band([getattr(curve, part) for curve in own]) for part in ("loss", "accuracy")}
      for name, own in curves.items()
    },
    terms=list(terms),
    norm=band([g.norm for g in traced]) if traced else None,
    cosine=band([g.cosine for g in traced]) if traced else None,
  )


def band(rows: Sequence[Any]) -> Band:
  """Mean and interval over the first axis, of the numbers that are finite."""
  rows = np.stack([np.asarray(row, np.float64) for row in rows])
  known = np.isfinite(rows)
  count = known.sum(0)
  mean = np.where(known, rows, 0).sum(0) / np.where(count, count, np.nan)
  square = np.where(known, (rows - mean) ** 2, 0).sum(0) / np.where(count, count, np.nan)
  return Band(mean, np.where(count > 1, 1.96 * np.sqrt(square / np.maximum(count, 1)), np.nan))


def _number(values: Sequence[float]) -> dict[str, float | None]:
  found = mean_and_ci(values)
  return {"mean": found.mean, "ci95": None if math.isnan(found.ci95) else found.ci95}


def write(
  folder: Path, name: str, found: Sequence[Readapted], analysis: Analysis, plane: str = "pca"
) -> None:
  """Writes `analysis.json` and the figures.

  Args:
    folder: where; it exists.
    name: of the run, for titles.
    found: the tasks; the first is drawn.
    analysis: of `summarize`.
    plane: of `projection.PROJECTIONS`.
  """
  files.write(folder / "analysis.json", json.dumps(to_json(analysis), indent=2) + "\n")
  paths = lambda figure: [folder / f"{figure}{suffix}" for suffix in SUFFIXES]
  analysis_figures.plot_shift(paths("shift"), name, analysis)
  analysis_figures.plot_measures(paths("measures"), name, analysis)
  if analysis.norm is not None:
    analysis_figures.plot_gradients(paths("gradients"), name, analysis)
  first = found[0]
  if first.look is not None:
    analysis_figures.plot_attention(paths("attention"), name, first.class_names, first.look)
  analysis_figures.plot_map(
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
