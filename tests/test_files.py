import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdtrap_jax import files


@pytest.mark.parametrize(
  "name", ["", " ", ".", "..", ".git", "a/b", "../y", "/x", "a\\b", "a\0", "a\n"]
)
def test_a_name_that_would_lead_elsewhere_is_refused(name):
  with pytest.raises(ValueError, match="config.x"):
    files.check_name(name, "config.x")


@given(st.text(max_size=300))
def test_every_accepted_name_is_one_part_of_a_path(name):
  try:
    files.check_name(name, "config.x")
  except ValueError:
    return
  joined = os.path.normpath(os.path.join("/a/folder/of/ours", name))
  assert os.path.dirname(joined) == "/a/folder/of/ours"
  assert os.path.basename(joined) == name


def test_a_digest_follows_the_content_and_not_the_time(tmp_path):
  path = tmp_path / "a"
  path.write_bytes(b"one")
  os.utime(path, (1, 1))
  first = files.digest(path)
  assert files.digest(path) == first
  os.utime(path, (2, 2))
  assert files.digest(path) == first
  path.write_bytes(b"two")
  assert files.digest(path) != first


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  with pytest.raises(OSError, match="no regular file"):
    files.digest(tmp_path / "pipe")


def test_digests_do_without_a_cache(tmp_path, monkeypatch):
  (tmp_path / "file").write_bytes(b"x")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  assert len(files.digest(tmp_path / "file")) == 64


def test_writing_replaces_a_link_and_leaves_its_target(tmp_path):
  (tmp_path / "target").write_text("theirs")
  (tmp_path / "link").symlink_to(tmp_path / "target")
  files.write(tmp_path / "link", "ours")
  assert (tmp_path / "target").read_text() == "theirs"
  assert (tmp_path / "link").read_text() == "ours"
  assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "target"]
