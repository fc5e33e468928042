"""Few-shot tasks of fixed and of varying size: which images, and their padding to one shape.

The varying sizes follow Meta-Dataset (Triantafillou et al., ICLR 2020, section 3.2 and appendix),
and so does the choice of related classes where a data set has a hierarchy of them.
Legend: `C` ways, `N` support and `Q` query rows of a task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mdtrap_jax.data.draws import shuffle, uniform
from mdtrap_jax.data.hierarchy import Hierarchy, eligible
from mdtrap_jax.data.sampler import sample_episode
from mdtrap_jax.data.task import Task

PADDING = -1  # the label of a row that is not there


class Rule(NamedTuple):
  """How the sizes of a task are drawn; the defaults are Meta-Dataset's."""

  min_ways: int = 5
  max_ways: int = 50
  shots: int | None = None  # of every class; None draws them
  max_queries: int = 10  # of each class
  max_support: int = 500  # rows of a task
  max_class_support: int = 100  # that a class may add to the size of the support set


class Fixed(NamedTuple):
  """Tasks of one size: `C`-way, `K`-shot."""

  ways: int
  shots: int
  queries: int


RULES = {
  "vary_way_vary_shot": Rule(),
  "vary_way_5_shot": Rule(shots=5),
  "5_way_1_shot": Rule(max_ways=5, max_class_support=1),  # as URL's protocol has it
}


class TaskIndices(NamedTuple):
  """The images of one task, as indices into the source; rows are class-major."""

  classes: np.ndarray  # [C] int32, classes of the source in drawn order
  support: np.ndarray  # [N] int64
  support_labels: np.ndarray  # [N] int32, places in `classes`
  query: np.ndarray  # [Q] int64
  query_labels: np.ndarray  # [Q] int32


def sample_task(
  labels: np.ndarray,
  *,
  seed: int,
  number: int,
  rule: Rule | Fixed,
  hierarchy: Hierarchy | None = None,
) -> TaskIndices:
  """Draws one task; a pure function of the labels, the seed and the task's number.

  Tasks of a fixed size are the same episodes that `sampler.sample_episode` draws, so heads and
  fine-tuned models with one seed meet the same images.

  Args:
    labels: int32 `[n]`; images with a negative label are never drawn.
    seed: of the run.
    number: of the task.
    rule: `Fixed`, or the rule of varying sizes.
    hierarchy: of the classes. Where the number of ways may vary, a task's classes are of one
      family; where it is given, Meta-Dataset draws them from all.

  Raises:
    ValueError: too few classes or images; `check_rule` says so before any is drawn.
  """
  if isinstance(rule, Fixed):
    episode = sample_episode(labels, seed=seed, episode=number, **rule._asdict())
    return _indices(episode.classes, episode.support, episode.query)
  bits = np.random.Philox(key=np.array([seed, number], np.uint64))
  available = np.unique(labels[labels >= 0])
  related = hierarchy is not None and rule.min_ways < rule.max_ways
  if related:
    families = eligible(hierarchy, available, rule.min_ways)
    available = families[int(uniform(bits) * len(families))]
  most = min(rule.max_ways, len(available))
  drawn = rule.min_ways + int(uniform(bits) * (most - rule.min_ways + 1))
  ways = most if related and hierarchy.whole else drawn
  classes = shuffle(bits, available)[:ways].astype(np.int32)
  members = [shuffle(bits, np.flatnonzero(labels == label)) for label in classes]
  counts = np.array([len(images) for images in members])
  queries = num_queries(counts, rule)
  shots = num_shots(counts, queries, rule, beta=uniform(bits), weights=uniform(bits, ways))
  support = [images[:k] for images, k in zip(members, shots, strict=True)]
  query = [images[k : k + queries] for images, k in zip(members, shots, strict=True)]
  return _indices(classes, support, query)


def num_queries(counts: np.ndarray, rule: Rule) -> int:
  """`q = min(10, min_c ⌊n_c / 2⌋)`; what is left beside the shots where these are given.

  Args:
    counts: `[C]`, `n_c`, images of the drawn classes.
    rule: sizes.

  Raises:
    ValueError: a class has too few images for one query beside its support.
  """
  most = counts.min() // 2 if rule.shots is None else counts.min() - rule.shots
  if most < 1:
    raise ValueError(f"A class has {counts.min()} images: too few for support and query.")
  return int(min(rule.max_queries, most))


