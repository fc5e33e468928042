"""What features and labels must be, and what is said of those that are not."""

import numpy as np
import pytest
from absl import logging
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mdtrap_jax.data.feature_set import check_features, feature_content

FEATURES = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
LABELS = np.array([0, 0, 1, 1, 2, 2])


@pytest.fixture
def warnings(monkeypatch):
  said = []
  monkeypatch.setattr(logging, "warning", lambda message, *args: said.append(message % args))
  return said


@pytest.mark.parametrize(
  ("features", "labels", "names", "message"),
  [
    (FEATURES, LABELS[:5], None, r"\[6, 4\] and labels of shape \[5\]"),
    (FEATURES[:, 0], LABELS, None, r"\[6\]"),
    (FEATURES[:, :0], LABELS, None, r"\[6, 0\] hold nothing"),
    (FEATURES[:0], LABELS[:0], None, r"\[0, 4\] hold nothing"),
    (FEATURES, LABELS.astype(float), None, "integers"),
    (FEATURES, LABELS > 1, None, "labels are bool"),
    (FEATURES, LABELS - 3, None, "every row is left out"),
    (FEATURES, LABELS, ["a", "b"], "largest label is 2, but there are only 2"),
    (FEATURES, LABELS, ["a", "b", "a"], "names a occur twice"),
    (FEATURES.astype(str), LABELS, None, "features are <U"),
    (FEATURES.astype(object), LABELS, None, "features are object"),
    (FEATURES.astype(complex), LABELS, None, "features are complex"),
    (np.where(np.eye(6, 4) > 0, np.nan, FEATURES), LABELS, None, "row 0 are NaN"),
    (np.full((6, 4), np.inf), LABELS, None, "NaN or infinite"),
    (np.full((6, 4), np.longdouble("1e400")), LABELS, None, "NaN or infinite"),
    (FEATURES, np.where(LABELS == 1, 300_000, LABELS), None, "largest label is 300000.*np.unique"),
    (FEATURES, np.where(LABELS == 1, 2**31, LABELS), None, "largest label is 2147483648"),
    (FEATURES, np.full(6, 2**64 - 1, np.uint64), "abc", "largest label is 18446744073709551615"),
  ],
)
def test_bad_features_are_refused(features, labels, names, message):
  with pytest.raises(ValueError, match=message) as caught:
    check_features("x", features, labels, names)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "int8", "int64", ">i4"])
def test_integers_of_any_kind_are_labels(dtype):
  found = check_features("x", FEATURES, LABELS.astype(dtype), None)
  assert found.labels.dtype == np.int32
  np.testing.assert_array_equal(found.labels, LABELS)


def test_very_negative_labels_leave_out(warnings):
  found = check_features("x", FEATURES, np.where(LABELS == 1, -(2**40), LABELS), ["a", "b", "c"])
  assert set(found.labels) == {-1, 0, 2}
  assert "label of b;" in warnings[0]


def test_integers_become_floats_but_images_stay():
  counts = np.arange(24, dtype=np.uint8).reshape(6, 4)
  assert check_features("x", counts, LABELS, None).features.dtype == np.float32
  assert check_features("x", FEATURES.astype(">f8"), LABELS, None).features.dtype == np.float32
  images = np.zeros((6, 2, 2, 3), np.uint8)
  assert check_features("x", images, LABELS, None).features is images


def test_many_absent_classes_are_one_short_line(warnings):
  check_features("x", FEATURES, LABELS, [f"class {n}" for n in range(50_000)])
  assert len(warnings) == 1
  assert "class 7 and 49992 more" in warnings[0]


@settings(max_examples=60, deadline=None)
@given(
  arrays.arrays(
    st.one_of(
      arrays.integer_dtypes(), arrays.unsigned_integer_dtypes(), arrays.floating_dtypes(),
      arrays.boolean_dtypes(), arrays.unicode_string_dtypes(max_len=2),
    ),
    arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
  ),
  arrays.arrays(
    st.one_of(arrays.integer_dtypes(), arrays.unsigned_integer_dtypes()),
    arrays.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=4),
  ),
  st.one_of(st.none(), st.lists(st.text(max_size=2), max_size=4)),
)  # fmt: skip
def test_any_arrays_are_right_or_one_line(features, labels, names):
  found, said = None, ""
  try:
    found = check_features("x", features, labels, names)
  except ValueError as error:
    said = str(error)
  assert found is not None or (said.startswith("x: ") and "\n" not in said)
  if found is not None:
    assert np.isfinite(found.features).all()
    assert found.labels.max() < len(found.class_names)


def test_content_names_the_class_that_changed():
  names = ("a", "b", "c")
  content = lambda features, labels: feature_content(check_features("x", features, labels, names))
  changed = lambda other: {name for name in before if before[name] != other[name]}
  before = content(FEATURES, LABELS)
  assert [before[name][0] for name in names] == [2, 2, 2]
  assert content(FEATURES.copy(), LABELS.astype(np.uint8)) == before
  other = FEATURES.copy()
  other[3, 1] += 1e-6
  assert changed(content(other, LABELS)) == {"b"}
  assert changed(content(FEATURES[[1, 0, 2, 3, 4, 5]], LABELS)) == {"a"}
  order = "order of the rows"
  assert changed(content(FEATURES[1:], LABELS[1:])) == {"a", order}
  swap = [2, 3, 0, 1, 4, 5]  # the same classes, but the indices in results mean other rows
  assert changed(content(FEATURES[swap], LABELS[swap])) == {order}
  assert changed(content(FEATURES, np.where(LABELS == 1, 2, LABELS))) == {"b", "c", order}
  assert changed(content(FEATURES.astype(np.float64), LABELS)) == set(names)


def test_content_is_that_of_all_rows():
  features = np.arange(10_000, dtype=np.float32)[:, None]
  labels = np.arange(10_000) % 2
  one = feature_content(check_features("x", features, labels, None))
  features = features.copy()
  features[9_999] = 0
  two = feature_content(check_features("x", features, labels, None))
  assert one["0"] == two["0"]
  assert one["1"] != two["1"]
