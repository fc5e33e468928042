"""Figures of studies; one function a figure, each writes a PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
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


def save(figure: Figure, path: Path, dpi: int) -> None:
  """Writes a PNG in one step; a link at `path` is replaced, not followed."""
  png = io.BytesIO()
  figure.savefig(png, format="png", dpi=dpi)
  files.write(path, png.getvalue())
