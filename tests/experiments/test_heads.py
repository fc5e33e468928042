"""Runs of heads from config to table: files, resume, several domains and seeds, bad input."""

import itertools
import json

import numpy as np
import pytest

from configs import copa
from mdtrap_jax.report import heads as table
from mdtrap_jax.report.comparison import compare
from mdtrap_jax.report.heads import format_table
from mdtrap_jax.run import loop, place
from mdtrap_jax.run.lines import read_episodes
from tests.episodes import run_heads


@pytest.fixture(scope="module")
def features(tmp_path_factory):
  rng = np.random.default_rng(0)
  arrays = {}
  for domain, ways in (("one", 6), ("two", 9)):
    labels = np.repeat(np.arange(ways), rng.integers(14, 40, ways))
    centers = rng.standard_normal((ways, 16))
    arrays[f"{domain}/labels"] = labels
    arrays[f"{domain}/features"] = (
      centers[labels] + 1.2 * rng.standard_normal((len(labels), 16))
    ).astype(np.float32)
  path = tmp_path_factory.mktemp("features") / "toy.npz"
  np.savez(path, **arrays)
  return path


def make_config(features, method="copa", **fields):
  config = copa.get_config(method)
  config.domains, config.seeds, config.episodes = ("one",), 2, 3
  config.data.features = str(features)
  config.head.steps = None if method == "ncc" else 4
  config.update_from_flattened_dict({"data.ways": 5, "data.shots": 2, "data.queries": 4} | fields)
  return config


@pytest.fixture(scope="module")
def finished(features, tmp_path_factory):
  """A run over two domains and two seeds: its summary and its directory."""
  workdir = tmp_path_factory.mktemp("finished")
  return run_heads(make_config(features, domains=("one", "two")), workdir), workdir


def test_tasks_that_do_not_fit_are_refused(features, tmp_path, monkeypatch):
  monkeypatch.setattr(place, "memory_limit", lambda device: 2**12)
  with pytest.raises(MemoryError, match="one task needs .* smaller tasks"):
    run_heads(make_config(features), tmp_path)


def test_a_run_writes_one_table_over_domains_and_seeds(finished):
  summary, workdir = finished
  assert (summary["method"], summary["episodes"], summary["failed"]) == ("copa", 12, 0)
  rows = {row["domain"]: row for row in summary["domains"]}
  assert list(rows) == ["one", "two"]
  lines = read_episodes(workdir)
  assert sorted((line["domain"], line["seed"], line["task"]) for line in lines) == sorted(
    itertools.product(("one", "two"), (41, 42), range(3))
  )
  for domain, row in rows.items():
    own = [line for line in lines if line["domain"] == domain]
    assert row["tasks"] == 6
    assert row["accuracy_mean"] == pytest.approx(np.mean([line["accuracy"] for line in own]))
    assert row["accuracy_by_seed"]["42"] == pytest.approx(
      np.mean([line["accuracy"] for line in own if line["seed"] == 42])
    )
    assert row["gain_mean"] == pytest.approx(row["accuracy_mean"] - row["ncc_mean"])
    assert 0 < row["gap_before"] < 2
    assert 0 < row["gap_after"] < 2
  assert summary["peak_memory_bytes"] > 0
  assert json.loads((workdir / "summary.json").read_text()) == summary
  text = format_table(summary)
  assert "| one " in text
  assert "copa (%)" in text
  assert list((workdir / "events").iterdir())


def test_a_resumed_run_ends_like_an_uninterrupted_one(features, finished, tmp_path):
  part = make_config(features, episodes=1, episodes_per_device=1)
  run_heads(part, tmp_path / "part")
  before = (tmp_path / "part" / "episodes.jsonl").read_text()
  with open(tmp_path / "part" / "episodes.jsonl", "a") as file:
    file.write('{"episode": 7, "dom')  # what a kill leaves
  resumed = run_heads(make_config(features), tmp_path / "part")
  after = (tmp_path / "part" / "episodes.jsonl").read_text()
  assert after.startswith(before)
  assert len(after.splitlines()) == 6
  assert resumed["domains"] == finished[0]["domains"][:1]
  with pytest.raises(ValueError, match="data.shots"):
    run_heads(make_config(features, **{"data.shots": 1}), tmp_path / "part")


