"""The figures of `mdtrap analyze`; one function a figure, each writes PNG and SVG."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from mdtrap_jax import files
from mdtrap_jax.analysis.readapt import Look
from mdtrap_jax.analysis.summary import Analysis, Band
from mdtrap_jax.methods.text_gap import SHIFTS
from mdtrap_jax.report.figures import COLORS, render

STYLE = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}
STAGES = {"before": (COLORS[0], "--"), "after": (COLORS[1], "-")}
MARKERS = "osD^vP*Xph<>"
_BARS = (  # panels of `plot_measures`: title and measures
  ("accuracy (%)", {"accuracy": "with texts", "ncc_accuracy": "nearest class\nmean"}, 100),
  ("cosine of queries to texts", {"cosine_own": "own class", "cosine_other": "other classes"}, 1),
  ("scatter, unit images", {"scatter_within": "within\nclasses", "scatter_between": "between"}, 1),
  ("images and texts", {"gap": "gap", "gap_shift": "gap-shift"}, 1),
)


def plot_shift(paths: Sequence[Path], name: str, analysis: Analysis) -> None:
  """Loss and accuracy of the queries when images and texts are moved along their gap."""
  with _written(paths, 9, 3.4) as figure:
    panels = zip(
      figure.subplots(1, 2), ("loss", "accuracy"), ("loss (nats)", "accuracy (%)"), strict=True
    )
    for ax, part, title in panels:
      factor = 100 if part == "accuracy" else 1
      for stage, (color, line) in STAGES.items():
        _draw(ax, SHIFTS, analysis.shift[stage][part], factor, color, line, stage)
      ax.axvline(0, color="black", linewidth=0.8, linestyle=":")
      ax.set_xlabel("images and texts moved towards each other by")
      ax.set_title(f"{title} of the queries", loc="left", fontsize=9)
    figure.axes[0].legend(frameon=False)
    _title(figure, name, analysis)


def plot_measures(paths: Sequence[Path], name: str, analysis: Analysis) -> None:
  """What adaptation did to accuracy, alignment, scatter and gap."""
  with _written(paths, 11, 3.2) as figure:
    for ax, (title, shown, factor) in zip(figure.subplots(1, len(_BARS)), _BARS, strict=True):
      for s, (stage, (color, _)) in enumerate(STAGES.items()):
        values = [analysis.measures[measure][stage] for measure in shown]
        ax.errorbar(
          np.arange(len(shown)) + 0.16 * (2 * s - 1),
          [factor * value["mean"] for value in values],
          yerr=[factor * (value["ci95"] or 0) for value in values],
          fmt="os"[s],
          color=color,
          capsize=3,
          label=stage,
        )
      ax.set_xticks(range(len(shown)), shown.values())
      ax.set_xlim(-0.6, len(shown) - 0.4)
      ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))
      ax.set_title(title, loc="left", fontsize=9)
    figure.axes[0].legend(frameon=False)
    _title(figure, name, analysis)


def plot_gradients(paths: Sequence[Path], name: str, analysis: Analysis) -> None:
  """Norms of the terms' gradients and the cosines between them, by step."""
  with _written(paths, 9, 3.4) as figure:
    left, right = figure.subplots(1, 2)
    steps = np.arange(len(analysis.norm.mean))
    for k, term in enumerate(analysis.terms):
      band = _part(analysis.norm, k)
      on = band.mean > 0
      color = COLORS[k % len(COLORS)]
      _draw(left, steps[on], type(band)(*(part[on] for part in band)), 1, color, "-", term)
    pairs = list(itertools.combinations(range(len(analysis.terms)), 2))
    for p, (i, j) in enumerate(pairs):
      label = f"{analysis.terms[i]}, {analysis.terms[j]}"
      color = COLORS[p % len(COLORS)]
      _draw(right, steps, _part(analysis.cosine, i, j), 1, color, "-", label)
    left.set_yscale("log")
    left.set_title("norm of each term's weighted gradient", loc="left", fontsize=9)
    right.axhline(0, color="black", linewidth=0.8)
    right.set_ylim(-1.05, 1.05)
    right.set_title("cosine between gradients", loc="left", fontsize=9)
    if not pairs:
      right.text(0.5, 0.6, "one term alone", ha="center", transform=right.transAxes)
    for ax in (left, right):
      ax.set_xlabel("step")
      ax.xaxis.get_major_locator().set_params(integer=True)
      if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False)
    _title(figure, name, analysis)


