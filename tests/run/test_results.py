"""The files of a run: claiming, appending, repairing, summing up."""

import errno
import json
import os

import numpy as np
import pytest

from mdtrap_jax import config as settings
from mdtrap_jax.run import results
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


def test_episodes_survive(tmp_path):
  with results.WorkDirectory(tmp_path, CONFIG) as directory:
    directory.append([line(0), line(2)])
    directory.append([line(1)])
  with results.WorkDirectory(tmp_path, CONFIG) as directory:
    assert sorted(directory.finished) == [0, 1, 2]
  assert [row["episode"] for row in results.read_episodes(tmp_path)] == [0, 1, 2]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_half_written_line_is_dropped(tmp_path, cut):
  with results.WorkDirectory(tmp_path, CONFIG) as directory:
    directory.append([line(0), line(1)])
  path = tmp_path / "episodes.jsonl"
  os.truncate(path, path.stat().st_size - cut)
  with results.WorkDirectory(tmp_path, CONFIG) as directory:
    assert list(directory.finished) == [0]
    directory.append([line(1)])
  assert [row["episode"] for row in results.read_episodes(tmp_path)] == [0, 1]


def test_damage_in_the_middle_is_named(tmp_path):
  with results.WorkDirectory(tmp_path, CONFIG) as directory:
    directory.append([line(0), line(1), line(2)])
  path = tmp_path / "episodes.jsonl"
  rows = path.read_text().splitlines()
  path.write_text("\n".join([rows[0], rows[1][:9], rows[2]]) + "\n")
  with pytest.raises(ValueError, match="episodes.jsonl, line 2, is damaged"):
    results.WorkDirectory(tmp_path, CONFIG)


def test_a_directory_of_another_config_is_refused(tmp_path):
  with results.WorkDirectory(tmp_path, CONFIG) as directory:
    directory.append([line(0)])
  other = settings.resolve(small_config(data__shots=2))
  with pytest.raises(ValueError, match="data.shots: 1 there, 2 here"):
    results.WorkDirectory(tmp_path, other)
  more = settings.resolve(small_config(episodes=50, data__threads=7))  # how, not what
  results.WorkDirectory(tmp_path, more).close()
  assert json.loads((tmp_path / "config.json").read_text())["episodes"] == 50


def test_other_data_are_refused(tmp_path):
  source = {"name": "birds", "images": 32}
  with results.WorkDirectory(tmp_path, CONFIG, source) as directory:
    directory.append([line(0)])
  results.WorkDirectory(tmp_path, CONFIG, source).close()
  with pytest.raises(ValueError, match="other data .source.images: 32 there, 33 here"):
    results.WorkDirectory(tmp_path, CONFIG, source | {"images": 33})


def test_a_mistake_before_the_first_episode_does_not_lock_the_directory(tmp_path):
  results.WorkDirectory(tmp_path, settings.resolve(small_config(data__shots=3))).close()
  results.WorkDirectory(tmp_path, CONFIG).close()


def test_a_directory_in_use_is_refused(tmp_path):
  with (
    results.WorkDirectory(tmp_path, CONFIG),
    pytest.raises(OSError, match="in use by another run"),
  ):
    results.WorkDirectory(tmp_path, CONFIG)
  results.WorkDirectory(tmp_path, CONFIG).close()


def test_results_of_unknown_origin_are_not_overwritten(tmp_path):
  (tmp_path / "episodes.jsonl").write_text('{"episode": 0}\n')
  with pytest.raises(ValueError, match="no config.json"):
    results.WorkDirectory(tmp_path, CONFIG)
  assert (tmp_path / "episodes.jsonl").read_text() == '{"episode": 0}\n'


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
  def full(descriptor):
    raise OSError(errno.ENOSPC, "No space left on device")

  with results.WorkDirectory(tmp_path, CONFIG) as directory:
    directory.append([line(0)])
    before = (tmp_path / "episodes.jsonl").read_text()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk is full.*keeps what was finished"):
      directory.append([line(1)])
    assert (tmp_path / "episodes.jsonl").read_text() == before
    with pytest.raises(OSError, match="disk is full"):
      directory.write_json("config.json", "{}")
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(
      settings.to_json(CONFIG)
    ) | {"source": None}


def test_mean_and_interval_by_hand():
  accuracy = results.mean_and_ci([0.2, 0.4, 0.6])
  assert accuracy.episodes == 3
  np.testing.assert_allclose(accuracy.mean, 0.4)
  np.testing.assert_allclose(accuracy.ci95, 1.96 * np.sqrt(0.08 / 3) / np.sqrt(3))
  assert np.isnan(results.mean_and_ci([]).mean)


def test_failed_episodes_are_counted_apart():
  summary = results.summarize([line(0, 0.5), line(1, None, status="non-finite"), line(2, 0.7)])
  assert (summary["episodes"], summary["failed"]) == (3, 1)
  np.testing.assert_allclose(summary["accuracy_mean"], 0.6)
  np.testing.assert_allclose(summary["gain_mean"], 0.35)
  np.testing.assert_allclose(summary["accuracy_at"]["2"], 0.3)
  nothing = results.summarize([line(0, None, status="non-finite")])
  assert nothing["accuracy_mean"] is None
  json.dumps(nothing, allow_nan=False)
  results.format_summary(nothing)


def test_no_run_there(tmp_path):
  with pytest.raises(FileNotFoundError, match="is .* the --workdir of a run"):
    results.read_episodes(tmp_path)
