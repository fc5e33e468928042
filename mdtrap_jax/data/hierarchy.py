"""Which classes of a data set are related: Meta-Dataset draws a task's classes from one family.

Its ImageNet comes with a part of WordNet's graph for each split, its Omniglot with alphabets
(Triantafillou et al., ICLR 2020, section 3.2).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

# No more leaves below a node that may be drawn: with 392 every class of ImageNet belongs to some
# family, and wider ones tell little of what is related.
WIDEST = 392


class Hierarchy(NamedTuple):
  """The families of a split's classes; a class may be in several of them or in none."""

  families: tuple[tuple[int, ...], ...]  # labels
  whole: bool  # a task has all classes of a family, up to the most; else a drawn number of them


def read_hierarchy(spec: dict[str, Any], split: str, numbers: range) -> Hierarchy | None:
  """The hierarchy that a `dataset_spec.json` gives, or `None`.

  Args:
    spec: its content.
    split: "TRAIN", "VALID" or "TEST".
    numbers: of the split's classes; a label is a place in it.

  Raises:
    ValueError, KeyError, TypeError: the specification is damaged.
  """
  if "superclasses_per_split" in spec:  # class numbers run through the alphabets in order
    families, first = [], 0
    for number in range(len(spec["classes_per_superclass"])):
      last = first + spec["classes_per_superclass"][str(number)]
      own = range(max(first, numbers.start), min(last, numbers.stop))
      families.append(tuple(n - numbers.start for n in own))
      first = last
    return Hierarchy(tuple(filter(None, families)), whole=False)
  if "split_subgraphs" in spec:
    labels = {name: int(number) - numbers.start for number, name in spec["class_names"].items()}
    below = leaves_below(spec["split_subgraphs"][split])
    families = (
      tuple(sorted(labels[leaf] for leaf in leaves))
      for node, leaves in sorted(below.items())
      if leaves != {node} and len(leaves) <= WIDEST
    )
    return Hierarchy(tuple(families), whole=True)
  return None


def leaves_below(graph: list[dict[str, Any]]) -> dict[str, set[str]]:
  """The leaves that can be reached from each node; from a leaf, itself."""
  children = {node["wn_id"]: node["children_ids"] for node in graph}
  below = {}
  for node in children:
    seen, left = {node}, [node]
    while left:
      new = set(children[left.pop()]) - seen
      seen |= new
      left += new
    below[node] = {one for one in seen if not children[one]}
  return below


def eligible(hierarchy: Hierarchy, available: np.ndarray, least: int) -> list[np.ndarray]:
  """The families with at least `least` of the available labels, each reduced to those.

  Raises:
    ValueError: there is none.
  """
  families = [np.intersect1d(family, available) for family in hierarchy.families]
  families = [family for family in families if len(family) >= least]
  if not families:
    raise ValueError(f"no family of related classes has the {least} classes of a task.")
  return families
