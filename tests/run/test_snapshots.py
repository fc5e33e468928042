"""Snapshots: what is saved comes back, damage is noticed, nothing else is touched."""

import os
import resource

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdtrap_jax.config import ConfigMismatchError
from mdtrap_jax.run import claim
from mdtrap_jax.run.snapshots import Snapshot, SnapshotDirectory
from tests import decoys

CONFIG = {"": {"seed": 0, "lora": {"rank": 2}, "episodes": 4, "source": None}}


def snapshot(group="vlm svl", step=3, fill=0):
  rng = np.random.default_rng(fill)
  leaves = [
    rng.standard_normal((2, 1, 3)).astype(np.float32),
    rng.standard_normal((2, 1, 4)).astype(ml_dtypes.bfloat16),
    np.zeros((2, 1, 0), np.float32),
    np.array([[1], [2]], np.uint32),
    rng.standard_normal((2, 4, 3)).transpose(0, 2, 1) > 0,
  ]
  evaluations = {
    step: {"accuracy": rng.random((2, 1)), "cosines": rng.random((2, 1, 3))} for step in (0, 2)
  }
  return Snapshot(group, (5, 9), step, leaves, evaluations)


def assert_equal(one, other):
  assert one[:3] == other[:3]
  jax.tree.map(np.testing.assert_array_equal, one[3:], other[3:])
  types = lambda tree: [leaf.dtype for leaf in jax.tree.leaves(tree)]
  assert types(one[3:]) == types(other[3:])


@pytest.fixture
def directory(tmp_path):
  return SnapshotDirectory(tmp_path / "snapshots", CONFIG)


def only_file(tmp_path):
  (path,) = (tmp_path / "snapshots").glob("*.snapshot")
  return path


@pytest.mark.parametrize("process", [0, 1])
def test_what_is_saved_comes_back_in_any_process(tmp_path, monkeypatch, process):
  monkeypatch.setattr(jax, "process_index", lambda: process)
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  directory = SnapshotDirectory(tmp_path / "snapshots", CONFIG)
  assert directory.restore("vlm svl") is None
  assert directory.save(snapshot(fill=1, step=2))
  assert directory.save(snapshot())
  assert_equal(SnapshotDirectory(tmp_path / "snapshots", CONFIG).restore("vlm svl"), snapshot())


@pytest.mark.parametrize(
  ("episodes", "rows"), [([9], [1, 1, 1]), ([9, 5], [1, 0, 0]), ([5, 9], [0, 1, 1])]
)
def test_rows_of_chosen_episodes_in_the_order_asked_for(directory, episodes, rows):
  saved = snapshot()
  directory.save(saved)
  state, evaluations = directory.restore("vlm svl").rows(episodes, 3, saved.leaves)
  for leaf, whole in zip(state, saved.leaves, strict=True):
    np.testing.assert_array_equal(leaf, whole[rows])
  for step, kept in saved.evaluations.items():
    for name, whole in kept.items():
      np.testing.assert_array_equal(evaluations[step][name], whole[rows])


def test_rows_of_another_version(directory):
  saved = snapshot()
  with pytest.raises(ValueError, match="another version"):
    saved.rows([9], 2, saved.leaves[:1])


