"""The image cache: whose images it gives, what it never touches, and damage that it finds."""

import os

import numpy as np
import pytest
from absl import logging
from hypothesis import given, settings
from hypothesis import strategies as st

from mdtrap_jax.data.cache import ImageCache
from tests import decoys

SIZE = 4
HEAD, MARKS = 4096, 8  # bytes of a file's head, and before an image's pixels
RECORD = MARKS + SIZE * SIZE * 3


def image(value, size=SIZE):
  return np.full((size, size, 3), value, np.uint8)


def open_cache(folder, identity="x", count=5, size=SIZE, resize="squash", options=""):
  return ImageCache(folder, identity, count, size, resize, options)


def only_file(folder):
  (file,) = folder.iterdir()
  return file


@pytest.fixture
def warnings(monkeypatch):
  said = []
  monkeypatch.setattr(logging, "warning", lambda message, *args: said.append(message % args))
  return said


IDENTITIES = st.one_of(st.text(max_size=50), st.sampled_from(["a" * 40, "../x", "0.", ""]))


@settings(max_examples=15, deadline=None)
@given(IDENTITIES, IDENTITIES, st.integers(1, 4), st.integers(1, 3))
def test_different_inputs_never_share_an_image(tmp_path_factory, identity, other, count, size):
  root = tmp_path_factory.mktemp("root")
  user = decoys.plant(root / "user")
  before = decoys.state(user)
  base = {"identity": identity, "count": count, "size": size, "resize": "squash", "options": ""}
  inputs = [base]  # and its neighbors, each different in one thing
  for change in (
    {"identity": identity + "25"},
    {"identity": identity + "75"},
    {"identity": other + f"-{size}-crop"},
    {"count": count + 1},
    {"size": size + 1},
    {"resize": "crop"},
    {"options": "bicubic"},
  ):
    inputs.append(base | change)
  caches = [ImageCache(user / ".." / "cache", **one) for one in inputs]
  for number, (cache, one) in enumerate(zip(caches, inputs, strict=True)):
    cache.put(0, image(number, one["size"]))
  assert len(list((root / "cache").iterdir())) == len(inputs)
  for number, (cache, one) in enumerate(zip(caches, inputs, strict=True)):
    np.testing.assert_array_equal(cache.get(0), image(number, one["size"]))
  assert decoys.state(user) == before


@pytest.mark.parametrize("left", [0, HEAD, HEAD + RECORD + 20, HEAD + 2 * RECORD])
def test_what_was_cut_off_is_made_again(tmp_path, warnings, left):
  cache = open_cache(tmp_path)
  for index in range(3):
    cache.put(index, image(index + 1))
  os.truncate(only_file(tmp_path), left)
  kept = [HEAD + (index + 1) * RECORD <= left for index in range(3)]

  def check(cache):
    for index in range(3):
      found = cache.get(index)
      assert (found == image(index + 1)).all() if kept[index] else found is None

  check(cache)
  assert len(warnings) == kept.count(False)
  check(open_cache(tmp_path))
  cache.put(2, image(9))
  np.testing.assert_array_equal(open_cache(tmp_path).get(2), image(9))


def test_a_deleted_file_is_made_again(tmp_path):
  open_cache(tmp_path).put(1, image(1))
  only_file(tmp_path).unlink()
  assert open_cache(tmp_path).get(1) is None


@pytest.mark.parametrize("byte", [0, 5, MARKS, RECORD - 1])
def test_flipped_bits_are_found(tmp_path, warnings, byte):
  cache = open_cache(tmp_path)
  cache.put(0, image(3))
  cache.put(1, image(4))
  content = bytearray(only_file(tmp_path).read_bytes())
  content[HEAD + RECORD + byte] ^= 1
  only_file(tmp_path).write_bytes(content)
  assert cache.get(1) is None
  assert len(warnings) == 1
  assert "image 1 is damaged" in warnings[0]
  np.testing.assert_array_equal(cache.get(0), image(3))


def test_an_image_at_anothers_place_is_not_believed(tmp_path, warnings):
  cache = open_cache(tmp_path)
  cache.put(0, image(3))
  content = only_file(tmp_path).read_bytes()
  record = content[HEAD : HEAD + RECORD]
  only_file(tmp_path).write_bytes(content[: HEAD + RECORD] + record + content[HEAD + 2 * RECORD :])
  assert cache.get(1) is None
  assert warnings


def test_anothers_cache_under_our_name_starts_anew(tmp_path, warnings):
  open_cache(tmp_path, "x").put(0, image(1))
  mine = only_file(tmp_path)
  open_cache(tmp_path, "y")
  (other,) = set(tmp_path.iterdir()) - {mine}
  other.write_bytes(mine.read_bytes())
  assert open_cache(tmp_path, "y").get(0) is None
  assert "its images are made again" in warnings[0]
  np.testing.assert_array_equal(open_cache(tmp_path, "x").get(0), image(1))


def test_what_is_not_ours_is_left_alone(tmp_path):
  outside = decoys.plant(tmp_path / "user")
  folder = tmp_path / "cache"
  open_cache(folder)
  file = only_file(folder)
  before = decoys.state(outside)
  for place in (
    lambda: file.symlink_to(outside / ".hidden"),
    lambda: file.symlink_to(outside / "new"),
    lambda: file.write_bytes(b"somebody's own"),
    lambda: file.write_bytes(bytes(5000)),
    lambda: os.mkfifo(file),
    lambda: file.mkdir(),
  ):
    file.unlink()
    place()
    inside = decoys.state(folder) if not file.is_fifo() else None
    with pytest.raises(OSError, match=r"Cannot create the image cache .*cache_dir="):
      open_cache(folder)
    assert decoys.state(outside) == before
    assert inside is None or decoys.state(folder) == inside


def test_the_file_is_sparse(tmp_path):
  cache = ImageCache(tmp_path, "x", 1000, 64)
  cache.put(500, image(1, 64))
  assert only_file(tmp_path).stat().st_size > 1000 * 64 * 64 * 3
  assert only_file(tmp_path).stat().st_blocks * 512 < 100_000
