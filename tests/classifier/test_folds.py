"""Cross-validation: every image held out once, by the model that fitting the rest gives."""

import csv
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdtrap_jax import cross_validate
from mdtrap_jax.classifier.folds import assign_folds, format_text, to_csv
from tests.classifier.test_estimator import classifier, folder  # noqa: F401 (a fixture)


@given(
  st.lists(st.integers(1, 12), min_size=2, max_size=6).filter(lambda c: max(c) > 1),
  st.integers(2, 7),
  st.integers(0, 9),
)
@settings(deadline=None)  # a busy machine is no failure
def test_folds_are_even(counts, folds, seed):
  labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
  if sum(n for n in counts if n > 1) < folds:
    return
  assigned = assign_folds(labels, folds, seed)
  sizes = np.bincount(assigned[assigned >= 0], minlength=folds)
  assert sizes.max() - sizes.min() <= 1
  for label, n in enumerate(counts):
    own = assigned[labels == label]
    if n == 1:
      assert own.tolist() == [-1]
      continue
    within = np.bincount(own, minlength=folds)
    assert within.max() - within.min() <= 1
    assert within.max() < n  # each training set has the class


def test_repeats_deal_otherwise():
  labels = np.repeat([0, 1, 2], 6)
  first, second = (assign_folds(labels, 3, 0, repeat) for repeat in (0, 1))
  assert (first != second).any()
  np.testing.assert_array_equal(second, assign_folds(labels, 3, 0, 1))
  np.testing.assert_array_equal(first, assign_folds(labels, 3, 0))


def test_a_fold_is_a_fit(folder, tmp_path):  # noqa: F811
  images = sorted(folder.glob("*/*.png"))
  labels = [file.parent.name for file in images]
  own = classifier("copa")
  found = cross_validate(own, images, labels, folds=3, repeats=2)
  assert list(found.methods) == ["copa", "zero_shot", "ncc"]
  held = found.folds[1] == 1  # of the second repeat
  assert [np.bincount(folds).tolist() for folds in found.folds] == [[6, 6, 6]] * 2
  pick = lambda chosen: [file for file, wanted in zip(images, chosen, strict=True) if wanted]
  own.fit(pick(~held), np.array(labels)[~held])
  # The order of probabilities does not depend on the temperature; their logs are the cosines'.
  got = np.log(found.methods["copa"].probabilities[1, held])
  cosines = own.cosines(pick(held))
  ratio = (got[:, 0] - got[:, 1]) / (cosines[:, 0] - cosines[:, 1])
  np.testing.assert_allclose(ratio, ratio[0], rtol=1e-2)
  assert ratio[0] > 0
  rows = list(csv.DictReader(io.StringIO(to_csv(found))))
  assert [row["file"] for row in rows] == [str(file) for file in images for _ in range(2)]
  assert [row["repeat"] for row in rows] == ["0", "1"] * 18
  scores = found.methods["copa"].scores
  hits = np.mean([row["prediction"] == row["label"] for row in rows])
  assert hits == pytest.approx(scores.accuracy.value)
  assert (scores.images, scores.predictions) == (18, 36)
  assert found.methods["copa"].accuracy_at[10] == pytest.approx(scores.accuracy)
  np.testing.assert_allclose(found.methods["copa"].cosines[1, held], cosines, atol=1e-5)
  text = format_text(found)
  assert "18 images held out 2 times each, in 3 folds" in text
  assert "accuracy in each repeat" in text
  assert "gull " in text
  found.write_report(tmp_path / "report")
  page = (tmp_path / "report" / "report.html").read_text()
  assert "3-fold cross-validation" in page
  assert "folds=3, repeats=2)" in page
  assert (tmp_path / "report" / "crossval.csv").read_text() == to_csv(found)


def test_small_classes_are_named():
  shades = np.array([0, 10, 20, 30, 240], np.uint8)
  flat = np.repeat(shades, 8 * 8 * 3).reshape(5, 8, 8, 3)
  found = cross_validate(classifier("ncc"), flat, ["a", "a", "a", "b", "c"], folds=3)
  assert "classes with fewer than 3 images: b (1), c (1)" in found.notes
  assert "never held out, being the only image of their class: b, c" in found.notes
  assert found.methods["ncc"].scores.images == 3
  assert to_csv(found).splitlines()[-1].startswith("image 4,0,,c,,")


def test_what_cannot_be_validated(folder):  # noqa: F811
  one = [next((folder / name).iterdir()) for name in ("crow", "gull")]
  with pytest.raises(ValueError, match="every class has one image, so nothing can be validated"):
    cross_validate(classifier("ncc"), one, ["a", "b"])
  with pytest.raises(ValueError, match="folds=1: give 2 to 18"):
    cross_validate(classifier("ncc"), folder, folds=1)
  with pytest.raises(ValueError, match="repeats=0: give at least 1"):
    cross_validate(classifier("ncc"), folder, folds=2, repeats=0)
