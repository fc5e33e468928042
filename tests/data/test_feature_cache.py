"""The cache of features: what it never touches, damage, and processes that race."""

import json
import multiprocessing
import os
import shutil

import numpy as np
import pytest
from absl import logging
from hypothesis import given, settings
from hypothesis import strategies as st

from mdtrap_jax.data import feature_cache
from mdtrap_jax.data.domains import domain_name
from mdtrap_jax.data.features import Extractor, cached_features
from mdtrap_jax.data.sources import ArraySource
from tests import decoys

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)


def make(cache, domain="d", name="mean", shade=0, **options):
  """Caches features of six images; returns them and whether they were computed."""
  calls = []

  def encode(pixels):
    calls.append(len(pixels))
    return pixels.astype(np.float32).mean((1, 2)) + shade

  source = ArraySource(IMAGES, np.arange(6) // 3, ["a", "b"])
  extractor = Extractor(name, str(shade), 4, encode)
  found = cached_features(domain, source, extractor, cache, threads=1, **options)
  return found, bool(calls)


@pytest.fixture
def warnings(monkeypatch):
  said = []
  monkeypatch.setattr(logging, "warning", lambda message, *args: said.append(message % args))
  return said


@pytest.mark.parametrize("name", ["{user}", "..", ".", "", "../user", "a/b", "x\0y", "ü" * 300])
def test_no_name_leads_out_of_the_cache(tmp_path, name):
  user = decoys.plant(tmp_path / "user")
  before = decoys.state(user)
  name = name.format(user=user)
  first, computed = make(tmp_path / "cache", domain=name, name=name)
  assert computed
  again, computed = make(tmp_path / "cache", domain=name, name=name)
  assert not computed
  np.testing.assert_array_equal(first.features, again.features)
  assert decoys.state(user) == before
  assert {path.name for path in tmp_path.iterdir()} == {"user", "cache"}
  (folder,) = (tmp_path / "cache").iterdir()
  assert folder.is_dir()


@pytest.mark.parametrize(
  "entry", ["{user}={user}", "../user", "", "=x", ".", "..", "meta/..", "world/a/b"]
)
def test_domains_have_plain_names(tmp_path, entry):
  with pytest.raises(ValueError, match=r"config\.domains"):
    domain_name(entry.format(user=tmp_path))


NAMES = st.one_of(st.text(max_size=8), st.sampled_from(["/", "..", "a/b", "a-b", "a b", "a" * 99]))


@settings(max_examples=50, deadline=None)
@given(
  st.tuples(st.sampled_from(["", "meta/", "world/"]), NAMES, st.sampled_from(["", "=/x", "="]))
)
def test_any_entry_has_a_plain_name_or_is_refused(parts):
  try:
    name = domain_name("".join(parts)).removeprefix("world/")
  except ValueError:
    return
  assert (name, name[0]) == (os.path.basename(name), name.lstrip(".")[0])


@settings(max_examples=10, deadline=None)
@given(NAMES, NAMES)
def test_nothing_outside_the_cache_changes_whatever_the_names(tmp_path_factory, domain, name):
  root = tmp_path_factory.mktemp("root")
  user = decoys.plant(root / "user")
  before = decoys.state(user)
  for shade in (0, 1):
    make(root / "cache", domain=domain, name=name, shade=shade)
  assert len(list((root / "cache").iterdir())) == 2
  assert {path.name for path in root.iterdir()} == {"user", "cache"}
  assert decoys.state(user) == before


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(NAMES, NAMES, st.floats(), st.integers()), min_size=2, unique_by=repr))
def test_no_two_identities_share_a_folder(identities):
  names = {
    feature_cache.folder_name({"model": m, "domain": d, "severity": repr(s), "size": n})
    for m, d, s, n in identities
  }
  assert len(names) == len(identities)
  assert all(
    name == os.path.basename(name) and name[0] != "." and len(name) < 160 for name in names
  )


