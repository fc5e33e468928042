"""Means, intervals and paired differences, by hand."""

import math

import numpy as np
import pytest

from mdtrap_jax.statistics import Accuracy, accuracy_of, mean_and_ci, paired


def test_mean_and_interval_by_hand():
  accuracy = mean_and_ci([0.2, 0.4, 0.6])
  assert accuracy.episodes == 3
  np.testing.assert_allclose(accuracy.mean, 0.4)
  np.testing.assert_allclose(accuracy.ci95, 1.96 * np.sqrt(0.08 / 3) / np.sqrt(3))


def test_a_handful_of_draws_has_students_interval():
  """4.3027 is the quantile of two degrees of freedom, of any table."""
  found = mean_and_ci([0.7, 0.8, 0.9], few=True)
  np.testing.assert_allclose(found.ci95, 4.302653 * 0.1 / np.sqrt(3), rtol=1e-6)
  lines = [{"status": "ok", "accuracy": a, "tests": {}} for a in (0.7, 0.8, 0.9)]
  assert accuracy_of(lines) == found
  assert accuracy_of([{"status": "ok", "accuracy": a} for a in (0.7, 0.8, 0.9)]).ci95 < found.ci95
  pairs = dict(enumerate([0.1] * 3)), dict(enumerate([0.8, 0.9, 1.0]))
  np.testing.assert_allclose(paired(*pairs, few=True), (0.8, found.ci95, 3))
  assert math.isnan(mean_and_ci([0.5], few=True).ci95)
  many = np.random.default_rng(0).random(1000)
  np.testing.assert_allclose(mean_and_ci(many, few=True).ci95, mean_and_ci(many).ci95, rtol=2e-3)


def test_few_episodes_have_no_interval():
  one, none = mean_and_ci([0.5]), mean_and_ci([])
  assert (one.mean, one.episodes, none.episodes) == (0.5, 1, 0)
  assert math.isnan(one.ci95)
  assert math.isnan(none.ci95)
  assert math.isnan(none.mean)
  assert str(one) == "50.00 ± – %"
  assert none.points() == "–"
  assert mean_and_ci([0.5, 0.5]).points() == "50.00 ± 0.00"  # two equal ones do have one


@pytest.mark.parametrize(
  ("arguments", "text"), [((), "-1.23 ± 0.46"), ((1,), "-1.2 ± 0.5"), ((1, "+"), "-1.2 ± 0.5")]
)
def test_points(arguments, text):
  assert Accuracy(-0.01234, 0.00456, 9).points(*arguments) == text
  assert Accuracy(0.01, 0.0, 9).points(sign="+") == "+1.00 ± 0.00"


def test_failed_episodes_take_no_part():
  lines = [
    {"status": "ok", "accuracy": 0.5, "zero_shot_accuracy": None},
    {"status": "non-finite", "accuracy": 0.9, "zero_shot_accuracy": 0.9},
    {"status": "ok", "accuracy": 0.7, "zero_shot_accuracy": 0.2},
  ]
  np.testing.assert_allclose(accuracy_of(lines)[::2], (0.6, 2))
  assert accuracy_of(lines, "zero_shot_accuracy")[::2] == (0.2, 1)


def test_paired_differences_by_hand():
  first, second = {"a": 0.1, "b": 0.2, "c": 0.9}, {"b": 0.5, "a": 0.2, "d": 0.0}
  found = paired(first, second)
  assert found.episodes == 2
  np.testing.assert_allclose(found.mean, 0.2)
  np.testing.assert_allclose(found.ci95, 1.96 * 0.1 / np.sqrt(2))
