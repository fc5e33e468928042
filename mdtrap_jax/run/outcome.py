"""What a batch of tasks came to: as lines of `episodes.jsonl`, and as a snapshot keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from mdtrap_jax.data.task import TaskId
from mdtrap_jax.methods.method import STATUS, Evaluation
from mdtrap_jax.objectives.term import TermState

_TERM = "term "  # begins the names of a term's arrays in a snapshot


class Outcome(NamedTuple):
  """What a batch came to, on the host; leaves are `[E, P, ...]`."""

  evaluations: dict[int, Evaluation]  # by step; 0 is the baseline
  status: np.ndarray  # [E, P]

  @property
  def last(self) -> Evaluation:
    """After the last step."""
    return self.evaluations[max(self.evaluations)]

  def row(self, task: int, variant: int) -> Outcome:
    """One task under one variant."""
    return jax.tree.map(lambda leaf: leaf[task, variant], self)


def make_line(
  task: TaskId, about: Mapping[str, Any], row: Outcome, measured: Mapping[str, Any] | None = None
) -> dict[str, Any]:
  """What `episodes.jsonl` says of a task under one variant.

  Args:
    task: its identity.
    about: its data.
    row: what it came to.
    measured: of `Ready.measure`; takes the place of what the queries say, unless it failed.
  """
  steps = sorted(row.evaluations)
  ok = row.status == STATUS.index("ok") and not any(
    np.isnan(evaluation.cosines).any() for evaluation in row.evaluations.values()
  )
  if not ok:
    logging.warning("episode %d became non-finite: counted as failed.", task.episode)
  accuracy = {step: round(float(row.evaluations[step].accuracy), 6) for step in steps}
  extras = {f"{name}_before": value for name, value in row.evaluations[0].extras.items()}
  extras |= {f"{name}_after": value for name, value in row.last.extras.items()}
  losses = {name: term.value for name, term in row.last.terms.items() if term.weight}
  identity = task._asdict()
  if not task.domain:
    del identity["domain"]
  return {
    **identity,
    "status": "ok" if ok else "non-finite",
    "accuracy": accuracy[steps[-1]] if ok else None,
    "accuracy_at": {str(step): accuracy[step] for step in steps if step},
    "zero_shot_accuracy": accuracy[steps[0]],
    **{name: _number(value, 6) for name, value in extras.items()},
    **about,
    "losses": {name: _number(value) for name, value in losses.items()},
    "terms": {name: _along(row, name, [step for step in steps if step]) for name in losses},
    **(measured if ok and measured else {}),
  }


def _along(row: Outcome, term: str, marks: Sequence[int]) -> dict[str, list[float | None]]:
  """A term's loss, cotangent norm and cosine after each of the marks."""
  states = [row.evaluations[mark].terms[term] for mark in marks]
  return {
    kind: [_number(float(f"{getattr(state, kind):.6g}")) for state in states]
    for kind in ("value", "norm", "cosine")
  }


def _number(value: Any, digits: int | None = None) -> float | None:
  """A number for JSON, which has no NaN."""
  if not np.isfinite(value):
    return None
  return float(value) if digits is None else round(float(value), digits)


def arrays_of(evaluation: Evaluation) -> dict[str, Any]:
  """An evaluation as a snapshot keeps it."""
  terms = {
    f"{_TERM}{name}/{kind}": value
    for name, term in evaluation.terms.items()
    for kind, value in term._asdict().items()
    if kind != "memory"
  }
  return {
    "accuracy": evaluation.accuracy,
    "cosines": evaluation.cosines,
    **evaluation.extras,
    **terms,
  }


def evaluation_of(arrays: Mapping[str, Any]) -> Evaluation:
  """The evaluation of which `arrays_of` made this."""
  extras, terms = {}, {}
  for name, value in arrays.items():
    if name.startswith(_TERM):
      term, kind = name.removeprefix(_TERM).rsplit("/", 1)
      terms.setdefault(term, {"memory": ()})[kind] = value
    else:
      extras[name] = value
  states = {term: TermState(**kinds) for term, kinds in terms.items()}
  return Evaluation(extras.pop("accuracy"), extras.pop("cosines"), extras, states)
