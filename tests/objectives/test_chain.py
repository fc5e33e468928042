"""Phases, marks, the optimizer's schedule and the assembly of the objective."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mdtrap_jax.objectives import chain

PAPER = {
  "vlm": {"weight": 1.0, "window": (0, 5)},
  "svl": {"weight": 0.1, "window": (0, 3)},
  "ra": {"weight": 3.0, "window": (0, 3)},
}


def with_window(term, window):
  return PAPER | {term: PAPER[term] | {"window": window}}


@pytest.mark.parametrize(
  ("steps", "expected"),
  [(250, (50, 100, 150, 200, 250)), (33, (6, 12, 18, 24, 33)), (5, (1, 2, 3, 4, 5))],
)
def test_marks(steps, expected):
  assert chain.evaluation_marks(steps) == expected


def test_too_few_steps():
  with pytest.raises(ValueError, match="steps=4: .* at least 5"):
    chain.evaluation_marks(4)


def test_some_marks():
  assert chain.evaluation_marks(12, (2, 5)) == (4, 12)


def test_the_clean_pass_runs_only_while_relations_are_aligned():
  assert chain.make_phases(PAPER, 250) == ((0, 150, True), (150, 250, False))
  assert chain.make_phases(with_window("ra", (1, 4)), 33) == (
    (0, 6, False),
    (6, 24, True),
    (24, 33, False),
  )
  assert chain.make_phases(with_window("ra", (2, 5)), 33) == ((0, 12, False), (12, 33, True))
  without = PAPER | {"ra": {"weight": 0.0, "window": (0, 3)}}
  assert chain.make_phases(without, 250) == ((0, 250, False),)


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({"svl_ra": {"weight": 1.0, "window": (0, 3)}}, "objective.svl_ra: no such term"),
    (with_window("svl", (3, 3)), r"objective.svl.window=\(3, 3\)"),
    (with_window("svl", (0, 6)), r"objective.svl.window=\(0, 6\)"),
  ],
)
def test_wrong_terms(config, message):
  with pytest.raises(ValueError, match=message):
    chain.enabled_terms(config)


def make(config, **settings):
  return chain.make_objective(
    config, optax.sgd(1.0), steps=10, logit_scale=1.0, num_views=5, num_clean=1, **settings
  )


def test_terms_without_weight_are_left_out():
  state = make(PAPER | {"svl": {"weight": 0.0, "window": (0, 3)}}).init({"w": jnp.zeros(2)})
  assert list(state) == ["vlm", "ra", "encoder", "optimizer"]
  assert list(chain.term_states(state)) == ["vlm", "ra"]


def test_nothing_to_learn():
  with pytest.raises(ValueError, match="every term .* weight 0"):
    make({"vlm": {"weight": 0.0, "window": (0, 5)}})


def test_relations_need_all_views():
  with pytest.raises(ValueError, match="adapt.batch_size=25: ra compares all views"):
    make(PAPER, batch_size=25)
  make({"vlm": PAPER["vlm"]}, batch_size=25)


def test_optimizer_matches_adamw_written_out():
  lr, steps, decay, floor = 0.01, 10, 0.1, 1e-4
  optimizer = chain.make_optimizer(lr, steps, weight_decay=decay, floor=floor)
  p = np.array([0.5, -1.0])
  params, state, m, v = jnp.asarray(p), None, 0.0, 0.0
  state = optimizer.init(params)
  for t in range(steps):
    g = np.array([np.sin(t + 1.0), 0.3 * t - 1.0])
    updates, state = optimizer.update(jnp.asarray(g), state, params)
    params = optax.apply_updates(params, updates)
    rate = floor + (lr - floor) * (1 + np.cos(np.pi * t / (8 * steps))) / 2
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    step = m / (1 - 0.9 ** (t + 1)) / (np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8)
    p = p * (1 - rate * decay) - rate * step
    np.testing.assert_allclose(params, p, rtol=2e-5)