def plot_attention(
  paths: Sequence[Path], name: str, class_names: Sequence[str], look: Look
) -> None:
  """Support images, and the attention of the class token or pooling query before and after."""
  ways = min(len(look.images), 8)
  most = max(look.before[:ways].max(), look.after[:ways].max())
  with _written(paths, 1.5 + 1.5 * ways, 5.2, {"font.size": 8}) as figure:
    axes = figure.subplots(3, ways, squeeze=False)
    for c in range(ways):
      axes[0, c].imshow(look.images[c])
      axes[0, c].set_title(_plain(class_names[c], 20), fontsize=8)
      for r, maps in ((1, look.before), (2, look.after)):
        shown = axes[r, c].imshow(maps[c], cmap="cividis", vmin=0, vmax=most)
    for row, label in zip(axes, ("image", "before", "after"), strict=True):
      for ax in row:
        ax.set_xticks([])
        ax.set_yticks([])
      row[0].set_ylabel(label)
    figure.colorbar(shown, ax=axes[1:], label="share of attention", shrink=0.8)
    figure.suptitle(f"{_plain(name)}: attention in one episode (n = 1)", fontsize=10)


def plot_map(
  paths: Sequence[Path],
  name: str,
  class_names: Sequence[str],
  points: Sequence[np.ndarray],
  labels: np.ndarray,
  about: str,
) -> None:
  """Queries and texts of one episode in a plane, before and after.

  Args:
    paths: of the files.
    name: of the run.
    class_names: `[C]`.
    points: queries and texts before, then after; `[Q, 2]` and `[C, 2]`.
    labels: `[Q]`, of the queries.
    about: what the axes are.
  """
  with _written(paths, 10.5, 4.2) as figure:
    panels = zip(
      figure.subplots(1, 2, sharex=True, sharey=True),
      ("before", "after"),
      (points[:2], points[2:]),
      strict=True,
    )
    for ax, title, (queries, texts) in panels:
      for c, class_name in enumerate(class_names):
        style = dict(color=COLORS[c % len(COLORS)], marker=MARKERS[c % len(MARKERS)])
        ax.scatter(*queries[labels == c].T, s=14, alpha=0.6, label=_plain(class_name, 30), **style)
        ax.scatter(*texts[c], s=140, edgecolors="black", linewidths=1.2, **style)
      ax.set_title(f"{title} (large: texts)", loc="left", fontsize=9)
      ax.set_xlabel(about)
    if len(class_names) <= 20:
      figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.suptitle(f"{_plain(name)}: one episode, {len(labels)} queries", fontsize=10)


@contextlib.contextmanager
def _written(
  paths: Sequence[Path], width: float, height: float, style: Mapping[str, Any] = STYLE
) -> Iterator[Figure]:
  """A figure of that many inches, which is written once it is drawn."""
  with matplotlib.rc_context(style):
    figure = Figure(figsize=(width, height), layout="constrained")
    yield figure
    for path in paths:
      files.write(path, render(figure, path.suffix[1:], dpi=130))


def _draw(ax: Any, x: np.ndarray, band: Band, factor: float, color: str, line: str, label: str):
  mean, ci95 = factor * band.mean, factor * np.nan_to_num(band.ci95)
  ax.plot(x, mean, color=color, linestyle=line, label=label)
  ax.fill_between(x, mean - ci95, mean + ci95, color=color, alpha=0.2, linewidth=0)


def _part(band: Band, *index: int) -> Band:
  return type(band)(*(part[(slice(None), *index)] for part in band))


def _title(figure: Figure, name: str, analysis: Analysis) -> None:
  tasks = analysis.tasks
  intervals = ", 95 % intervals" if tasks > 1 else ""
  figure.suptitle(f"{_plain(name)}: {tasks} episode{'s' * (tasks > 1)}{intervals}", fontsize=10)


def _plain(text: str, longest: int = 80) -> str:
  """A name as it is, not as mathematics, and not too long."""
  short = text if len(text) <= longest else f"{text[: longest - 1]}…"
  return short.replace("$", r"\$")
