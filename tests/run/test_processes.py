"""Runs of every kind in real processes, which share them, are stopped, killed and go on."""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from mdtrap_jax.run import meeting
from mdtrap_jax.run.lines import read_episodes, read_object
from tests.flags import flags_of_commands
from tests.paths import ROOT
from tests.run import commands
from tests.run.commands import Signal

KILLS = {"heads": 18, "variants": 1, "study": 1}  # heads start soonest
SEGMENTS = {"heads": 32, "variants": 20, "study": 30}  # of a whole run, one for each step
LOST = (
  "error: process {} was lost (it or its machine was killed); what it finished is in {}its work "
  "directory: run the same command again to go on."
)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
  """The command line of a small run of each kind, without where."""
  labels, rng = np.repeat(np.arange(6), 20), np.random.default_rng(0)
  features = tmp_path_factory.mktemp("features") / "toy.npz"
  rows = {
    f"{domain}/features": rng.standard_normal((120, 16), np.float32) for domain in ("one", "two")
  }
  np.savez(features, **rows, **{name.replace("features", "labels"): labels for name in rows})
  heads = {
    "config": "copa",
    "config.domains": ("one", "two"),
    "config.seeds": 1,
    "config.episodes": 4,
    "config.data.features": features,
    "config.data.shots": 2,
    "config.head.steps": 4,
  }
  tiny = {
    "config.model.name": "clip-tiny",
    "config.model.random_weights": True,
    "config.data.ways": 3,
    "config.data.threads": 1,
    "config.adapt.steps": 5,
    "config.adapt.views": 2,
    "config.objective.ra.weight": 0.0,  # one program less
    "config.lora.projections": ("q",),
    "config.lora.position": 1,  # the upper block of two
  }
  variants = tiny | {"config": "demo", "config.data.name": "digits", "config.episodes": 4}
  study = tiny | {
    "config": "study",
    "config.study.domains": ("digits",),
    "config.study.shots": (1,),
    "config.episodes": 2,
  }
  every = {"config.episodes_per_device": 1, "config.data.queries": 4}
  return {
    kind: [f"--{name}={value}" for name, value in (fields | every).items()]
    for kind, fields in {"heads": heads, "variants": variants, "study": study}.items()
  }


@pytest.fixture(scope="module")
def undisturbed(arguments, tmp_path_factory):
  """For each kind, the directory of a run that nobody stops, made when first asked for."""
  made = {}

  def of(kind):
    if kind not in made:
      made[kind] = tmp_path_factory.mktemp(kind)
      ended = alone(arguments[kind], made[kind])
      assert ended.code == 0, ended.error
    return made[kind]

  return of


def alone(arguments, workdir, send=None):
  """How a run in one process ended."""
  return commands.start([*arguments, f"--workdir={workdir}"], f"{workdir}-log", send).end()


def shared():
  """What tells two processes where they meet."""
  with meeting.listener("localhost", 0) as door:
    port = door.getsockname()[1]
  common = [f"--coordinator=localhost:{port}", "--num_processes=2"]
  return [[*common, f"--process_id={index}"] for index in range(2)]


def pair(arguments, workdirs, sends=(None, None), fields=((), ())):
  """How a run in two processes ended in each of them; one place is a disk that they share."""
  if len(workdirs) == 1:
    workdirs = workdirs * 2
  started = [
    commands.start([*arguments, *own, *where, f"--workdir={workdir}"], log_of(workdir, i), send)
    for i, (own, where, workdir, send) in enumerate(
      zip(fields, shared(), workdirs, sends, strict=True)
    )
  ]
  return [command.end() for command in started]


def log_of(workdir, index):
  return f"{workdir}-log{index}"


def lines_of(path):
  """The episodes of every run below a directory but those of other processes, by its name."""
  found = {}
  for file in sorted(path.rglob("episodes.jsonl")):
    name = file.parent.relative_to(path)
    if not str(name).startswith("process-"):
      found[str(name)] = read_episodes(file.parent)
  return found


