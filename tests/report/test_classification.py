"""Measures of a classifier against values by hand and scikit-learn's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdtrap_jax.report import classification, classification_figures, figures

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


def test_files():
  scores = classification.score(("a,b", "<$x$>", "c"), LABELS, PROBABILITIES)
  lines = classification.class_table(scores).splitlines()
  assert lines[1].startswith('"a,b",4,4,3,0.7500,')
  assert lines[3] == "c,0,0,0,,,,,,"
  assert "accuracy 66.7 [" in classification.format_text(scores)
  assert classification.to_json(scores)["classes"][2]["recall"] is None
  assert classification.confusion_table(scores).splitlines()[1] == '"a,b",3,1,0'


def test_figures_say_n_and_intervals():
  scores = classification.score(("a,b", "<$x$>", "一"), LABELS, PROBABILITIES)
  svg = lambda figure: figures.render(figure, "svg").decode()
  confusion = svg(classification_figures.confusion(scores))
  assert "n = 6, accuracy 66.7 % [30.0, 90.3]" in confusion
  assert "a,b (recall 75 % of 4)" in confusion
  assert "&lt;$x$&gt;" in confusion  # no mathematics
  assert confusion == svg(classification_figures.confusion(scores))
  bins = classification.reliability(classification.outcomes(LABELS, PROBABILITIES), 6)
  assert "n = 6, calibration error" in svg(classification_figures.reliability(bins, scores))
  curve = {0: scores.accuracy, 5: scores.accuracy}
  assert "n = 9, 95 % intervals" in svg(classification_figures.steps({"held out": curve}, 9))
  assert figures.render(classification_figures.confusion(scores), "png")[:4] == b"\x89PNG"


def test_reliability_by_hand():
  confidence = np.linspace(0.51, 0.99, 21)
  labels = (np.arange(21) % 7 >= 3).astype(int)  # three of each seven are 0
  probabilities = np.stack([1 - confidence, confidence], 1)
  said = classification.outcomes(labels, probabilities)
  bins = classification.reliability(said, 21)
  assert [bin.predictions for bin in bins] == [7, 7, 7]
  assert [bin.accuracy.value for bin in bins] == pytest.approx([4 / 7] * 3)
  assert bins[0].confidence == pytest.approx(confidence[:7].mean())
  twice = classification.Outcomes(*(np.repeat(part, 2) for part in said))
  assert classification.reliability(twice, 21)[0].accuracy == pytest.approx(bins[0].accuracy)


def test_predicting_again_tells_nothing_new():
  once = classification.score(NAMES, LABELS, PROBABILITIES)
  again = classification.score(NAMES, np.tile(LABELS, 3), np.tile(PROBABILITIES, (3, 1)), 6)
  assert again.accuracy == pytest.approx(once.accuracy)
  assert again.classes[0].recall == pytest.approx(once.classes[0].recall)
  assert again.confusion.tolist() == (3 * once.confusion).tolist()
  assert (again.images, again.predictions, again.ece) == (6, 18, pytest.approx(once.ece))