def num_shots(
  counts: np.ndarray, queries: int, rule: Rule, *, beta: float, weights: np.ndarray
) -> np.ndarray:
  """The number of support images of each class, `[C]`.

  The support set's size is `|S| = min(500, Σ_c ⌈β min(100, n_c - q)⌉)`. Of it, every class gets
  one image and a share of the rest that follows its own size, up to a random factor:
  `k_c = min(⌊R_c (|S| - C)⌋ + 1, n_c - q)`, `R_c ∝ n_c e^{α_c}`.

  Args:
    counts: `[C]`, `n_c`.
    queries: `q`, of each class.
    rule: sizes.
    beta: uniform in [0, 1).
    weights: `[C]`, uniform in [0, 1): `α_c` goes from `log ½` to `log 2`.
  """
  if rule.shots is not None:
    return np.full(len(counts), rule.shots)
  left = counts - queries
  # ⌊βx⌋ + 1 with β in [0, 1) is ⌈βx⌉ with β in (0, 1], as Meta-Dataset computes it.
  size = int(np.floor(beta * np.minimum(rule.max_class_support, left) + 1).sum())
  size = min(rule.max_support, size)
  alpha = np.log(0.5) + weights * (np.log(2) - np.log(0.5))
  share = counts * np.exp(alpha)
  share = share / share.sum()
  return np.minimum(np.floor(share * (size - len(counts))).astype(int) + 1, left)


def check_rule(
  name: str,
  labels: np.ndarray,
  class_names: Sequence[str],
  rule: Rule | Fixed,
  hierarchy: Hierarchy | None = None,
) -> None:
  """Makes sure that every task of a rule can be drawn.

  Raises:
    ValueError: too few classes, or classes with too few images, all named with their counts.
  """
  present = np.unique(labels[labels >= 0])
  ways = rule.ways if isinstance(rule, Fixed) else rule.min_ways
  if ways < 2:
    raise ValueError(
      f"{name}: tasks of {ways} class have nothing to tell apart; set "
      "--config.tasks.ways= to at least 2."
    )
  if len(present) < ways:
    raise ValueError(
      f"{name}: a task needs at least {ways} classes, but only {len(present)} "
      "have images. Lower --config.tasks.ways=, or leave the domain out."
    )
  if isinstance(rule, Fixed):
    needed, what = rule.shots + rule.queries, f"shots + queries = {rule.shots} + {rule.queries}"
  else:
    needed, what = (rule.shots or 1) + 1, f"{rule.shots or 1} for the support and 1 query"
  if hierarchy is not None and not isinstance(rule, Fixed) and ways < rule.max_ways:
    try:
      eligible(hierarchy, present, ways)
    except ValueError as error:
      raise ValueError(f"{name}: {error} Leave the domain out.") from None
  counts = np.bincount(labels[labels >= 0], minlength=len(class_names))
  small = [f"{class_names[c]} ({counts[c]})" for c in present if counts[c] < needed]
  if small:
    raise ValueError(
      f"{name}: fewer than {needed} images ({what}) in {', '.join(small)}. Ask for fewer "
      "shots or queries, or name the classes to keep in --config.data.classes."
    )


class Sizes(NamedTuple):
  """A shape that tasks are padded to."""

  ways: int  # C
  support: int  # N
  query: int  # Q


def common_sizes(tasks: Sequence[TaskIndices]) -> Sizes:
  """The smallest sizes that hold all these tasks."""
  return Sizes(
    *(
      max(len(part) for part in parts)
      for parts in zip(*((task.classes, task.support, task.query) for task in tasks), strict=True)
    )
  )


def gather(features: np.ndarray, tasks: Sequence[TaskIndices], sizes: Sizes) -> Task:
  """A batch `[E, ...]` of padded tasks; padding repeats a row of the task itself.

  Args:
    features: `[n, ...]`, of the whole source; may be a memory map.
    tasks: `E` of them.
    sizes: at least as large as every task.
  """

  def rows(indices, labels, size):
    missing = (0, size - len(indices))
    return np.pad(indices, missing, "edge"), np.pad(labels, missing, constant_values=PADDING)

  columns = []
  for task in tasks:
    support = rows(task.support, task.support_labels, sizes.support)
    query = rows(task.query, task.query_labels, sizes.query)
    columns.append((*support, *query))
  support, support_labels, query, query_labels = (
    np.stack(column) for column in zip(*columns, strict=True)
  )
  return Task(features[support], support_labels, features[query], query_labels)


def _indices(classes, support, query) -> TaskIndices:
  count = lambda rows: np.repeat(
    np.arange(len(classes), dtype=np.int32), [len(images) for images in rows]
  )
  return TaskIndices(
    classes,
    np.concatenate(list(support)),
    count(support),
    np.concatenate(list(query)),
    count(query),
  )
