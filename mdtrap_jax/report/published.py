"""Every published number that we know, and the config that would reproduce it.

Sources: "Mind the Discriminability Trap in Source-Free Cross-domain Few-shot Learning" (CVPR 2026,
arXiv 2603.13341) and "Mind the Gap Between Prototypes and Images in Cross-domain Finetuning" (CoPA,
NeurIPS 2024, arXiv 2410.12474). docs/tables.md is written from here:

    python -m mdtrap_jax.report.published
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mdtrap_jax.report import tables

TARGETS = ("isic", "eurosat", "cropdisease", "chestx")
AVERAGE = "average"  # over `TARGETS`
ACCURACY, SHIFT, GAP = "accuracy (%)", "gap shift", "gap"
BEGIN, END = "<!-- published numbers: begin -->", "<!-- published numbers: end -->"


class Published(NamedTuple):
  """A number of a paper."""

  table: str  # where it stands
  measure: str
  backbone: str  # of configs/backbones.py, or "resnet18"
  target: str  # one of `TARGETS`, or their average
  method: str
  shots: int
  value: float  # in points where it is an accuracy

  @property
  def config(self) -> str:
    """What `mdtrap run --config=` takes; TARGET stands for each of the four in an average."""
    if self.measure == GAP:
      return f"copa:{self.method}"
    target = "TARGET" if self.target == AVERAGE else self.target
    return f"backbones:{self.backbone},{target},{self.method}"

  @property
  def fields(self) -> tuple[tuple[str, str], ...]:
    """Fields of the config that differ from the file's."""
    if self.measure == GAP:
      rate = (("head.learning_rate", "1.0"),) if self.method == "url" else ()
      return (("data.protocol", "vary_way_vary_shot"), ("data.records", "RECORDS"), *rate)
    return (("data.shots", str(self.shots)),) if self.shots != 1 else ()

  @property
  def sweep(self) -> str:
    """The sweep that has it among its cells."""
    return "ablation" if self.method in _ABLATION else {1: "one_shot", 5: "five_shot"}[self.shots]

  @property
  def command(self) -> str:
    """What reproduces it, but for `--workdir`; an average is a sweep's."""
    if self.target == AVERAGE:
      return f"mdtrap sweep sweep_paper:{self.sweep}"
    fields = "".join(f" --config.{name}={value}" for name, value in self.fields)
    return f"mdtrap run --config={self.config}{fields}"

  @property
  def tolerance(self) -> float | None:
    """Points by which a correct run may miss it; `None` where the papers say too little.

    Both means are over the paper's episodes, 800 at 1 shot and 400 otherwise, drawn apart: 19 of 20
    pairs differ by less than 1.96 σ √(2/E), with a spread σ of 10 points between episodes (6 on
    ChestX, whose accuracies are all near chance).
    """
    if self.measure != ACCURACY:
      return None
    episodes = 800 if self.shots == 1 else 400
    variance = {target: (6.0 if target == "chestx" else 10.0) ** 2 for target in TARGETS}
    if self.target == AVERAGE:
      spread = math.sqrt(sum(variance.values())) / len(TARGETS)
    else:
      spread = math.sqrt(variance[self.target])
    return round(1.96 * spread * math.sqrt(2 / episodes), 1)


# (backbone, method, shots) -> the four targets and their average; None where we know no number.
_ACCURACY = {
  ("clip", "baseline", 1): (36.40, 81.72, 84.62, 21.86, 56.07),
  ("clip", "svl_ra", 1): (38.12, 85.02, 87.20, 22.68, 58.26),
  ("pe_core", "baseline", 1): (40.89, 84.49, 91.75, 22.02, 59.78),
  ("pe_core", "svl_ra", 1): (45.01, 86.83, 93.03, 23.66, 62.14),
  ("pe_core", "baseline", 5): (None, None, None, None, 68.64),
  ("pe_core", "svl_ra", 5): (None, None, None, None, 70.29),
}
_ABLATION = {"svl": 57.55, "ra": 57.17}  # CLIP, 1 shot, average
# Distance of the best modality shift from the trained one: smaller is better aligned.
_SHIFT = {  # isic, eurosat, cropdisease, chestx
  "baseline": (0.406, 0.048, 0.014, 0.356),
  "visual": (0.626, 0.072, 0.022, 0.742),
  "svl": (0.191, 0.024, 0.012, 0.249),
  "svl_ra": (0.171, 0.027, 0.009, 0.238),
}
# Between mean prototype and mean image: before, and after URL's shared map at learning rate 1.0.
_GAP = {"ncc": 0.22, "url": 0.12}


def published() -> Iterator[Published]:
  """All of them, in the papers' order."""
  for (backbone, method, shots), values in _ACCURACY.items():
    for target, value in zip((*TARGETS, AVERAGE), values, strict=True):
      if value is not None:
        table = f"CVPR 2026, 5-way {shots}-shot"
        yield Published(table, ACCURACY, backbone, target, method, shots, value)
  for method, value in _ABLATION.items():
    yield Published("CVPR 2026, ablation", ACCURACY, "clip", AVERAGE, method, 1, value)
  for method, values in _SHIFT.items():
    for target, value in zip(TARGETS, values, strict=True):
      yield Published("CVPR 2026, gap-shift experiment", SHIFT, "clip", target, method, 1, value)
  for method, value in _GAP.items():
    yield Published("NeurIPS 2024, gap", GAP, "resnet18", "Meta-Dataset", method, 0, value)


def accuracy(backbone: str, target: str, method: str, shots: int) -> Published | None:
  """The published accuracy of a setting, if we know it."""
  for row in published():
    setting = row.backbone, row.target, row.method, row.shots
    if row.measure == ACCURACY and setting == (backbone, target, method, shots):
      return row
  return None


def agrees(row: Published | None, mean: float) -> bool | None:
  """Whether a measured accuracy, in points, is the published one; `None` if that is unknown."""
  if row is None or row.tolerance is None or math.isnan(mean):
    return None
  return abs(mean - row.value) <= row.tolerance


def page(rows: Sequence[Published] | None = None) -> str:
  """The part of docs/tables.md between `BEGIN` and `END`, in Markdown."""
  rows = list(published()) if rows is None else rows
  header = ("backbone", "method", "target", "command", "expected", "tolerance", "measured")
  parts = [BEGIN]
  for table in dict.fromkeys(row.table for row in rows):
    own = [row for row in rows if row.table == table]
    parts += [f"### {table}: {own[0].measure}", tables.markdown(header, map(_cells, own))]
  return "\n\n".join([*parts, END])


def _cells(row: Published) -> tuple[str, ...]:
  value = f"{row.value:.2f}" if row.measure == ACCURACY else f"{row.value:.3f}"
  tolerance = "–" if row.tolerance is None else f"± {row.tolerance:.1f}"
  return (row.backbone, row.method, row.target, f"`{row.command}`", value, tolerance, "")


if __name__ == "__main__":
  print(page())
