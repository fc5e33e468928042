"""Figures of studies, one function a figure, each writes a PNG; and how figures are written."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from mdtrap_jax import files

# Okabe and Ito's palette: told apart by readers of any color vision.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def plot_study(table: Mapping[Any, Mapping[str, Any]], path: Path) -> None:
  """Each method's paired difference from cross-entropy alone, by cell.

  Args:
    table: of `study.run`: cell → method → row of a comparison; the first method of a cell is
      the one compared with.
    path: of the PNG.
  """
  methods = list(next(iter(table.values())))[1:]
  shots = sorted({cell.shots for cell in table})
  with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
    count = max(sum(cell.shots == k for cell in table) for k in shots)
    figure = Figure(figsize=(2.0 + 1.1 * count, 3.4 * len(shots)), layout="constrained")
    axes = figure.subplots(len(shots), 1, squeeze=False)[:, 0]
    for k, ax in zip(shots, axes, strict=True):
      chosen = {cell: rows for cell, rows in table.items() if cell.shots == k}
      for m, method in enumerate(methods):
        offset = (m - (len(methods) - 1) / 2) * 0.8 / len(methods)
        rows = [rows[method].difference for rows in chosen.values()]
        ax.errorbar(
          [i + offset for i in range(len(rows))],
          [100 * row.mean for row in rows],
          yerr=[100 * row.ci95 for row in rows],
          fmt="o",
          markersize=4,
          capsize=2,
          color=COLORS[m % len(COLORS)],
          label=method,
        )
      ax.axhline(0, color="black", linewidth=0.8)
      names = [
        cell.domain if cell.severity is None else f"{cell.domain}\n{cell.severity:g}"
        for cell in chosen
      ]
      ax.set_xticks(range(len(chosen)), names)
      ax.set_ylabel("difference from\ncross-entropy (points)")
      ax.set_title(f"5-way {k}-shot, paired, 95 % intervals", loc="left", fontsize=10)
    axes[0].legend(fontsize=8, ncols=3, frameon=False)
    save(figure, path, dpi=150)


def plot_gap(path: Path, domain: str, diagnosis: Mapping[str, Any]) -> None:
  """Draws what `report.diagnosis` measured on one domain as a PNG of three panels.

  Args:
    path: of the file.
    domain: for the title.
    diagnosis: as in `summary.json`.
  """
  figure = Figure(figsize=(13, 4), layout="constrained")
  left, middle, right = figure.subplots(1, 3)
  colors = {"ncc": "tab:gray", "url": "tab:orange", "copa": "tab:blue"}
  names = {"ncc": "before", "url": "after URL", "copa": "after CoPA"}
  for method, curve in diagnosis["shift"].items():
    own = diagnosis["gap"][method]
    for axes, values in ((left, curve["loss"]), (middle, 100 * np.array(curve["accuracy"]))):
      axes.plot(
        diagnosis["distances"],
        values,
        color=colors[method],
        label=f"{names[method]} (gap {own:.2f})",
      )
      axes.plot(own, np.interp(own, diagnosis["distances"], values), "o", color=colors[method])
  left.set_title("loss of the queries (nats)")
  middle.set_title("accuracy of the queries (%)")
  for axes in (left, middle):
    axes.set_xlabel("gap set by hand (dot: as it is)")
  left.legend(frameon=False, fontsize=8)
  right.semilogy(
    diagnosis["bound_scale"], color=colors["url"], label=r"its bound, $\sqrt{M}\,\|\Theta\|_F$"
  )
  right.semilogy(
    diagnosis["gap_ratio"], color=colors["url"], linestyle="--", label="the gap itself"
  )
  right.axhline(1.0, color="black", linestyle=":", linewidth=1)
  right.set_title("gap after URL's map, in gaps before")
  right.set_xlabel("step (unit-norm embeddings, not normalized again)")
  right.legend(frameon=False, fontsize=8)
  tasks = diagnosis["tasks"]
  figure.suptitle(
    f"{domain}: gap between prototypes and images, mean of {tasks} task{'s' if tasks > 1 else ''}"
  )
  save(figure, path, dpi=120)


def save(figure: Figure, path: Path, dpi: int) -> None:
  """Writes a PNG in one step; a link at `path` is replaced, not followed."""
  files.write(path, render(figure, "png", dpi))


def render(figure: Figure, form: str, dpi: int = 150) -> bytes:
  """A figure as `png`, or as `svg` with texts that can be searched; the same bytes each time."""
  content = io.BytesIO()
  with (
    matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mdtrap"}),
    warnings.catch_warnings(),
  ):
    warnings.filterwarnings("ignore", "Glyph")  # that the font lacks: a box stands for it
    figure.savefig(content, format=form, dpi=dpi, metadata={"Date": None} if form == "svg" else {})
  return content.getvalue()
