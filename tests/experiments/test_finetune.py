"""Whole runs from a folder of images: files, resume after a kill, the command line's errors."""

import json
import re
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

from mdtrap_jax import experiments
from mdtrap_jax.__main__ import main
from mdtrap_jax.run.lines import read_episodes
from tests.episodes import QUERIES, SHOTS, WAYS, run_finetune, small_config
from tests.run import commands

STEPS = 5
KILLED, STEPS_KILLED = 6, 5  # episodes, and steps of each, of the run that is killed
CONTRACT = {
  "episode",
  "seed",
  "task",
  "status",
  "accuracy",
  "accuracy_at",
  "zero_shot_accuracy",
  "class_names",
  "support",
  "query",
  "losses",
  "terms",
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
  """Four classes of tinted noise, as PNG files."""
  root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
  for name in ("blue_jay", "crow", "gull", "wren"):
    (root / name).mkdir()
    tint = rng.integers(0, 120, 3)
    for i in range(8):
      pixels = (rng.integers(0, 130, (40, 50, 3)) + tint).astype(np.uint8)
      Image.fromarray(pixels).save(root / name / f"{i}.png")
  return root


def run(folder, workdir, devices=None, **overrides):
  config = small_config(data__path=str(folder), adapt__steps=STEPS, **overrides)
  return run_finetune(config, workdir, devices=devices)[""]


@pytest.fixture(scope="session")
def finished(folder, tmp_path_factory):
  """A run of five episodes, two at a time on one device."""
  workdir = tmp_path_factory.mktemp("run")
  summary = run(folder, workdir, 1, episodes_per_device=2)
  return workdir, summary


def test_the_files_of_a_run(finished):
  workdir, summary = finished
  rows = read_episodes(workdir)
  assert [row["episode"] for row in rows] == list(range(5))
  for row in rows:
    assert set(row) == CONTRACT
    assert row["status"] == "ok"
    assert list(row["accuracy_at"]) == ["1", "2", "3", "4", "5"]
    assert row["accuracy"] == row["accuracy_at"][str(STEPS)]
    assert set(row["class_names"]) <= {"blue_jay", "crow", "gull", "wren"}
    assert np.shape(row["support"]) == (WAYS, SHOTS)
    assert np.shape(row["query"]) == (WAYS, QUERIES)
    used = np.concatenate([np.ravel(row["support"]), np.ravel(row["query"])])
    assert len(set(used)) == len(used)
    assert set(row["losses"]) == {"vlm", "svl", "ra"}
    assert all(np.isfinite(loss) for loss in row["losses"].values())
  written = json.loads((workdir / "summary.json").read_text())
  assert written["peak_memory_bytes"] > 0
  assert written == json.loads(json.dumps(summary))
  assert written["episodes"] == 5
  assert written["failed"] == 0
  assert written["episodes_per_second"] > 0
  assert {"accuracy_mean", "accuracy_ci95", "zero_shot_mean", "versions", "device"} <= set(written)
  np.testing.assert_allclose(written["accuracy_mean"], np.mean([row["accuracy"] for row in rows]))
  assert list((workdir / "events").iterdir())


def test_the_same_numbers_on_eight_devices(folder, finished, tmp_path):
  run(folder, tmp_path, episodes=3)
  assert_same(read_episodes(tmp_path), read_episodes(finished[0])[:3])


def test_running_again_does_nothing_and_more_episodes_continue(folder, finished, tmp_path):
  workdir = tmp_path / "copy"
  shutil.copytree(finished[0], workdir)
  before = (workdir / "episodes.jsonl").read_bytes()
  again = run(folder, workdir, 1, episodes_per_device=2)
  assert (workdir / "episodes.jsonl").read_bytes() == before
  assert again["episodes_per_second"] == finished[1]["episodes_per_second"]
  run(folder, workdir, 1, episodes=6, episodes_per_device=2)
  after = (workdir / "episodes.jsonl").read_bytes()
  assert after.startswith(before)
  assert len(read_episodes(workdir)) == 6


def test_a_run_of_coop_goes_on_and_has_zero_shot_beside(folder, finished, tmp_path):
  """Although its context starts at random; the episodes are those of LoRA."""
  options = {"row": "svl_ra,coop", "coop__tokens": 3, "episodes_per_device": 1}
  run(folder, tmp_path, 1, episodes=2, **options)
  before = (tmp_path / "episodes.jsonl").read_bytes()
  run(folder, tmp_path, 1, episodes=3, **options)
  assert (tmp_path / "episodes.jsonl").read_bytes().startswith(before)
  rows, lora = read_episodes(tmp_path), read_episodes(finished[0])[:3]
  for name in ("support", "query", "class_names", "zero_shot_accuracy"):
    assert [line[name] for line in rows] == [line[name] for line in lora]
  assert all(line["status"] == "ok" for line in rows)


def test_losing_lines_reproduces_them(folder, finished, tmp_path):
  """What a kill can leave: fewer lines, the last one cut short."""
  workdir = tmp_path / "copy"
  shutil.copytree(finished[0], workdir)
  path = workdir / "episodes.jsonl"
  lines = path.read_bytes().splitlines(keepends=True)
  path.write_bytes(lines[0] + lines[3] + lines[2][:40])
  run(folder, workdir, 1, episodes_per_device=2)  # in other pairs than before
  assert_same(read_episodes(workdir), read_episodes(finished[0]))


def assert_same(ours, theirs):
  """Equal data and draws; accuracies equal but for a query that rounding may tip."""
  for one, other in zip(ours, theirs, strict=True):
    for field in ("episode", "status", "class_names", "support", "query"):
      assert one[field] == other[field]
    assert abs(one["accuracy"] - other["accuracy"]) < 1.5 / (WAYS * QUERIES)
    for name, value in one["losses"].items():
      np.testing.assert_allclose(value, other["losses"][name], rtol=5e-2, atol=5e-3)


def test_a_non_finite_episode_is_reported(folder, tmp_path):
  only_vlm = {"objective__svl__weight": 0.0, "objective__ra__weight": 0.0, "adapt__views": 1}
  summary = run(folder, tmp_path, 1, optimizer__learning_rate=1e30, episodes=2, **only_vlm)
  rows = read_episodes(tmp_path)
  assert [row["status"] for row in rows] == ["non-finite"] * 2
  assert [row["accuracy"] for row in rows] == [None] * 2
  assert summary["failed"] == 2
  assert summary["accuracy_mean"] is None


def test_variants_have_a_directory_each_and_are_compared(folder, finished, tmp_path):
  config = small_config(data__path=str(folder), adapt__steps=STEPS, episodes=3)
  config.variants = {"vlm": {"svl": 0.0, "ra": 0.0}, "svl_ra": {}}
  run_finetune(config, tmp_path, devices=1)
  table = experiments.run(config, tmp_path)
  assert_same(read_episodes(tmp_path / "svl_ra"), read_episodes(finished[0])[:3])
  plain = read_episodes(tmp_path / "vlm")
  assert [set(line["losses"]) for line in plain] == [{"vlm"}] * 3
  assert re.search(r"vlm +3 +0 ", table)
  assert re.search(r"svl_ra +3 .* [+-]\d+\.\d+ ± \d", table)
  # A kill after a batch was written for the one variant and before it was for the other.
  lines = (tmp_path / "svl_ra" / "episodes.jsonl").read_bytes().splitlines(keepends=True)
  rows = read_episodes(tmp_path / "svl_ra")
  (tmp_path / "svl_ra" / "episodes.jsonl").write_bytes(lines[0])
  before = (tmp_path / "vlm" / "episodes.jsonl").read_bytes()
  run_finetune(config, tmp_path, devices=1)
  assert experiments.run(config, tmp_path) == table
  assert (tmp_path / "vlm" / "episodes.jsonl").read_bytes() == before
  # In other places of a batch than before, which rounds a loss otherwise on some processors.
  assert_same(read_episodes(tmp_path / "svl_ra"), rows)
  alone = small_config(
    data__path=str(folder),
    adapt__steps=STEPS,
    episodes=3,
    objective__svl__weight=0.0,
    objective__ra__weight=0.0,
  )
  before = (tmp_path / "vlm" / "episodes.jsonl").read_bytes()
  run_finetune(alone, tmp_path / "vlm")  # a variant's directory is a run of its own
  assert (tmp_path / "vlm" / "episodes.jsonl").read_bytes() == before


def arguments(folder, workdir, *extra):
  return [
    f"--config=configs/folder.py{extra[0] if extra else ''}",
    f"--config.data.path={folder}",
    f"--workdir={workdir}",
    "--config.model.name=clip-tiny",
    "--config.model.random_weights=true",
    "--config.data.ways=3",
    "--config.data.queries=4",
    f"--config.episodes={KILLED}",
    "--config.episodes_per_device=1",
    f"--config.adapt.steps={STEPS_KILLED}",
    "--config.adapt.views=2",
    *extra[1:],
  ]


def test_a_killed_run_resumes(folder, tmp_path):
  """SIGKILL in the fourth batch; the resumed run ends with every episode once."""
  run, log = arguments(folder, tmp_path / "run"), str(tmp_path / "log")
  kill = commands.Signal(signal.SIGKILL, 3 * STEPS_KILLED + 2)
  assert commands.start(run, log, kill).end().code == -signal.SIGKILL
  path = tmp_path / "run" / "episodes.jsonl"
  kept = path.read_bytes()
  assert kept.count(b"\n") == 3
  ended = commands.start(run, log).end()
  assert ended.code == 0
  assert path.read_bytes().startswith(kept)
  assert [row["episode"] for row in read_episodes(path.parent)] == list(range(KILLED))
  assert "adapted accuracy" in ended.out
  assert f"{KILLED}/{KILLED} episodes" in (tmp_path / "log.err").read_text()


@pytest.mark.parametrize(
  ("extra", "message"),
  [
    (["", "--config.data.way=3"], "way"),
    ([":svlra"], "svlra: no such method"),
    (["", "--config.data.path=/nowhere/at/all"], "/nowhere/at/all"),
    (["", "--config.data.queries=50"], r"crow \(8\)"),
    (["", "--config.data.ways=9"], "9"),
    (["", "--config.model.name=clip-tiney"], "clip-tiny"),
    (["", "--config.adapt.steps=3"], "steps=3"),
    (["", "--config.lora.position=middle"], "lora.position=middle"),
    (["", "--config.adapt.batch_size=5"], "batch_size=5: ra compares all views"),
  ],
)
def test_wrong_input_is_one_message_before_any_work(folder, tmp_path, capsys, extra, message):
  """As `main.py` says it."""
  assert main(["run", *arguments(folder, tmp_path / "run", *extra)]) == 1
  error = capsys.readouterr().err
  assert "Traceback" not in error
  lines = [line for line in error.splitlines() if "random weights" not in line]
  assert len(lines) == 1
  assert re.search(message, error)
