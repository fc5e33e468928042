"""Labeled images in the forms that people have: the same images and labels from each."""

import json

import numpy as np
import pytest

from mdtrap_jax.data import images, labeled
from mdtrap_jax.data.labeled import Preprocessing
from mdtrap_jax.data.read_labeled import read_labeled, read_names, read_templates
from tests.data.folders import write_image, write_tree

FILES = ("cat/1.png", "cat/2.png", "dog/é.png")
HOW = Preprocessing(4, "squash", "bilinear")


@pytest.fixture
def root(tmp_path):
  return write_tree(tmp_path / "photos", *FILES)


def forms(root):
  labels = [file.partition("/")[0] for file in FILES]
  table = root / "labels.csv"
  lines = [f"{file}\t {label} " for file, label in zip(FILES, labels, strict=True)]
  table.write_text("\n".join(["File\tlabel", "", *lines]), encoding="utf-8-sig")
  split = root.parent / "split_zhou_pets.json"  # images in a folder beside it
  rows = [[file, 7, label] for file, label in zip(FILES, labels, strict=True)]
  split.write_text(json.dumps({"train": rows, "val": [], "test": []}))
  paths = [root / file for file in FILES]
  arrays = [images.decode(path, str(path)) for path in paths]
  return {
    "csv": (table, None), "split": (split, None), "paths": (paths, labels),
    "arrays": (arrays, labels),
  }  # fmt: skip


def test_every_form_is_the_same(root):
  folder = read_labeled(root)
  assert list(folder.files) == list(FILES)
  pixels = labeled.decode_all(folder.items, HOW)
  assert pixels.shape == (3, 4, 4, 3)
  for form in forms(root).values():
    found = read_labeled(*form)
    assert found.labels.tolist() == folder.labels.tolist() == ["cat", "cat", "dog"]
    np.testing.assert_array_equal(labeled.decode_all(found.items, HOW), pixels)
  assert labeled.counts_of(folder.labels) == {"cat": 2, "dog": 1}


def test_data_that_come_with_a_split(tmp_path):
  files = ("Train/a/1.png", "Train/b/1.png", "val/a/2.png", "val/b/2.png", "__MACOSX/x/3.png")
  write_tree(tmp_path, *files)
  assert read_labeled(tmp_path).name == str(tmp_path / "Train")
  assert list(read_labeled(tmp_path).files) == ["a/1.png", "b/1.png"]
  assert list(read_labeled(tmp_path, part="test").files) == ["a/2.png", "b/2.png"]
  write_tree(tmp_path, "test/a/4.png", "test/b/4.png")
  assert list(read_labeled(tmp_path, part="test").files) == ["a/4.png", "b/4.png"]
  rows = {part: [[f"{part}/a/{n}.png", 0, "a"]] for part, n in (("Train", 1), ("test", 4))}
  (tmp_path / "split.json").write_text(json.dumps({"train": rows["Train"], "test": rows["test"]}))
  assert list(read_labeled(tmp_path / "split.json", part="test").files) == ["test/a/4.png"]
  write_tree(tmp_path / "half", "train/a/1.png", "train/b/1.png")
  with pytest.raises(ValueError, match="has the parts train and no test"):
    read_labeled(tmp_path / "half", part="test")
  # A class may be called so, beside others that are not.
  write_tree(tmp_path / "toys", "train/1.png", "car/1.png", "boat/1.png")
  assert set(read_labeled(tmp_path / "toys").labels) == {"train", "car", "boat"}


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"a {}\n\nno place\n", "line 3: 'no place' has no {}"),
    (b"\n \n", "has no templates"),
    (b"a {} \xe9\n", "is not UTF-8"),
  ],
)
def test_templates(tmp_path, content, message):
  path = tmp_path / "templates.txt"
  path.write_bytes(b"\xef\xbb\xbfa photo of a {}.\r\n\r\n {} in a field\r\n")
  assert read_templates(path) == ["a photo of a {}.", "{} in a field"]
  path.write_bytes(content)
  with pytest.raises(ValueError, match=message):
    read_templates(path)


def test_names_go_by_key(tmp_path):
  path = tmp_path / "names.csv"
  path.write_text('folder,name\n"b,c",second\na,first\n')
  assert read_names(path) == {"b,c": "second", "a": "first"}
  path.write_text("label;name\na;one\na;two\n")
  with pytest.raises(ValueError, match=r"names a more than once"):
    read_names(path)


def test_copies_are_found_within_and_across_classes(tmp_path):
  pixels = write_image(tmp_path / "cat" / "1.png")
  for file in ("cat/2.png", "cat/3.png", "dog/1.png", "dog/2.png"):
    write_image(tmp_path / file, None if file == "cat/3.png" else pixels)
  (tmp_path / "dog" / "3.png").write_bytes((tmp_path / "cat" / "3.png").read_bytes())
  write_image(tmp_path / "dog" / "4.png")
  found = labeled.find_duplicates(read_labeled(tmp_path))
  assert found.within == []
  assert found.across == [
    ["cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"], ["cat/3.png", "dog/3.png"]
  ]  # fmt: skip


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("[]", "is no split in CoOp's format"),
    ('{"train": [["a.png", 0]]}', "is no split in CoOp's format"),
    ('{"train": []}', "has no images under 'train'"),
    ('{"train": [["a.png", 0, "a"]]}', "a.png is neither beside it nor"),
  ],
)
def test_splits_that_cannot_be_right(tmp_path, content, message):
  path = tmp_path / "split.json"
  path.write_text(content)
  with pytest.raises((ValueError, OSError), match=message):
    read_labeled(path)


def test_remedies_are_not_those_of_a_config(root):
  (root / "cat" / "1.png").write_bytes(b"no")
  with pytest.raises(images.UnreadableImageError, match=r"Replace or remove it\.$"):
    labeled.decode_all(read_labeled(root).items, HOW)
  write_tree(root.parent / "folds", "fold1/a/1.png", "fold1/b/1.png", "fold2/a/1.png")
  with pytest.raises(ValueError, match=r"Give one split, as /.*fold1\.") as error:
    read_labeled(root.parent / "folds")
  assert "--config" not in str(error.value)
  with pytest.raises(FileNotFoundError, match="no such folder, CSV or JSON"):
    read_labeled(root / "none")


def test_results_keep_their_order_and_only_a_few_are_ahead():
  started = []

  def slow(number):
    started.append(number)
    return number

  results = labeled.in_order(slow, range(1000))
  assert next(results) == 0
  assert len(started) <= 4 * labeled.THREADS
  assert list(results) == list(range(1, 1000))