def test_varying_sizes_run_in_one_program_per_domain(features, tmp_path, monkeypatch):
  made, making = [], loop.make_programs
  making.cache_clear()  # of other tests' shapes

  def keep(*arguments):
    made.append(making(*arguments))
    return made[-1]

  monkeypatch.setattr(loop, "make_programs", keep)
  config = make_config(
    features, **{"data.protocol": "vary_way_vary_shot", "episodes_per_device": 1}
  )
  config.episodes = 10  # batches of eight, one for each device
  summary = run_heads(config, tmp_path)
  (programs,) = made
  assert programs.run[False]._cache_size() == programs.evaluate._cache_size() == 1
  assert summary["failed"] == 0
  lines = read_episodes(tmp_path)
  assert len({len(line["class_names"]) for line in lines}) > 1
  assert len({sum(map(len, line["support"])) for line in lines}) > 4


@pytest.mark.parametrize("method", ["ncc", "url", "laplacian_shot"])
def test_methods_meet_the_same_tasks_and_can_be_paired(method, features, finished, tmp_path):
  summary = run_heads(make_config(features, method), tmp_path)
  first, second = read_episodes(tmp_path), read_episodes(finished[1])
  ours, *rows = compare([tmp_path, finished[1]])
  assert ours.difference is None
  difference = {row.domain: row.difference for row in rows}
  assert [(domain, row.episodes) for domain, row in difference.items()] == [
    ("one", 6),
    ("two", 0),
  ]
  mean = lambda lines: np.mean([line["accuracy"] for line in lines if line["domain"] == "one"])
  assert difference["one"].mean == pytest.approx(mean(second) - mean(first))
  if method == "ncc":
    assert all(line["accuracy"] == line["zero_shot_accuracy"] for line in first)
  marked = method == "laplacian_shot"
  assert ours.name.endswith(" (transductive)") == marked
  assert (f"{method} (transductive) (%)" in format_table(summary)) == marked
  assert ("gap before" in format_table(summary)) != marked


def test_diagnosis_goes_into_the_summary_and_a_figure(features, tmp_path):
  config = make_config(
    features,
    "ncc",
    **{"domains": ("two",), "diagnosis.tasks": 2, "diagnosis.distances": (-1, 1, 3)},
  )
  summary = run_heads(config, tmp_path)
  assert set(summary["diagnosis"]) == {"two"}
  assert summary["diagnosis"]["two"]["distances"] == [-1.0, 0.0, 1.0]
  assert (tmp_path / "figures" / "gap_two.png").exists()


def test_a_task_that_fails_is_counted_apart(features, tmp_path):
  config = make_config(features, **{"head.learning_rate": 1e38})
  summary = run_heads(config, tmp_path)
  assert summary["failed"] == 6
  assert summary["accuracy_mean"] is None
  assert "–" in format_table(summary)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"method": "capo"}, "config.method=capo"),
    ({"domains": ()}, "config.domains="),
    ({"domains": ("one", "one")}, "each once"),
    ({"seeds": 0}, "config.seeds=0"),
    ({"episodes": 0}, "config.episodes=0"),
    ({"data.protocol": "any"}, "config.data.protocol=any"),
    ({"data.ways": 7}, "at least 7 classes, but only 6"),
    ({"data.ways": 1}, "config.data.ways=1"),
    ({"data.shots": 30}, "fewer than 34 images"),
    ({"domains": ("three",)}, "domains one, two|domains two, one"),
    ({"data.features": "nowhere.npz"}, "data.features"),
    ({"method": "copa_tsa"}, "cannot run on stored features"),
    ({"method": "copa_transformer", "diagnosis.tasks": 1}, "pooled features"),
    ({"method": "copa_transformer"}, r"one: the stored features are float32 .* needs floats"),
    ({"method": "tip_adapter"}, "texts of their classes, and stored features have none: leave"),
    ({"head.distance": "l2"}, "config.head.distance='l2': CoPA's loss is one of cosines"),
    ({"head.prototypes": "median"}, "config.head.prototypes=median: choose one of mean, max, sum"),
    ({"data.unreadable": "ignore"}, "config.data.unreadable=ignore"),
    ({"data.resize": "stretch"}, "config.data.resize=stretch"),
  ],
)
def test_bad_configs_are_named(fields, message, features, tmp_path):
  config = make_config(features)
  config.update_from_flattened_dict(fields)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    run_heads(config, tmp_path)


def test_one_set_of_features_is_not_shown_as_several_domains(features, tmp_path):
  with np.load(features) as held:
    alone = {part: held[f"one/{part}"] for part in ("features", "labels")}
  np.savez(tmp_path / "alone.npz", **alone)
  with pytest.raises(ValueError, match="same features for isic and chestx. Name the one domain"):
    run_heads(make_config(tmp_path / "alone.npz", domains=("isic", "chestx")), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_missing_checkpoint_says_what_to_do(tmp_path):
  config = copa.get_config("url_tsa")
  with pytest.raises(ValueError, match="model.checkpoint"):
    run_heads(config, tmp_path)


def test_an_empty_table():
  assert table.summarize([], "copa")["domains"] == []
