"""Adapts one batch of episodes in segments of a few seconds, between which the host can act."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mdtrap_jax.methods.finetune import AdaptState, Evaluation
from mdtrap_jax.objectives import chain
from mdtrap_jax.objectives.terms import TermState
from mdtrap_jax.run.parallel import Programs

SECONDS = 5.0  # that a segment should take


class Outcome(NamedTuple):
  """What a batch came to, on the host; leaves are `[E, P, ...]`."""

  evaluations: dict[int, Evaluation]  # by step; 0 is zero-shot
  terms: dict[str, TermState]  # after the last step, without their memories
  status: np.ndarray


def adapt_batch(
  programs: Programs,
  params: Any,
  prepared: Any,
  state: AdaptState,
  phases: Sequence[chain.Phase],
  marks: Sequence[int],
  *,
  start: int = 0,
  evaluations: dict[int, Evaluation] | None = None,
  after: Callable[[int, int, AdaptState, dict[int, Evaluation]], None],
) -> Outcome:
  """Takes a batch through its remaining steps.

  Args:
    programs: compiled.
    params: of the model.
    prepared: `[E, ...]`, the episodes' fixed parts.
    state: `[E, P, ...]`, after `start` steps; its memory is taken over.
    phases: of the schedule; each has a program of its own.
    marks: steps after which the queries are classified.
    start: steps already done.
    evaluations: those already made.
    after: called after each segment with the steps done in all, the segment's steps, the state
      and the evaluations so far; may raise to stop.
  """
  evaluations = dict(evaluations or {})
  if 0 not in evaluations:
    evaluations[0] = jax.device_get(programs.evaluate(params, prepared, state))
  length = 1
  for phase in phases:
    step, run = max(phase.start, start), programs.run[phase.clean]
    while step < phase.stop:
      stop = min(step + length, phase.stop, *(mark for mark in marks if mark > step))
      before = time.monotonic()
      state = jax.block_until_ready(run(params, prepared, state, step, stop))
      rate = (time.monotonic() - before) / (stop - step)
      done, step = stop - step, stop
      length = max(1, int(SECONDS / max(rate, 1e-6)))
      if step in marks:
        evaluations[step] = jax.device_get(programs.evaluate(params, prepared, state))
      after(step, done, state, evaluations)
  terms = {
    name: term._replace(memory=()) for name, term in chain.term_states(state.opt_state).items()
  }
  return Outcome(evaluations, *jax.device_get((terms, state.status)))
