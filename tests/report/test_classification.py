"""Measures of a classifier against values by hand and scikit-learn's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdtrap_jax.report import classification, figures

NAMES = ("a", "b", "c")
LABELS = np.array([0, 0, 0, 1, 1, 0])
PROBABILITIES = np.array(
  [[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.3, 0.6, 0.1], [0.9, 0.1, 0.0],
   [0.4, 0.3, 0.3]]
)  # fmt: skip


def test_by_hand():
  scores = classification.score(NAMES, LABELS, PROBABILITIES)
  assert scores.confusion.tolist() == [[3, 1, 0], [1, 1, 0], [0, 0, 0]]
  assert scores.accuracy.value == pytest.approx(4 / 6)
  assert scores.balanced_accuracy == pytest.approx((3 / 4 + 1 / 2) / 2)  # c has no images
  a, b, c = scores.classes
  assert (a.images, a.predicted, a.correct) == (4, 4, 3)
  assert b.precision.value == 0.5
  assert (c.recall, c.precision) == (None, None)
  chances = np.log([0.7, 0.6, 0.2, 0.6, 0.1, 0.4])
  assert scores.log_loss == pytest.approx(-chances.mean())
  # Tops .7 hit | .6 hit, .6 hit | .5 miss | .9 miss | .4 hit, in bins of 1/15.
  assert scores.ece == pytest.approx((0.3 + 0.8 + 0.5 + 0.9 + 0.6) / 6)


def test_wilson_by_its_published_example():
  # Newcombe 1998, table I: 81 of 263.
  assert classification.wilson(81, 263) == pytest.approx((0.3080, 0.2553, 0.3662), abs=1e-4)
  assert classification.wilson(0, 20)[:2] == (0, 0)
  assert classification.wilson(20, 20)[2] == 1


@given(st.integers(0, 40), st.integers(1, 40))
@settings(deadline=None)  # a busy machine is no failure
def test_intervals_hold_their_share(k, n):
  value, low, high = classification.wilson(min(k, n), n)
  assert 0 <= low <= value <= high <= 1


def test_as_scikit_learn():
  metrics = pytest.importorskip("sklearn.metrics")
  rng = np.random.default_rng(0)
  labels = np.r_[0:4, rng.integers(0, 4, 60)]
  probabilities = rng.dirichlet(np.ones(4), 64)
  scores = classification.score(("a", "b", "c", "d"), labels, probabilities)
  said = probabilities.argmax(1)
  assert scores.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(labels, said))
  assert scores.log_loss == pytest.approx(metrics.log_loss(labels, probabilities))
  assert (scores.confusion == metrics.confusion_matrix(labels, said)).all()


@pytest.mark.parametrize("factor", [0.2, 1.0, 5.0])
def test_the_temperature_undoes_a_scale(factor):
  rng = np.random.default_rng(0)
  logits = 2 * rng.standard_normal((4000, 3))
  gumbel = -np.log(-np.log(rng.random(logits.shape)))
  labels = (logits + gumbel).argmax(1)  # drawn from softmax(logits)
  assert classification.fit_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.1)


def test_files(tmp_path):
  scores = classification.score(("a,b", "<$x$>", "c"), LABELS, PROBABILITIES)
  lines = classification.class_table(scores).splitlines()
  assert lines[1].startswith('"a,b",4,4,3,0.7500,')
  assert lines[3] == "c,0,0,0,,,,,,"
  assert "accuracy 66.7 [" in classification.format_text(scores)
  assert classification.to_json(scores)["classes"][2]["recall"] is None
  paths = [tmp_path / "c.png", tmp_path / "c.svg"]
  figures.plot_confusion(scores.confusion, ("a,b", "<$x$>", "c"), "6 images", paths)
  assert paths[0].read_bytes()[:4] == b"\x89PNG"
  assert "&lt;" in paths[1].read_text() or "<svg" in paths[1].read_text()
