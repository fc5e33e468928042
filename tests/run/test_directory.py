"""The files of a run: claiming, appending, repairing, resuming."""

import errno
import json
import os

import pytest

from mdtrap_jax import config as settings
from mdtrap_jax.run.directory import WorkDirectory, check_same
from mdtrap_jax.run.lines import read_episodes, read_object
from tests import decoys
from tests.episodes import small_config

CONFIG = settings.resolve(small_config())


def line(episode, accuracy=0.5, zero_shot=0.25, status="ok"):
  return {
    "episode": episode,
    "status": status,
    "accuracy": accuracy,
    "zero_shot_accuracy": zero_shot,
    "accuracy_at": {"2": 0.3, "10": accuracy},
  }


def source(**content):
  return {
    "weights": "aa",
    "domains": {"birds": {"class_names": list(content), "content": content}},
  }


def test_episodes_survive(tmp_path):
  with WorkDirectory(tmp_path, CONFIG) as directory:
    directory.append([line(0), line(2)])
    directory.append([line(1)])
  with WorkDirectory(tmp_path, CONFIG) as directory:
    assert sorted(directory.finished) == [0, 1, 2]
  assert [row["episode"] for row in read_episodes(tmp_path)] == [0, 1, 2]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_half_written_line_is_dropped(tmp_path, cut):
  with WorkDirectory(tmp_path, CONFIG) as directory:
    directory.append([line(0), line(1)])
  path = tmp_path / "episodes.jsonl"
  os.truncate(path, path.stat().st_size - cut)
  with WorkDirectory(tmp_path, CONFIG) as directory:
    assert list(directory.finished) == [0]
    directory.append([line(1)])
  assert [row["episode"] for row in read_episodes(tmp_path)] == [0, 1]


def test_damage_in_the_middle_is_named_and_left(tmp_path):
  with WorkDirectory(tmp_path, CONFIG) as directory:
    directory.append([line(0), line(1), line(2)])
  path = tmp_path / "episodes.jsonl"
  rows = path.read_text().splitlines()
  path.write_text("\n".join([rows[0], rows[1][:9], rows[2]]) + "\n")
  before = decoys.state(tmp_path)
  with pytest.raises(ValueError, match="episodes.jsonl, line 2, is damaged"):
    WorkDirectory(tmp_path, CONFIG)
  assert decoys.state(tmp_path) == before


def test_a_directory_of_another_config_is_refused(tmp_path):
  with WorkDirectory(tmp_path, CONFIG) as directory:
    directory.append([line(0)])
  other = settings.resolve(small_config(data__shots=2))
  with pytest.raises(ValueError, match="data.shots: 1 there, 2 here"):
    WorkDirectory(tmp_path, other)
  more = settings.resolve(small_config(episodes=50, data__threads=7))  # how, not what
  WorkDirectory(tmp_path, more).close()
  assert read_object(tmp_path / "config.json")["episodes"] == 50


def test_other_data_are_refused_in_words(tmp_path):
  first = source(crow=(12, "c"), gull=(9, "g"))
  with WorkDirectory(tmp_path, CONFIG, first) as directory:
    directory.append([line(0)])
  WorkDirectory(tmp_path, CONFIG, first).close()
  before = decoys.state(tmp_path)
  with pytest.raises(ValueError, match="birds: class 'crow': 12 images there, 13 here"):
    WorkDirectory(tmp_path, CONFIG, source(crow=(13, "d"), gull=(9, "g")))
  with pytest.raises(ValueError, match="weights were replaced: aa there, bb here"):
    WorkDirectory(tmp_path, CONFIG, first | {"weights": "bb"})
  assert decoys.state(tmp_path) == before


def test_a_mistake_before_the_first_episode_does_not_lock_the_directory(tmp_path):
  WorkDirectory(tmp_path, settings.resolve(small_config(data__shots=3))).close()
  WorkDirectory(tmp_path, CONFIG).close()


def test_a_directory_in_use_is_refused(tmp_path):
  with WorkDirectory(tmp_path, CONFIG), pytest.raises(OSError, match="in use by another run"):
    WorkDirectory(tmp_path, CONFIG)
  WorkDirectory(tmp_path, CONFIG).close()


def test_nothing_of_a_foreign_directory_is_written(tmp_path):
  decoys.plant(tmp_path)
  before = decoys.state(tmp_path)
  for options in ({}, {"variant": "vlm"}, {"variant": "new"}, {"process": 1}):
    with pytest.raises(ValueError, match="is not empty|older version"):
      WorkDirectory(tmp_path, CONFIG, **options)
  assert decoys.state(tmp_path) == before


@pytest.mark.parametrize("name", [".lock", "episodes.jsonl"])
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "directory"])
def test_what_is_no_plain_file_is_refused(tmp_path, name, kind):
  theirs = tmp_path / "theirs"
  theirs.write_text('{"episode": 0}\n')
  with WorkDirectory(tmp_path / "run", CONFIG):
    pass
  path = tmp_path / "run" / name
  path.unlink(missing_ok=True)
  if kind == "pipe":
    os.mkfifo(path)
  elif kind == "directory":
    path.mkdir()
  else:
    path.symlink_to(theirs if kind == "link" else tmp_path / "missing")
  before = decoys.state(tmp_path)
  with pytest.raises(OSError, match=name):
    WorkDirectory(tmp_path / "run", CONFIG)
  assert decoys.state(tmp_path) == before


