"""How good a classifier was found to be, and the files that show it: page, figures, tables.

Legend: `n` images, `m` predictions of them, `C` classes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mdtrap_jax import files
from mdtrap_jax.report import classification, classification_figures, figures, page
from mdtrap_jax.report.classification import PAGE, Interval, Outcomes, Scores


class Assessment(NamedTuple):
  """What a classifier said of images whose class is known, and how that was made."""

  title: str  # a question that the page answers
  how: str  # the images were predicted, in a sentence
  names: Sequence[str]  # [C]
  files: Sequence[str]  # [n] what images are called
  items: Sequence[Any]  # [n] paths or images, for small copies; () where there are none
  rows: np.ndarray  # [m] the image of each prediction
  outcomes: Outcomes  # [m]
  closeness: np.ndarray  # [m] cosine of the image to its own class
  anchor: str  # what a class is to the method: "text" or "prototype"; "": closeness is a logit
  scores: Mapping[str, Scores]  # by method, the one in question first
  curves: Mapping[str, Mapping[int, Interval]]  # accuracy by step, of named sets of images
  facts: Mapping[str, str]  # what was done, by name
  command: str  # that repeats it
  notes: Sequence[str] = ()  # what the reader must know
  guess: float | None = None  # accuracy of guessing; one of all classes if not given
  tables: Mapping[str, str] = {}  # more files to write, such as every prediction

  @property
  def own(self) -> Scores:
    """The scores of the method in question."""
    return next(iter(self.scores.values()))

  def write_report(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Writes `report.html`, its figures and tables into a new folder; see `write`."""
    write(self, folder, overwrite=overwrite)


def draw(found: Assessment) -> dict[str, bytes]:
  """The figures, by file name; steps only where a method has marks between first and last."""
  own = found.own
  bins = classification.reliability(found.outcomes, own.images)
  drawn = {
    "confusion": classification_figures.confusion(own),
    "reliability": classification_figures.reliability(bins, own),
  }
  if any(len(curve) > 2 for curve in found.curves.values()):
    drawn["steps"] = classification_figures.steps(found.curves, own.images)
  return {
    f"{name}.{form}": figures.render(figure, form)
    for name, figure in drawn.items()
    for form in ("png", "svg")
  }


def contents(found: Assessment) -> dict[str, bytes]:
  """All files, by name."""
  drawn = draw(found)
  texts = {
    "per_class.csv": classification.class_table(found.own),
    "confusion.csv": classification.confusion_table(found.own),
    **found.tables,
  }
  encoded = {name: text.encode(errors="surrogateescape") for name, text in texts.items()}
  return drawn | encoded | {PAGE: page.make(found, drawn)}


def check_target(folder: str | os.PathLike[str], overwrite: bool) -> None:
  """Refuses a folder that holds something, before minutes of work.

  Raises:
    FileExistsError: it is a file, or not empty and not `overwrite`.
  """
  if not overwrite and files.is_there(folder):
    raise FileExistsError(
      f"{folder} is not empty; give another folder, or overwrite=True (--force)."
    )


def write(found: Assessment, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
  """Writes all files into a folder.

  Args:
    found: what to show.
    folder: made if need be.
    overwrite: write into a folder that is not empty; files of other names stay.

  Raises:
    FileExistsError: as `check_target`.
  """
  check_target(folder, overwrite)
  made = contents(found)
  with files.writing(folder) as here:
    here.mkdir(parents=True, exist_ok=True)
    for name, content in made.items():
      files.write(here / name, content)
