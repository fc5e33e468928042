"""What a run's lines come to."""

import json

import numpy as np

from mdtrap_jax.report.summary import format_summary, summarize


def line(episode, accuracy, status="ok"):
  return {
    "episode": episode,
    "status": status,
    "accuracy": accuracy,
    "zero_shot_accuracy": 0.25,
    "accuracy_at": {"2": 0.3, "10": accuracy},
  }


def test_failed_episodes_are_counted_apart():
  summary = summarize([line(0, 0.5), line(1, None, "non-finite"), line(2, 0.7)])
  assert (summary["episodes"], summary["failed"]) == (3, 1)
  np.testing.assert_allclose(summary["accuracy_mean"], 0.6)
  np.testing.assert_allclose(summary["gain_mean"], 0.35)
  np.testing.assert_allclose(summary["accuracy_at"]["2"], 0.3)


def test_what_cannot_be_told_is_none_and_printed_so():
  nothing, one = summarize([line(0, None, "non-finite")]), summarize([line(0, 0.5)])
  assert nothing["accuracy_mean"] is None
  assert (one["accuracy_mean"], one["accuracy_ci95"]) == (0.5, None)
  json.dumps([nothing, one], allow_nan=False)
  cells = lambda summary: [row.split("  ")[-1].strip() for row in summary.splitlines()]
  assert cells(format_summary(nothing)) == ["1", "1", "–", "–", "–"]
  assert cells(format_summary(one)) == [
    "1", "0", "25.00 ± –", "50.00 ± –", "+25.00 ± –", "30.00", "50.00",
  ]  # fmt: skip
