"""A run whose files and data are in a bucket, in processes that die: nothing is lost or twice."""

import random
import signal
import time

import numpy as np
import pytest

from mdtrap_jax import __main__, buckets
from mdtrap_jax.run.lines import read_episodes
from tests.run import commands
from tests.run.commands import Signal
from tests.run.test_processes import LOST, shared

KILLS = 3  # of a run in two processes; the docs tell of twenty
EPISODES = 8


@pytest.fixture(scope="module")
def heads(google, tmp_path_factory):
  """The command line of a small run on features in the bucket, and its lines when undisturbed."""
  folder = tmp_path_factory.mktemp("heads")
  labels, rng = np.repeat(np.arange(6), 20), np.random.default_rng(0)
  rows = rng.standard_normal((120, 16), np.float32)
  np.savez(folder / "toy.npz", **{"one/features": rows, "one/labels": labels})
  url = google.url("toy.npz")
  buckets.Bucket(url).upload(folder / "toy.npz", "")
  fields = {
    "config": "copa",
    "config.domains": ("one",),
    "config.seeds": 1,
    "config.episodes": EPISODES,
    "config.data.features": url,
    "config.data.shots": 2,
    "config.data.queries": 4,
    "config.head.steps": 4,
    "config.episodes_per_device": 1,
  }
  arguments = [f"--{name}={value}" for name, value in fields.items()]
  alone = folder / "alone"
  ended = start(google, arguments, alone, f"{alone}-log").end()
  assert ended.code == 0, ended.error
  return arguments, read_episodes(alone)


def start(store, arguments, workdir, log, send=None):
  arguments = [*arguments, f"--workdir={workdir}"]
  return commands.start(arguments, log, send, store.environment)


def pair(store, arguments, workdir, logs, sends=(None, None), meanwhile=lambda: None):
  started = [
    start(store, [*arguments, *where], workdir, f"{logs}{index}", send)
    for index, (where, send) in enumerate(zip(shared(), sends, strict=True))
  ]
  meanwhile()
  return [command.end() for command in started]


def names(url, part):
  return [name for name in buckets.Bucket(url).find() if part in name]


def test_other_processes_take_up_what_one_had_begun(google, heads, tmp_path, capsys):
  arguments, wanted = heads
  url = google.url()

  def until_the_first_has_done_its_share():
    while len([name for name in names(url, ".parts/") if name.startswith("episodes")]) < 4:
      time.sleep(0.1)
    (tmp_path / "go").touch()

  sends = None, Signal(signal.SIGKILL, 7, wait=(tmp_path / "go",))
  ours, theirs = pair(
    google, arguments, url, tmp_path / "a", sends, until_the_first_has_done_its_share
  )
  assert (ours.code, theirs.code) == (1, -signal.SIGKILL)
  assert ours.error == LOST.format(1, "process-1 of ")
  (left,) = names(url, "process-1/snapshots/")[1:]
  assert left.endswith(".snapshot")
  assert len(read_episodes(f"{url}/process-1")) == 1
  # One process goes on in the middle of what the lost one had begun, without its disk.
  again = start(google, arguments, url, tmp_path / "b", Signal(signal.SIGTERM, 9)).end()
  assert (again.code, again.error) == (0, "stopped by SIGTERM; the same command goes on from here.")
  assert again.starts == [2, 0, 0]
  ours, theirs = pair(google, arguments, url, tmp_path / "c")
  assert (ours.code, theirs.code) == (0, 0)
  assert f"written to {url}" in ours.out
  assert read_episodes(url) == read_episodes(f"{url}/process-1") == wanted
  assert names(url, ".parts/") == names(url, ".snapshot") == names(url, ".lease") == []
  assert __main__.main(["compare", url]) == 0
  assert capsys.readouterr().out.splitlines()[1].startswith("run        one         8")


def test_two_processes_killed_at_random_end_with_the_same_lines(google, heads, tmp_path):
  arguments, wanted = heads
  url, chance = google.url(), random.Random(3)
  for kill in range(KILLS):
    send = Signal(signal.SIGKILL, chance.randrange(1, 5), chance.uniform(0.001, 0.02))
    sends = (send, None) if chance.random() < 0.5 else (None, send)
    codes = {ended.code for ended in pair(google, arguments, url, tmp_path / f"{kill}", sends)}
    assert codes == {1, -signal.SIGKILL}
  assert [ended.code for ended in pair(google, arguments, url, tmp_path / "end")] == [0, 0]
  assert read_episodes(url) == read_episodes(f"{url}/process-1") == wanted


def test_what_cannot_be_written_is_said_before_anything_is_loaded(google, heads, tmp_path):
  arguments, _ = heads
  ended = start(google, arguments, "gs://absent/run", tmp_path / "log").end()
  assert (ended.code, ended.out) == (1, "")
  assert ended.error.startswith("error: gs://absent/run: no such bucket, folder or object")
