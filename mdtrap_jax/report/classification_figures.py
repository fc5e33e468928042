"""Figures of a classifier: confusion, reliability, accuracy by step. Each says n and intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from mdtrap_jax.report.classification import Bin, Interval, Scores
from mdtrap_jax.report.figures import COLORS

_NUMBERED = 20  # classes, at most, whose counts are written into their cells
_NAMED = 100  # whose names are written
_LONGEST = 32  # characters of a name


def confusion(scores: Scores) -> Figure:
  """A confusion matrix: counts, shaded by their share of the true class."""
  matrix, ways = scores.confusion, len(scores.classes)
  shares = matrix / np.maximum(matrix.sum(1), 1)[:, None]
  names = [_plain(row.name) for row in scores.classes]
  side = 0.6 + (0.5 if ways <= _NUMBERED else 0.18) * min(ways, 100)
  figure = Figure(figsize=(side + 4.2, side + 1.8), layout="constrained")
  axes = figure.subplots()
  shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)  # one hue: even for the color-blind
  size = 8 if ways <= _NUMBERED else 6
  places = range(ways if ways <= _NAMED else 0)
  axes.set_xticks(places, names[: len(places)], rotation=35 if ways <= 12 else 90, fontsize=size)
  for label in axes.get_xticklabels() if ways <= 12 else ():
    label.set(ha="right", rotation_mode="anchor")
  rows = [f"{name} ({_recall(row)})" for name, row in zip(names, scores.classes, strict=True)]
  axes.set_yticks(places, rows[: len(places)], fontsize=size)
  axes.set_xlabel("predicted")
  axes.set_ylabel("true")
  axes.spines[:].set_visible(False)
  axes.tick_params(length=0)
  if ways <= _NUMBERED:
    for i, j in zip(*np.nonzero(matrix), strict=True):
      color = "white" if shares[i, j] > 0.6 else "black"
      axes.text(j, i, str(matrix[i, j]), ha="center", va="center", color=color, fontsize=8)
  figure.colorbar(shown, label="share of the true class", shrink=0.8)
  _title(figure, f"{_counted(scores)}, accuracy {_percent(scores.accuracy)}")
  return figure


def reliability(bins: Sequence[Bin], scores: Scores) -> Figure:
  """The share that is right against the confidence, in bins of equal counts."""
  figure = Figure(figsize=(4.7, 4.4), layout="constrained")
  axes = figure.subplots()
  axes.plot([0, 1], [0, 1], ":", color="black", linewidth=1, label="as it should be")
  right = np.array([bin.accuracy for bin in bins])  # [B, 3]
  ends = np.abs(right[:, 1:] - right[:, :1]).T
  axes.errorbar(
    [bin.confidence for bin in bins], right[:, 0], yerr=ends, fmt="o", capsize=3,
    color=COLORS[0], label=f"{len(bins)} bins of equal counts, Wilson 95 %",
  )  # fmt: skip
  axes.set(xlim=(0, 1.02), ylim=(0, 1.02), aspect="equal")
  axes.set_xlabel("confidence (largest probability)")
  axes.set_ylabel("share right")
  axes.legend(frameon=False, fontsize=8, loc="upper left")
  axes.spines[["top", "right"]].set_visible(False)
  _title(figure, f"{_counted(scores)}, calibration error {scores.ece:.3f}")
  return figure


def steps(curves: Mapping[str, Mapping[int, Interval]], images: int) -> Figure:
  """Accuracy along the steps, a line for each set of images."""
  figure = Figure(figsize=(6, 3.6), layout="constrained")
  axes = figure.subplots()
  for k, (name, curve) in enumerate(curves.items()):
    marks = sorted(curve)
    values = 100 * np.array([curve[mark] for mark in marks])
    axes.errorbar(
      marks, values[:, 0], yerr=np.abs(values[:, 1:] - values[:, :1]).T,
      fmt="os^D"[k % 4] + ("-", "--", ":", "-.")[k % 4], capsize=3, color=COLORS[k % len(COLORS)],
      label=name,
    )  # fmt: skip
  axes.set(ylim=(0, 102), xlabel="step (0: not adapted)", ylabel="accuracy (%)")
  axes.legend(frameon=False, fontsize=8, loc="lower right")
  axes.spines[["top", "right"]].set_visible(False)
  _title(figure, f"n = {images}, 95 % intervals")
  return figure


def _title(figure: Figure, text: str) -> None:
  figure.suptitle(text, fontsize=10, x=0.01, ha="left")


def _counted(scores: Scores) -> str:
  again = "" if scores.predictions == scores.images else f" ({scores.predictions} predictions)"
  return f"n = {scores.images}{again}"


def _recall(row) -> str:
  return f"recall {100 * row.recall.value:.0f} % of {row.images}" if row.recall else "no images"


def _percent(share: Interval) -> str:
  value, low, high = (100 * number for number in share)
  return f"{value:.1f} % [{low:.1f}, {high:.1f}]"


def _plain(name: str) -> str:
  """A name on one line, short, and no mathematics."""
  name = "".join(c if c.isprintable() else "?" for c in name)
  name = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
  return name.replace("$", r"\$")