def files_of(path):
  """Names of all files but TensorBoard's; the log is each process's own."""
  return {
    str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()
    if "events" not in str(file)
  }  # fmt: skip


def kill_at_random(kind, count, arguments, workdir, wanted):
  """Kills a run so often that goes on each time; one that ends all the same is begun anew."""
  moments = random.Random(kind)
  directories = (workdir.with_name(f"{workdir.name}{i or ''}") for i in itertools.count())
  directory = next(directories)
  while count:
    send = Signal(
      signal.SIGKILL, moments.randrange(1, SEGMENTS[kind] // 3), moments.uniform(0.001, 0.02)
    )
    code = alone(arguments, directory, send).code
    assert code in (0, -signal.SIGKILL)
    count -= code != 0
    if code == 0:
      assert lines_of(directory) == wanted
      directory = next(directories)
  return directory


def test_heads_killed_at_random_end_with_the_same_lines(arguments, undisturbed, tmp_path):
  wanted = lines_of(undisturbed("heads"))
  workdir = kill_at_random("heads", KILLS["heads"], arguments["heads"], tmp_path / "run", wanted)
  assert alone(arguments["heads"], workdir).code == 0
  assert lines_of(workdir) == wanted
  assert sum(KILLS.values()) == 20


def test_heads_go_on_with_one_process_and_with_two_again(arguments, undisturbed, tmp_path):
  workdir, heads = tmp_path / "run", arguments["heads"]
  kill = Signal(signal.SIGKILL, 6)
  ours, theirs = pair(heads, [workdir], (None, kill))
  assert (ours.code, theirs.code) == (1, -signal.SIGKILL)
  assert ours.error == LOST.format(1, "process-1 of ")
  assert len(read_episodes(workdir / "process-1")) == 1
  # One process takes over what both have finished, until it is stopped too.
  stopped = alone(heads, workdir, Signal(signal.SIGTERM, 6))
  assert (stopped.code, stopped.error) == (
    0, "stopped by SIGTERM; the same command goes on from here."
  )  # fmt: skip
  assert list((workdir / "snapshots").glob("*.snapshot"))
  diagnosis = ["--config.diagnosis.tasks=1", "--config.diagnosis.distances=(-1.0, 1.0, 3)"]
  ours, theirs = pair([*heads, *diagnosis], [workdir])
  assert (ours.code, theirs.code) == (0, 0)
  assert len(list((workdir / "figures").glob("*.png"))) == 2
  assert not (workdir / "process-1" / "figures").exists()
  assert lines_of(workdir) == lines_of(workdir / "process-1") == lines_of(undisturbed("heads"))
  assert ("| one " in ours.out, theirs.out) == (True, "")
  assert not list(workdir.rglob("*.snapshot"))
  rate = read_object(workdir / "summary.json")["episodes_per_second"]
  assert rate > 0
  again = alone(heads, workdir)
  assert (again.code, again.starts) == (0, [])
  assert read_object(workdir / "summary.json")["episodes_per_second"] == rate


def test_sigterm_to_all_saves_where_each_of_them_is(arguments, undisturbed, tmp_path):
  workdir, heads = tmp_path / "run", arguments["heads"]
  there = tuple(commands.there(log_of(workdir, index)) for index in range(2))
  sends = [Signal(signal.SIGTERM, after, wait=there) for after in (6, 3)]
  for ended in pair(heads, [workdir], sends):
    assert ended.code == 0
    assert "; the same command goes on from here." in ended.error
  # Each goes on with its own, though what the first has finished would shift their turns.
  ours, theirs = pair(heads, [workdir])
  assert (ours.starts[0], theirs.starts[0]) == (2, 3)
  assert (ours.starts[1:], theirs.starts[1:]) == ([0, 0, 0], [0, 0])
  assert lines_of(workdir) == lines_of(workdir / "process-1") == lines_of(undisturbed("heads"))


def test_another_config_in_one_process_is_refused_in_both(arguments, tmp_path):
  rates = [[f"--config.head.learning_rate={rate}"] for rate in (0.1, 0.2)]
  line = (
    "error: process 1 has config.head.learning_rate=0.2 where process 0 has 0.1: start all with "
    "the same command, data and weights."
  )
  for ended in pair(arguments["heads"], [tmp_path / "run"], fields=rates):
    assert (ended.code, ended.out, ended.error) == (1, "", line)
  assert not (tmp_path / "run").exists()


def test_another_run_in_the_place_of_process_1_is_refused(arguments, undisturbed, tmp_path):
  workdir = tmp_path / "run"
  for copy in (workdir, workdir / "process-1"):
    shutil.copytree(undisturbed("heads"), copy)
  path = workdir / "process-1" / "config.json"
  config = json.loads(path.read_text())
  config["head"]["learning_rate"] = 0.25
  path.write_text(json.dumps(config))
  before = (workdir / "episodes.jsonl").read_bytes()
  ended = alone(arguments["heads"], workdir)
  assert (ended.code, ended.starts) == (1, [])
  assert f"{workdir / 'process-1'} holds a run of another config" in ended.error
  assert "learning_rate: 0.25 there" in ended.error
  assert (workdir / "episodes.jsonl").read_bytes() == before


def test_variants_on_hosts_without_a_shared_disk(arguments, undisturbed, tmp_path):
  here, there = tmp_path / "here", tmp_path / "there"
  variants, wanted = arguments["variants"], lines_of(undisturbed("variants"))
  ours, theirs = pair(variants, [here, there], (Signal(signal.SIGKILL, 7), None))
  assert (ours.code, theirs.code) == (-signal.SIGKILL, 1)
  assert theirs.error == LOST.format(0, "")
  assert not (there / "baseline").exists()
  here = kill_at_random("variants", KILLS["variants"], variants, here, wanted)
  # The rest as a person does it, on hosts that are not alike.
  processes = [
    subprocess.Popen(
      [sys.executable, "main.py", *variants, *where, f"--workdir={workdir}"],
      cwd=ROOT,
      env=os.environ | {"XLA_FLAGS": flags_of_commands(devices=1)},
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
    )
    for where, workdir in zip(shared(), (here, there), strict=True)
  ]
  outputs = [process.communicate(timeout=240) for process in processes]
  assert [process.returncode for process in processes] == [0, 0], outputs
  assert outputs[0][0].split()[:2] == ["run", "episodes"]
  assert outputs[1][0] == ""
  assert lines_of(here) == lines_of(there / "process-1") == wanted
  own = {f"{name}/summary.json" for name in ("baseline", "svl_ra")}
  assert own <= files_of(here)
  assert own <= files_of(there / "process-1")
  assert {name.split("/")[0] for name in files_of(there)} == {".mdtrap_jax", "process-1"}
  assert {name.split("/")[0] for name in files_of(here)} == {
    ".mdtrap_jax", "run.log", "baseline", "svl_ra",
  }  # fmt: skip


def test_a_study_stopped_in_one_process_and_killed(arguments, undisturbed, tmp_path):
  workdir, study, wanted = tmp_path / "run", arguments["study"], lines_of(undisturbed("study"))
  ours, theirs = pair(study, [workdir], (None, Signal(signal.SIGTERM, 3)))
  assert (ours.code, theirs.code) == (0, 0)
  assert ours.error.startswith("stopped by SIGTERM at process 1; ")
  assert theirs.error.startswith("stopped by SIGTERM; the same command")
  assert list((workdir / "process-1" / "snapshots").glob("*.snapshot"))
  workdir = kill_at_random("study", KILLS["study"], study, workdir, wanted)
  ours, theirs = pair(study, [workdir])
  assert (ours.code, theirs.code) == (0, 0)
  assert (ours.out.startswith("| target"), theirs.out) == (True, "")
  assert lines_of(workdir) == lines_of(workdir / "process-1") == wanted
  assert len(wanted) == 7
  tables = {"study.csv", "study.png"}
  assert tables <= files_of(workdir)
  assert not tables & files_of(workdir / "process-1")
  assert {f"{name}/summary.json" for name in wanted} <= files_of(workdir / "process-1")
