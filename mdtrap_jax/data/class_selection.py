"""Which classes of a source take part: by name, and by having enough images."""

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from absl import logging

if TYPE_CHECKING:
  from mdtrap_jax.data.sources import Source


class ClassSubset:
  """A source restricted to some classes, its images under their original indices.

  Images of the other classes keep their place but get the label -1, which is never drawn. So
  the indices in results mean the whole source's images whatever classes were kept, and a cache
  of its images serves every subset.
  """

  def __init__(self, source: "Source", class_names: Sequence[str]):
    """Keeps `class_names`, in the source's own order."""
    kept = [label for label, name in enumerate(source.class_names) if name in set(class_names)]
    renumbered = np.full(len(source.class_names) + 1, -1, np.int32)  # The last is for -1 itself.
    renumbered[kept] = np.arange(len(kept))
    self.name = source.name
    self.class_names = tuple(source.class_names[label] for label in kept)
    self.labels = renumbered[source.labels]  # [n] int32
    self.identity = source.identity
    self.image = source.image
    self.describe = source.describe


def keep_classes(source: "Source", class_names: Sequence[str]) -> "Source":
  """Restricts a source to the named classes; no names at all keep it whole.

  Raises:
    ValueError: If the source has no class of such a name.
  """
  for name in class_names:
    if name not in source.class_names:
      near = difflib.get_close_matches(name, source.class_names, n=1, cutoff=0.5)
      hint = f" Did you mean {near[0]!r}?" if near else ""
      raise ValueError(
        f"{source.name} has no class {name!r}.{hint} Its classes: "
        f"{', '.join(source.class_names)}. Change --config.data.classes."
      )
  return ClassSubset(source, class_names) if class_names else source


def check_feasible(
  source: "Source", ways: int, shots: int, queries: int, small_classes: str = "error"
) -> "Source":
  """Makes sure that every class can fill an episode and that there are enough classes.

  Args:
    source: Where episodes are drawn.
    ways: Classes per episode, `C`.
    shots: Support images per class, `K`.
    queries: Query images per class, `Q`.
    small_classes: What becomes of a class with fewer than `K + Q` images: "error", or "drop" to
      leave it out of all episodes, with a warning.

  Returns:
    The source, without its small classes if they were dropped.

  Raises:
    ValueError: If episodes cannot be drawn, naming every class at fault and its count.
  """
  if small_classes not in ("error", "drop"):
    raise ValueError(f"small_classes={small_classes!r} is neither 'error' nor 'drop'.")
  needed = shots + queries
  counts = np.bincount(source.labels[source.labels >= 0], minlength=len(source.class_names))
  small = [
    f"{name} ({count})"
    for name, count in zip(source.class_names, counts, strict=True)
    if count < needed
  ]
  if small:
    lacking = (
      f"{source.name}: fewer than shots + queries = {shots} + {queries} = {needed} images in "
      f"{', '.join(small)}."
    )
    if small_classes == "error":
      raise ValueError(
        f"{lacking} Ask for fewer shots or queries, leave such classes out with "
        "--config.data.small_classes=drop, or name those to keep in --config.data.classes."
      )
    logging.warning("%s Left out of all episodes.", lacking)
    large = [
      name for name, count in zip(source.class_names, counts, strict=True) if count >= needed
    ]
    source = ClassSubset(source, large)
  if len(source.class_names) < ways:
    raise ValueError(
      f"{source.name}: an episode of {ways} ways needs as many classes with {needed} images "
      f"each, but there are {len(source.class_names)} ({', '.join(source.class_names)}). Set "
      "--config.data.ways= to at most that, ask for fewer shots or queries, or add images."
    )
  return source