def test_what_this_program_did_not_make_is_left_alone(tmp_path):
  cache = tmp_path / "cache"
  make(cache)
  (folder,) = cache.iterdir()
  user = decoys.plant(tmp_path / "user")
  shutil.copytree(folder, tmp_path / "kept")
  unmark = lambda: (folder / ".mdtrap_jax").write_text("somebody's own")
  alter = lambda: (folder / "features.npy").write_bytes(b"damaged")
  for place in (
    lambda: decoys.plant(folder),
    lambda: folder.mkdir(),
    lambda: folder.write_text("a file"),
    lambda: folder.symlink_to(user),
    lambda: folder.symlink_to(tmp_path / "kept"),  # ours, but behind a link
    lambda: (shutil.copytree(tmp_path / "kept", folder), unmark()),
    lambda: (shutil.copytree(tmp_path / "kept", folder), alter(), (folder / "mine").mkdir()),
  ):
    shutil.rmtree(folder) if folder.is_dir() and not folder.is_symlink() else folder.unlink()
    place()
    before = decoys.state(tmp_path)
    with pytest.raises(FileExistsError, match=r"left alone.*cache_dir"):
      make(cache)
    assert decoys.state(tmp_path) == before


@pytest.mark.parametrize(
  "damage",
  [
    lambda folder: os.truncate(folder / "features.npy", 150),
    lambda folder: os.truncate(folder / "labels.npy", 0),
    lambda folder: (folder / "features.npy").unlink(),
    lambda folder: np.save(folder / "features.npy", np.zeros((6, 3), np.float32)),
    lambda folder: np.save(folder / "features.npy", np.zeros((5, 3), np.float64)),
    lambda folder: np.save(folder / "labels.npy", np.zeros(6, np.int32)),
    lambda folder: (folder / "identity.json").write_text("[" * 10_000),
    lambda folder: (folder / "identity.json").write_text("5"),
    lambda folder: (folder / "identity.json").unlink(),
    lambda folder: (folder / "identity.json").write_text(
      (folder / "identity.json").read_text().replace('"size": 4', '"size": 5')
    ),
  ],
)
def test_damage_is_found_and_made_good_with_one_line(tmp_path, damage, warnings):
  first, _ = make(tmp_path)
  (folder,) = tmp_path.iterdir()
  damage(folder)
  found, computed = make(tmp_path)
  assert computed
  assert len(set(warnings)) == 1
  assert "is damaged and is made again" in warnings[0]
  assert "\n" not in warnings[0]
  np.testing.assert_array_equal(found.features, first.features)
  assert list(tmp_path.iterdir()) == [folder]
  assert not make(tmp_path)[1]


def test_what_a_kill_left_half_made_goes_after_a_day(tmp_path):
  make(tmp_path)
  (folder,) = tmp_path.iterdir()
  old, new, user = (tmp_path / f".{folder.name}.{end}" for end in ("old", "new", "user"))
  shutil.copytree(folder, old)
  shutil.copytree(folder, new)
  decoys.plant(user)
  for path in (old, user):
    os.utime(path, (1, 1))
  before = decoys.state(user)
  (folder / "features.npy").unlink()
  make(tmp_path)
  assert set(tmp_path.iterdir()) == {folder, new, user}
  assert decoys.state(user) == before


def test_who_comes_second_keeps_what_is_there(tmp_path, monkeypatch):
  store = feature_cache.store

  def late(*arguments):
    make(tmp_path)  # another process is first, after this one has looked
    store(*arguments)

  monkeypatch.setattr(feature_cache, "store", lambda *arguments: (
    monkeypatch.setattr(feature_cache, "store", store), late(*arguments)
  ))  # fmt: skip
  found, computed = make(tmp_path)
  assert computed
  (folder,) = tmp_path.iterdir()
  np.testing.assert_array_equal(np.load(folder / "features.npy"), found.features)


def _race(cache, barrier, number):
  for shade in range(6):
    barrier.wait(60)
    # Both make the same set, each under its own name, and a set of its own.
    make(cache, shade=shade)
    make(cache, domain="same name", shade=10 * number + shade)


def test_two_processes_never_mix_identity_and_features(tmp_path):
  context = multiprocessing.get_context("spawn")
  barrier = context.Barrier(2)
  workers = [context.Process(target=_race, args=(tmp_path, barrier, n)) for n in (1, 2)]
  for worker in workers:
    worker.start()
  for worker in workers:
    worker.join(60)
    assert worker.exitcode == 0
  folders = list(tmp_path.iterdir())
  assert len(folders) == 6 + 12
  for folder in folders:
    identity = json.loads((folder / "identity.json").read_text())
    expected = make(None, shade=int(identity["weights"]))[0].features
    np.testing.assert_array_equal(np.load(folder / "features.npy"), expected)
