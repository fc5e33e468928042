"""Runs that are stopped: asked to, killed at random moments, with a damaged snapshot; two hosts."""

import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from mdtrap_jax.config import ConfigMismatchError
from mdtrap_jax.run import loop
from mdtrap_jax.run.lines import read_episodes
from mdtrap_jax.run.progress import Progress
from mdtrap_jax.run.stop import PreemptedError
from tests.episodes import run_finetune, small_config
from tests.paths import ROOT

KILLS = 20
EVERY = loop.Pace(segment=0.0, snapshot=0.0, share=np.inf)  # a snapshot after every step


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Three classes of tinted noise."""
  root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
  for name in ("crow", "gull", "wren"):
    (root / name).mkdir()
    tint = rng.integers(0, 120, 3)
    for i in range(6):
      pixels = (rng.integers(0, 130, (32, 32, 3)) + tint).astype(np.uint8)
      Image.fromarray(pixels).save(root / name / f"{i}.png")
  return root


def make_config(folder, **overrides):
  return small_config(
    **{"data__path": str(folder), "episodes": 4, "episodes_per_device": 2} | overrides
  )


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
  """The lines of a run that nobody stops, on one device."""
  workdir = tmp_path_factory.mktemp("undisturbed")
  run_finetune(make_config(folder), workdir, devices=1)
  return read_episodes(workdir)


def stop_after(monkeypatch, count, number=signal.SIGTERM):
  """Sends this process a signal after so many segments."""
  stepped, done = Progress.stepped, []

  def and_stop(self, *arguments):
    stepped(self, *arguments)
    done.append(0)
    if len(done) == count:
      os.kill(os.getpid(), number)

  monkeypatch.setattr(Progress, "stepped", and_stop)


@pytest.mark.parametrize(("count", "number"), [(3, signal.SIGTERM), (17, signal.SIGINT)])
def test_a_stopped_run_goes_on_in_the_middle(
  folder, undisturbed, tmp_path, monkeypatch, count, number
):
  with monkeypatch.context() as patch:
    stop_after(patch, count, number)
    with pytest.raises(PreemptedError, match=number.name):
      run_finetune(make_config(folder), tmp_path, EVERY, 1)
  assert list((tmp_path / "snapshots").iterdir())
  starts = []
  adapt_batch = loop.adapt_batch
  monkeypatch.setattr(
    loop,
    "adapt_batch",
    lambda *arguments, **options: (
      starts.append(options["start"]),
      adapt_batch(*arguments, **options),
    )[1],
  )
  run_finetune(make_config(folder), tmp_path, EVERY, 1)
  assert starts == {3: [3, 0], 17: [7]}[count]
  assert read_episodes(tmp_path) == undisturbed
  assert not (tmp_path / "snapshots").exists()


def test_it_goes_on_in_other_batches_and_on_other_devices(
  folder, undisturbed, tmp_path, monkeypatch
):
  with monkeypatch.context() as patch:
    stop_after(patch, 4)
    with pytest.raises(PreemptedError):
      run_finetune(make_config(folder), tmp_path, EVERY, 1)
  run_finetune(make_config(folder, episodes_per_device=1), tmp_path, EVERY, 4)
  for one, other in zip(read_episodes(tmp_path), undisturbed, strict=True):
    assert one["support"] == other["support"]
    assert abs(one["accuracy"] - other["accuracy"]) < 0.1


def test_a_damaged_snapshot_costs_its_batch_only(
  folder, undisturbed, tmp_path, monkeypatch, caplog
):
  with monkeypatch.context() as patch:
    stop_after(patch, 3)
    with pytest.raises(PreemptedError):
      run_finetune(make_config(folder), tmp_path, EVERY, 1)
  for file in (tmp_path / "snapshots").rglob("*.snapshot"):
    os.truncate(file, file.stat().st_size // 2)
  run_finetune(make_config(folder), tmp_path, EVERY, 1)
  assert "cannot be read" in caplog.text
  assert read_episodes(tmp_path) == undisturbed


def test_a_snapshot_of_another_config_is_refused(folder, tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    stop_after(patch, 3)
    with pytest.raises(PreemptedError):
      run_finetune(make_config(folder), tmp_path, EVERY, 1)
  with pytest.raises(ConfigMismatchError, match=r"lora.rank: 2 there, 3 here"):
    run_finetune(make_config(folder, lora__rank=3), tmp_path, EVERY, 1)


def child(folder, workdir, cache):
  """A run in a process of its own."""
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_compilation_cache_dir", str(cache))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  run_finetune(make_config(folder), workdir, EVERY, 1)


def test_killed_at_twenty_random_moments(folder, undisturbed, tmp_path):
  """Every kill loses at most a segment; the lines end up as if nothing had happened."""
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(["mdtrap_jax.run.loop", "tests.episodes"])  # imported once
  flags = "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"
  moments, kills = random.Random(0), 0
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XLA_FLAGS", flags)
    attempts = 0
    while kills < KILLS:
      workdir = tmp_path / f"run-{attempts}"
      attempts += 1
      while kills < KILLS:
        process = context.Process(target=child, args=(folder, workdir, tmp_path / "cache"))
        process.start()
        process.join(moments.uniform(0.2, 3.0))
        if process.exitcode is not None:
          break
        process.kill()
        process.join()
        kills += 1
      process = context.Process(target=child, args=(folder, workdir, tmp_path / "cache"))
      process.start()
      process.join()
      assert process.exitcode == 0
      for one, other in zip(read_episodes(workdir), undisturbed, strict=True):
        assert one["support"] == other["support"]
        assert one["accuracy"] == other["accuracy"]


def test_two_processes_share_a_run(folder, undisturbed, tmp_path):
  """Each adapts half of the episodes; both end with all lines."""
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    port = probe.getsockname()[1]
  command = [
    sys.executable,
    "main.py",
    "--config=configs/folder.py",
    f"--workdir={tmp_path}",
    f"--coordinator=localhost:{port}",
    "--num_processes=2",
  ]
  config = make_config(folder)
  for field in (
    "model.name",
    "model.random_weights",
    "data.path",
    "data.ways",
    "data.shots",
    "data.queries",
    "data.threads",
    "adapt.steps",
    "objective.svl.weight",
    "optimizer.learning_rate",
    "lora.rank",
    "episodes",
    "episodes_per_device",
  ):
    value = config
    for part in field.split("."):
      value = value[part]
    command.append(f"--config.{field}={value}")
  environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
  cores = ("1", "2")  # of hosts that are not alike
  processes = [
    subprocess.Popen(
      [*command, f"--process_id={i}"],
      cwd=ROOT,
      text=True,
      env=environment | {"JAX_NUM_CPU_DEVICES": cores[i]},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
    )
    for i in range(2)
  ]
  outputs = [process.communicate(timeout=300) for process in processes]
  assert [process.returncode for process in processes] == [0, 0], outputs
  assert "adapted accuracy" in outputs[0][0]
  assert "accuracy" not in outputs[1][0]
  ours = read_episodes(tmp_path)
  assert ours == read_episodes(tmp_path / "process-1")
  assert [line["episode"] for line in ours] == list(range(4))
  for one, other in zip(ours, undisturbed, strict=True):
    assert one["support"] == other["support"]
    assert abs(one["accuracy"] - other["accuracy"]) < 0.1
  assert json.loads((tmp_path / "summary.json").read_text())["episodes"] == 4
