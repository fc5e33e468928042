"""Features of one's own: files as people have them, and damaged ones."""

import io
import json
import os
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdtrap_jax.data.feature_files import read_features

FEATURES = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
LABELS = np.array([0, 0, 1, 1, 2, 2])


def npz(folder, **arrays):
  np.savez(folder / "x.npz", **arrays)
  return folder / "x.npz"


def refusal(call):
  """The line with which a call is refused, if it is."""
  try:
    call()
  except ValueError as error:
    return str(error)
  return None


def npy(array, **header):
  """The bytes of a `.npy` file, its header changed."""
  file = io.BytesIO()
  fields = {**np.lib.format.header_data_from_array_1_0(array), **header}
  np.lib.format.write_array_header_1_0(file, fields)
  return file.getvalue() + array.tobytes()


def test_npz_with_one_or_several_sets(tmp_path):
  found = read_features(npz(tmp_path, features=FEATURES, labels=LABELS), "x")
  np.testing.assert_array_equal(found.features, FEATURES)
  assert (found.name, found.class_names) == ("x", ("0", "1", "2"))
  sets = {"b/features": FEATURES, "b/labels": LABELS, "b/classes": ["p", "q", "r"]}
  path = npz(tmp_path, **sets)
  assert read_features(path, "b").class_names == ("p", "q", "r")
  with pytest.raises(ValueError, match="domains b"):
    read_features(path, "c")


def test_uint8_labels_and_names_in_bytes(tmp_path):
  path = npz(
    tmp_path, features=FEATURES, labels=LABELS.astype(np.uint8), classes=[b"p", b"q", b"r"]
  )
  found = read_features(path, "x")
  assert found.class_names == ("p", "q", "r")
  np.testing.assert_array_equal(found.labels, LABELS)


def test_a_folder_is_read_as_a_memory_map(tmp_path):
  folder = tmp_path / "birds"
  folder.mkdir()
  np.save(folder / "features.npy", FEATURES)
  with pytest.raises(FileNotFoundError, match=r"labels\.npy"):
    read_features(tmp_path, "birds")
  np.save(folder / "labels.npy", LABELS)
  for path in (tmp_path, folder, folder / "features.npy"):
    found = read_features(path, "birds")
    assert isinstance(found.features, np.memmap)
    assert found.name == "birds"
  with pytest.raises(FileNotFoundError, match=r"features\.npy"):
    read_features(tmp_path / "nothing", "birds")


@pytest.mark.parametrize(
  "content", ["{", "[]", '{"class_names": 5}', '{"class_names": [1, 2, 3]}', "[" * 9999, "\xff"]
)
def test_damaged_names_of_a_folder(tmp_path, content):
  np.save(tmp_path / "features.npy", FEATURES)
  np.save(tmp_path / "labels.npy", LABELS)
  (tmp_path / "identity.json").write_text(content, encoding="latin-1")
  with pytest.raises(ValueError, match=r"identity\.json is damaged"):
    read_features(tmp_path, "x")
  (tmp_path / "identity.json").write_text(json.dumps({"class_names": ["a", "b", "c"]}))
  assert read_features(tmp_path, "x").class_names == ("a", "b", "c")


def test_other_files_are_refused_by_name(tmp_path):
  for name, content in (("x.csv", b"f0,label\n1,2\n"), ("x.mat", b""), ("x", b"")):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is no file of features.*np\.savez"):
      read_features(tmp_path / name, "x")
  os.mkfifo(tmp_path / "pipe.npz")
  with pytest.raises(FileNotFoundError, match=r"pipe\.npz"):
    read_features(tmp_path / "pipe.npz", "x")


@pytest.mark.parametrize(
  ("array", "message"),
  [
    (np.array([[None]] * 6), r"'features' cannot be read: it holds Python objects"),
    (np.full((6, 2), "a"), "features are <U1"),
    (FEATURES[:, :0], r"\[6, 0\] hold nothing"),
    (np.float32(1), r"shape \[\]"),
    (np.zeros(6, [("a", "f4")]), r"shape \[6\]"),
  ],
)
def test_arrays_that_are_no_features(tmp_path, array, message):
  path = npz(tmp_path, features=array, labels=LABELS)
  with pytest.raises(ValueError, match=rf"x\.npz.*{message}"):
    read_features(path, "x")


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (npy(FEATURES, shape=(10**12, 4)), "needs 16000000000128 bytes, not 224"),
    (npy(FEATURES, shape=(6, -4)), "needs"),
    (npy(FEATURES, descr="|O"), "Python objects"),
    (npy(FEATURES)[:-1], "needs 224 bytes, not 223"),
    (npy(FEATURES)[:20], "EOF"),
    (b"", "EOF"),
    (b"a text, no array", "magic"),
  ],
)
def test_headers_that_do_not_fit_are_found_before_any_memory_is_taken(tmp_path, content, message):
  with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
    file.writestr("features.npy", content)
    file.writestr("labels.npy", npy(LABELS))
  with pytest.raises(ValueError, match=rf"x\.npz: the array 'features' cannot be read.*{message}"):
    read_features(tmp_path / "x.npz", "x")
  (tmp_path / "features.npy").write_bytes(content)
  np.save(tmp_path / "labels.npy", LABELS)
  with pytest.raises(ValueError, match=r"features\.npy cannot be read"):
    read_features(tmp_path / "features.npy", "x")


def test_what_would_unpack_beyond_memory_is_refused(tmp_path, monkeypatch):
  path = npz(tmp_path, features=FEATURES, labels=LABELS)
  monkeypatch.setattr("mdtrap_jax.data.feature_files._memory", lambda: 400)
  with pytest.raises(ValueError, match=r"'features'.*would take .* row by row"):
    read_features(path, "x")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_damaged_files_end_in_one_line(tmp_path_factory, data):
  folder = tmp_path_factory.mktemp("damaged")
  content = bytearray(npz(folder, features=FEATURES, labels=LABELS).read_bytes())
  if data.draw(st.booleans()):
    del content[data.draw(st.integers(0, len(content) - 1)) :]
  else:
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255))
  (folder / "x.npz").write_bytes(content)
  said = refusal(lambda: read_features(folder / "x.npz", "x"))
  assert said is None or ("x.npz" in said and "\n" not in said)