def test_links_at_the_places_of_our_files_are_replaced_or_refused(tmp_path):
  theirs = decoys.plant(tmp_path / "theirs")
  before = decoys.state(theirs)
  with WorkDirectory(tmp_path / "run", CONFIG) as directory:
    for name in ("config.json", "summary.json"):
      (directory.path / name).unlink(missing_ok=True)
      (directory.path / name).symlink_to(theirs / name)
    (directory.path / ".summary.json.partial").symlink_to(theirs / "model.safetensors")
    directory.write_json("summary.json", {"ours": True})
    for name in ("events", "figures"):
      (directory.path / name).symlink_to(theirs / name)
      with pytest.raises(OSError, match=name):
        directory.folder(name)
    (directory.path / "episodes.jsonl").symlink_to(theirs / "episodes.jsonl")
    with pytest.raises(OSError, match=r"episodes.jsonl is a link"):
      directory.append([line(0)])
  (tmp_path / "run" / "episodes.jsonl").unlink()
  WorkDirectory(tmp_path / "run", CONFIG).close()  # writes config.json
  assert read_object(tmp_path / "run" / "summary.json") == {"ours": True}
  assert not (tmp_path / "run" / "config.json").is_symlink()
  assert decoys.state(theirs) == before


@pytest.mark.parametrize("written", [0, 7])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_a_full_disk_or_a_signal_in_the_middle_loses_nothing(tmp_path, monkeypatch, error, written):
  write = os.write

  def fail(descriptor, text):
    if written and len(text) > written and text.startswith(b"{"):
      return write(descriptor, text[:written])
    raise error

  with WorkDirectory(tmp_path, CONFIG) as directory:
    directory.append([line(0)])
    before = decoys.state(tmp_path)
    with monkeypatch.context() as patch:
      patch.setattr(os, "write", fail)
      with pytest.raises(type(error), match=r"keeps what was finished|^$"):
        directory.append([line(1), line(2)])
    assert decoys.state(tmp_path) == before
    assert list(directory.finished) == [0]
    directory.append([line(1), line(2)])
  assert [row["episode"] for row in read_episodes(tmp_path)] == [0, 1, 2]


def test_a_full_disk_keeps_the_file_that_was_to_be_replaced(tmp_path, monkeypatch):
  def full(descriptor):
    raise OSError(errno.ENOSPC, "No space left on device")

  with WorkDirectory(tmp_path, CONFIG) as directory:
    before = decoys.state(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk is full"):
      directory.write_json("config.json", "{}")
  assert decoys.state(tmp_path) == before


def test_a_kill_between_two_variants_is_repaired(tmp_path):
  variants = ("vlm", "svl")
  open_all = lambda: [WorkDirectory(tmp_path, CONFIG, variant=name) for name in variants]
  first, second = open_all()
  first.append([line(0), line(1)])
  second.append([line(0), line(1)])
  first.append([line(2), line(3)])  # and killed before the second one's
  for directory in (first, second):
    directory.close()
  directories = open_all()
  assert [sorted(d.finished) for d in directories] == [[0, 1, 2, 3], [0, 1]]
  for directory in directories:
    directory.append([line(2), line(3)])
    directory.close()
  files = [(tmp_path / name / "episodes.jsonl").read_bytes() for name in variants]
  assert files[0] == files[1]
  assert [row["episode"] for row in read_episodes(tmp_path / "vlm")] == [0, 1, 2, 3]


def test_episodes_whose_config_is_lost(tmp_path):
  with WorkDirectory(tmp_path, CONFIG) as directory:
    directory.append([line(0)])
  (tmp_path / "config.json").unlink()
  with pytest.raises(ValueError, match="no config.json"):
    WorkDirectory(tmp_path, CONFIG)


@pytest.mark.parametrize("text", ["[]", "5", "[" * 100_000, "", "{"])
def test_a_damaged_config_is_one_line(tmp_path, text):
  with WorkDirectory(tmp_path, CONFIG) as directory:
    directory.append([line(0)])
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(ValueError, match=r"config\.json is damaged \(.*\): restore") as caught:
    WorkDirectory(tmp_path, CONFIG)
  assert "\n" not in str(caught.value)


def test_lines_of_another_run_are_not_mixed_in(tmp_path):
  with WorkDirectory(tmp_path, CONFIG, source(crow=(12, "c"))) as directory:
    check_same(directory.config, json.loads(json.dumps(directory.config)), tmp_path)
    other = directory.config | {"source": source(crow=(12, "d"))}
    with pytest.raises(settings.ConfigMismatchError, match="crow': other images"):
      check_same(directory.config, other, tmp_path)
