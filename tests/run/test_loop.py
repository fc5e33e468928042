"""Runs that are stopped and go on in the middle, elsewhere, and with a damaged snapshot."""

import os
import signal

import numpy as np
import pytest
from PIL import Image

from mdtrap_jax.config import ConfigMismatchError
from mdtrap_jax.run import loop
from mdtrap_jax.run.lines import read_episodes
from mdtrap_jax.run.progress import Progress
from mdtrap_jax.run.stop import PreemptedError
from tests.episodes import run_finetune, small_config
from tests.run.commands import EVERY


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
