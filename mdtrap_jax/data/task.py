"""One few-shot task: its identity, and its arrays as a method adapts it. An episode is a task.

Legend: `N` support and `Q` query rows, `C` ways, `D` width. A task may hold fewer rows and classes
than its arrays: a row whose label is negative is padding and counts nowhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax


class TaskId(NamedTuple):
  """What a task is; everything drawn for it follows from this."""

  episode: int  # its number in the files of a run; does not depend on how many there are
  domain: str  # one of several data sets; empty where there is one
  seed: int
  task: int  # its number among those of the domain and the seed


class Task(NamedTuple):
  """The data of one task, or of a batch of them with a leading axis `[E, ...]`."""

  support: jax.Array  # [N, ...] images [S, S, 3] uint8, features [D] or feature maps [h, w, D]
  support_labels: jax.Array  # [N] int32, in 0 … C-1; negative for padding
  query: jax.Array  # [Q, ...], like `support`
  query_labels: jax.Array  # [Q] int32, likewise
  seed: jax.Array | int = 0  # [] int32
  number: jax.Array | int = 0  # [] int32; with the seed, the identity of all randomness
  token_ids: jax.Array | None = None  # [C, L] int32, the classes' prompts, where texts are used
  text: jax.Array | None = None  # [C, D] float32, their embeddings by the base model


class Loaded(NamedTuple):
  """One task on the host."""

  task: Task  # NumPy arrays
  about: Mapping[str, Any]  # what a line says of it: `class_names`, `support` and `query`


class TaskBatch(NamedTuple):
  """Some tasks on the host."""

  ids: Sequence[TaskId]  # E
  tasks: Task  # [E, ...] NumPy arrays
  about: Sequence[Mapping[str, Any]]  # E


def all_tasks(domains: Sequence[str], seeds: Sequence[int], count: int) -> list[TaskId]:
  """`count` tasks of each domain and seed, domain by domain.

  Their numbers interleave domains and seeds, so that a run may be resumed with more tasks.
  """
  pairs = list(itertools.product(domains, seeds))
  return [
    TaskId(task * len(pairs) + column, domain, seed, task)
    for column, (domain, seed) in enumerate(pairs)
    for task in range(count)
  ]
