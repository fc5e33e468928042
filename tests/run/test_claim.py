"""Whose directory it is: foreign ones, links, runs inside runs, names that lead elsewhere."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdtrap_jax.run import claim
from tests import decoys


def config_in(folder):
  (folder / "config.json").write_text("{}")


def test_an_empty_or_missing_directory_is_taken_and_known_again(tmp_path):
  (tmp_path / "empty").mkdir()
  for name in ("empty", "not/yet/there"):
    root = claim.claim(tmp_path / name)
    assert root == tmp_path / name
    (root / "file").write_text("of the run")
    assert claim.claim(root) == root
    assert claim.claim(root, "a/b") == root / "a" / "b"
    assert claim.claim(root, "a/b", 2) == root / "process-2" / "a" / "b"


def test_nothing_of_a_foreign_directory_changes(tmp_path):
  decoys.plant(tmp_path)
  before = decoys.state(tmp_path)
  for arguments in [(), ("vlm",), ("new",), ("", 1)]:
    with pytest.raises(ValueError, match="give"):
      claim.claim(tmp_path, *arguments)
  with pytest.raises(ValueError, match="give"):
    claim.claim_root(tmp_path)
  with pytest.raises(OSError, match="file or link"):
    claim.claim(tmp_path / "model.safetensors")
  assert decoys.state(tmp_path) == before


@pytest.mark.parametrize("name", decoys.NAMES)
def test_one_foreign_file_is_enough(tmp_path, name):
  path = tmp_path / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("theirs")
  before = decoys.state(tmp_path)
  with pytest.raises(ValueError, match="is not empty and no run"):
    claim.claim(tmp_path)
  assert decoys.state(tmp_path) == before


def test_a_run_of_before_the_marker_is_named(tmp_path):
  config_in(tmp_path)
  (tmp_path / "episodes.jsonl").touch()
  with pytest.raises(ValueError, match="older version"):
    claim.claim(tmp_path)


def test_a_run_of_another_layout_is_refused(tmp_path):
  claim.claim(tmp_path)
  (tmp_path / claim.MARKER).write_text(f"mdtrap_jax, layout {claim.LAYOUT + 1}\n")
  with pytest.raises(ValueError, match="another version"):
    claim.claim(tmp_path)


def test_a_kill_while_marking_costs_nothing(tmp_path):
  marker = tmp_path / claim.MARKER
  marker.touch()
  claim.claim(tmp_path)
  assert claim.is_ours(tmp_path)
  os.truncate(marker, marker.stat().st_size // 2)
  assert claim.is_ours(tmp_path)


def test_processes_that_start_at_once_do_not_refuse_each_other(tmp_path, monkeypatch):
  listdir = os.listdir

  def late(folder):  # the other process marks, and writes, just before this one looks
    if claim.MARKER not in listdir(folder):
      (tmp_path / claim.MARKER).write_text(f"mdtrap_jax, layout {claim.LAYOUT}\n")
      (tmp_path / ".lock").touch()
    return listdir(folder)

  monkeypatch.setattr(os, "listdir", late)
  assert claim.claim(tmp_path, process=1) == tmp_path / "process-1"


def test_a_foreign_variant_in_a_run_of_ours(tmp_path):
  root = claim.claim(tmp_path / "run")
  decoys.plant(root / "vlm")
  outside = decoys.plant(tmp_path / "outside")
  (root / "link").symlink_to(outside)
  (root / "file").write_text("theirs")
  before = decoys.state(tmp_path)
  for name in ("vlm", "link", "file", "link/vlm", "vlm/vlm"):
    with pytest.raises((ValueError, OSError)):
      claim.claim(root, name)
  assert decoys.state(tmp_path) == before


def test_the_work_directory_itself_may_be_a_link(tmp_path):
  (tmp_path / "disk").mkdir()
  (tmp_path / "link").symlink_to("disk")
  assert claim.claim(tmp_path / "link", "a") == tmp_path / "disk" / "a"
  assert (tmp_path / "link").is_symlink()
  (tmp_path / "circle").symlink_to("circle")
  with pytest.raises(OSError, match="circle"):
    claim.claim(tmp_path / "circle")


def test_no_run_inside_a_run(tmp_path):
  root = claim.claim(tmp_path / "run")
  config_in(claim.claim(root, "vlm"))
  config_in(claim.claim(root, "vlm", 1))
  before = decoys.state(tmp_path)
  for inside in ("new", "a/b", "vlm/c"):
    with pytest.raises(ValueError, match="is inside"):
      claim.claim(root / inside)
  with pytest.raises(ValueError, match="holds another run"):
    claim.claim(root)
  assert claim.claim_root(root) == root
  with pytest.raises(ValueError, match="inside it"):
    claim.claim(root, "vlm/deeper")
  assert decoys.state(tmp_path) == before
  claim.claim(root / "vlm")  # a variant's directory is a run of its own
  with pytest.raises(ValueError, match="is not empty"):
    claim.claim(tmp_path)  # and so is what holds runs


def test_processes_of_one_run_are_no_runs_inside_it(tmp_path):
  for _ in range(2):
    for process in range(3):
      config_in(claim.claim(tmp_path / "run", process=process))


@pytest.mark.parametrize(
  "name",
  ["snapshots", "Events", "figures", "process-1", "PROCESS-12", "../x", "/x", "a//b", ".", "..",
   "config.json", "summary.json", "episodes.jsonl", ".lock", "a/../b", "a\0", "cell/snapshots"],
)  # fmt: skip
def test_names_of_the_run_itself_or_leading_elsewhere_are_refused(tmp_path, name):
  with pytest.raises(ValueError, match="variant"):
    claim.claim(tmp_path / "run", name)
  assert not list(tmp_path.iterdir())


_PARTS = st.sampled_from([
  *(part for name in decoys.NAMES for part in name.split("/")), "", ".", "..", "a", "link", "run",
])  # fmt: skip
_NAMES = st.one_of(st.lists(_PARTS, max_size=3).map("/".join), st.text(max_size=5))


@settings(max_examples=40, deadline=None)
@given(root=_NAMES, name=_NAMES, process=st.integers(0, 1))
def test_no_name_changes_a_decoy(root, name, process):
  with tempfile.TemporaryDirectory() as folder:
    theirs = decoys.plant(Path(folder, "theirs"))
    ours = claim.claim(Path(folder, "ours"))
    (ours / "link").symlink_to(theirs)
    (ours / "figures").symlink_to(theirs / "vlm")
    before = decoys.state(theirs)
    for start in (theirs, ours):
      path = Path(f"{start}/{root}")
      try:
        inside = claim.claim(path, name, process)
      except (ValueError, OSError):
        continue
      assert os.path.commonpath([os.path.realpath(path), inside]) == os.path.realpath(path)
    assert before.items() <= decoys.state(theirs).items()