def test_every_changed_bit_is_noticed(tmp_path, directory, caplog):
  directory.save(snapshot())
  path = only_file(tmp_path)
  content = path.read_bytes()

  @settings(max_examples=60, deadline=None)
  @given(st.integers(0, 8 * len(content) - 1))
  def flip(bit):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)
    assert directory.restore("vlm svl") is None

  flip()
  for piece in (content[:-1], content[: len(content) // 2], b"", content + b"0"):
    path.write_bytes(piece)
    caplog.clear()
    assert directory.restore("vlm svl") is None
    (record,) = caplog.records
    assert "its episodes start again" in record.getMessage()
  path.write_bytes(content)
  assert_equal(directory.restore("vlm svl"), snapshot())


@pytest.mark.parametrize(
  ("old", "new"), [(b'"step": 3', b'"step": 4'), (b'"episodes": [5', b'"episodes": [4')]
)
def test_a_changed_step_or_list_of_episodes_is_noticed(tmp_path, directory, old, new):
  directory.save(snapshot())
  content = only_file(tmp_path).read_bytes()
  assert content.count(old) == 1
  only_file(tmp_path).write_bytes(content.replace(old, new))
  assert directory.restore("vlm svl") is None


def test_what_a_snapshot_holds_is_told_by_its_head(tmp_path, directory):
  assert directory.held("vlm svl") == ()
  directory.save(snapshot())
  assert directory.held("vlm svl") == (5, 9)
  assert directory.held("another") == ()
  path = only_file(tmp_path)
  for content in (path.read_bytes()[:100], b"\n{}\n", b"\n[1]\n", b"\n\xff\n", b""):
    path.write_bytes(content)
    assert directory.held("vlm svl") == ()


def test_groups_do_not_see_each_other(tmp_path, directory):
  directory.save(snapshot("cell/one", fill=1))
  directory.save(snapshot("cell/two", fill=2))
  assert_equal(directory.restore("cell/one"), snapshot("cell/one", fill=1))
  other = SnapshotDirectory(tmp_path / "snapshots", {"other": {}})
  assert other.restore("cell/three") is None
  other.remove("cell/three")
  directory.remove("cell/one")
  assert directory.restore("cell/one") is None
  assert_equal(directory.restore("cell/two"), snapshot("cell/two", fill=2))
  directory.remove()
  assert not (tmp_path / "snapshots").exists()


def test_a_snapshot_of_another_config_is_refused(tmp_path, directory):
  directory.save(snapshot())
  for config, message in (
    ({"": CONFIG[""] | {"lora": {"rank": 3}}}, "lora.rank: 2 there, 3 here"),
    ({"a": CONFIG[""]}, r"variants: \[''\] there, \['a'\] here"),
  ):
    with pytest.raises(ConfigMismatchError, match=message):
      SnapshotDirectory(tmp_path / "snapshots", config).restore("vlm svl")
  more = {"": CONFIG[""] | {"episodes": 9}}
  assert SnapshotDirectory(tmp_path / "snapshots", more).restore("vlm svl")


def test_a_group_is_of_some_variants_and_others_may_come_and_change(tmp_path):
  config = {name: CONFIG[""] | {"seed": i} for i, name in enumerate("ab")}
  SnapshotDirectory(tmp_path / "snapshots", config).save(snapshot()._replace(runs=("a",)))
  more = {"c": {}, "b": {}, "a": config["a"]}
  assert SnapshotDirectory(tmp_path / "snapshots", more).restore("vlm svl", ["a"]).runs == ("a",)
  with pytest.raises(ConfigMismatchError, match=r"variants: \['a'\] there, \['b', 'a'\] here"):
    SnapshotDirectory(tmp_path / "snapshots", more).restore("vlm svl", ["b", "a"])
  with pytest.raises(ConfigMismatchError, match="seed: 0 there, 5 here"):
    SnapshotDirectory(tmp_path / "snapshots", {"a": CONFIG[""] | {"seed": 5}}).restore("vlm svl")


def test_only_what_we_made_is_removed(tmp_path, directory):
  directory.save(snapshot())
  theirs, ours = decoys.plant(tmp_path / "theirs"), tmp_path / "snapshots"
  before = decoys.state(theirs)
  for name in ("7", "0", "fedcba9876543210.snapshot"):  # folders with numbers, or our names
    decoys.plant(ours / name)
  (ours / "link").symlink_to(theirs)
  (ours / "0123456789abcdef.snapshot").symlink_to(theirs / "model.safetensors")
  (ours / "notes.txt").write_text("theirs")
  kept = {name: found for name, found in decoys.state(ours).items() if name != only(ours)}
  directory.remove()
  assert decoys.state(ours) == kept
  assert decoys.state(theirs) == before
  assert directory.save(snapshot())  # and it is still ours
  directory.remove()
  assert decoys.state(ours) == kept


def only(folder):
  (path,) = (path for path in folder.glob("*.snapshot") if path.is_file() and not path.is_symlink())
  return path.name


def test_a_link_in_the_place_of_a_snapshot_is_replaced(tmp_path, directory):
  theirs = tmp_path / "theirs"
  theirs.write_text("theirs")
  directory.save(snapshot())
  path = only_file(tmp_path)
  path.unlink()
  path.symlink_to(theirs)
  assert directory.restore("vlm svl") is None
  assert directory.save(snapshot())
  assert theirs.read_text() == "theirs"
  assert_equal(directory.restore("vlm svl"), snapshot())


def test_a_foreign_directory_or_a_link_is_refused(tmp_path):
  theirs = decoys.plant(tmp_path / "theirs")
  (tmp_path / "link").symlink_to(theirs)
  (tmp_path / "file").write_text("theirs")
  before = decoys.state(tmp_path)
  for name in ("theirs", "theirs/snapshots", "link", "file"):
    with pytest.raises((ValueError, OSError), match="another --workdir|empty --workdir"):
      SnapshotDirectory(tmp_path / name, CONFIG)
  assert decoys.state(tmp_path) == before


def test_what_a_kill_left_half_written_goes_with_the_rest(tmp_path, directory):
  directory.save(snapshot())
  path = only_file(tmp_path)
  half = path.parent / f".{path.name}.ab_1x.partial"
  half.write_bytes(b"half")
  assert_equal(directory.restore("vlm svl"), snapshot())
  directory.save(snapshot())
  assert not half.exists()
  half.write_bytes(b"half")
  directory.remove()
  assert not path.parent.exists()


def test_a_disk_that_fills_costs_the_snapshot_only(tmp_path, caplog):
  directory = SnapshotDirectory(tmp_path / "snapshots", CONFIG, seconds=0.0, share=np.inf)
  assert directory.save(snapshot(step=1))
  before = decoys.state(tmp_path)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # writing fails, as on a full disk
  try:
    assert directory.due()
    assert not directory.save(snapshot(step=2))
    assert not directory.save(snapshot(step=3))  # asked for at the stop, say
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  (record,) = caplog.records
  assert "the run goes on without" in record.getMessage()
  assert not directory.due()
  assert decoys.state(tmp_path) == before
  assert directory.restore("vlm svl").step == 1
  assert directory.save(snapshot(step=4))  # there is room again
  assert directory.due()


def test_when_a_snapshot_is_due(tmp_path, monkeypatch):
  now = [100.0]
  monkeypatch.setattr("time.monotonic", lambda: now[0])
  directory = SnapshotDirectory(tmp_path / "snapshots", CONFIG, seconds=10.0, share=0.05)
  write = os.replace

  def slowly(*arguments):
    now[0] += 1.0
    write(*arguments)

  monkeypatch.setattr(os, "replace", slowly)
  now[0] += 9.5
  assert not directory.due()
  now[0] += 0.5
  assert directory.due()
  directory.begin()
  assert not directory.due()
  directory.save(snapshot())  # takes a second, which may be a twentieth
  now[0] += 19.5
  assert not directory.due()
  now[0] += 0.5
  assert directory.due()


def test_it_is_a_directory_of_the_run(tmp_path):
  root = claim.claim(tmp_path / "run")
  directory = SnapshotDirectory(root / "snapshots", CONFIG)
  directory.save(snapshot())
  assert claim.claim(root) == root
