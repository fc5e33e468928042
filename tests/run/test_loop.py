"""Runs that are stopped and go on in the middle, elsewhere, and with a damaged snapshot."""

import gc
import os
import signal

import jax
import numpy as np
import pytest
from PIL import Image

from configs import copa
from mdtrap_jax import config as configs
from mdtrap_jax.config import ConfigMismatchError
from mdtrap_jax.experiments import finetune, heads
from mdtrap_jax.run import loop, predictions
from mdtrap_jax.run.lines import read_episodes
from mdtrap_jax.run.programs import make_programs, task_mesh
from mdtrap_jax.run.progress import Progress
from mdtrap_jax.run.stop import PreemptedError
from tests.episodes import small_config
from tests.run.commands import EVERY
from tests.run.test_events import read, scalars

STEPS = 4


@pytest.fixture(scope="module")
def features(tmp_path_factory):
  """Six classes of noise around their centers."""
  rng, labels = np.random.default_rng(0), np.repeat(np.arange(6), 20)
  rows = rng.standard_normal((6, 16))[labels] + rng.standard_normal((120, 16))
  path = tmp_path_factory.mktemp("features") / "toy.npz"
  np.savez(path, **{"toy/labels": labels, "toy/features": rows.astype(np.float32)})
  return path


def run(features, workdir, devices=1, track=None, **fields):
  """Four tasks of CoPA in batches of two on one device, with a snapshot after every step."""
  config = copa.get_config()
  config.domains, config.seeds, config.episodes = ("toy",), 1, 4
  config.data.features, config.head.steps = str(features), STEPS
  config.update_from_flattened_dict({"data.shots": 2, "episodes_per_device": 2} | fields)
  experiment, _ = heads.experiment(configs.resolve(config))
  experiment.placing["devices"] = jax.devices()[:devices]
  loop.run(experiment, workdir, EVERY, track)
  return read_episodes(workdir)


@pytest.fixture(scope="module")
def undisturbed(features, tmp_path_factory):
  """The lines of a run that nobody stops."""
  return run(features, tmp_path_factory.mktemp("undisturbed"))


def stop_after(monkeypatch, count, number=signal.SIGTERM):
  """Sends this process a signal after so many segments."""
  stepped, done = Progress.stepped, []

  def and_stop(self, *arguments):
    stepped(self, *arguments)
    done.append(0)
    if len(done) == count:
      os.kill(os.getpid(), number)

  monkeypatch.setattr(Progress, "stepped", and_stop)


def stopped(monkeypatch, count, start, *arguments, number=signal.SIGTERM):
  """Starts a run that stops after so many segments."""
  with monkeypatch.context() as patch:
    stop_after(patch, count, number)
    with pytest.raises(PreemptedError, match=number.name):
      start(*arguments)


def record(monkeypatch, owner, name, what):
  """A list to which every call of a function adds `what` of its arguments."""
  calls, function = [], getattr(owner, name)

  def recording(*arguments, **options):
    calls.append(what(*arguments, **options))
    return function(*arguments, **options)

  monkeypatch.setattr(owner, name, recording)
  return calls


@pytest.mark.parametrize(
  ("count", "number", "starts", "work"),
  [(3, signal.SIGTERM, [3, 0], 2.5), (7, signal.SIGINT, [3], 0.5)],
)
def test_a_stopped_run_goes_on_in_the_middle(
  features, undisturbed, tmp_path, monkeypatch, count, number, starts, work
):
  stopped(monkeypatch, count, run, features, tmp_path, number=number)
  assert list((tmp_path / "snapshots").iterdir())
  started = record(monkeypatch, loop, "adapt_batch", lambda *_, start, **options: start)
  count_of = lambda self, tasks, share, note="": tasks * share
  counted = record(monkeypatch, Progress, "stepped", count_of)
  assert run(features, tmp_path) == undisturbed
  assert started == starts
  assert sum(counted) == work  # tasks' worth of steps done now: what the rate is of
  assert not (tmp_path / "snapshots").exists()


def test_it_goes_on_in_other_batches_and_on_other_devices(
  features, undisturbed, tmp_path, monkeypatch
):
  stopped(monkeypatch, 2, run, features, tmp_path)
  started = record(monkeypatch, loop, "adapt_batch", lambda *_, start, **options: start)
  lines = run(features, tmp_path, 4, episodes_per_device=1)
  assert started == [2, 0]
  for one, other in zip(lines, undisturbed, strict=True):
    assert one["support"] == other["support"]
    assert abs(one["accuracy"] - other["accuracy"]) < 0.1


NO_ROOM = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12.27GiB"


def fail_of_two(monkeypatch, name, turn):
  """Has the programs `name` find no room for a batch of two at that call of them; lists calls."""
  calls, make = [], loop.make_programs

  def made(*arguments):
    programs = make(*arguments)
    called = programs.run[False] if name == "run" else getattr(programs, name)

    def call(params, tasks, *rest):
      calls.append(len(jax.tree.leaves(tasks)[0]))
      if calls.count(2) == turn and calls[-1] == 2:
        raise jax.errors.JaxRuntimeError(NO_ROOM)
      return called(params, tasks, *rest)

    return programs._replace(**{name: {False: call, True: call} if name == "run" else call})

  monkeypatch.setattr(loop, "make_programs", made)
  return calls


@pytest.mark.parametrize(
  ("program", "turn", "starts", "moved"),
  [
    ("run", 3, [0, 2, 2, 0, 0], -1.0),  # the first batch, which has taken two of its four steps
    ("prepare", 2, [0, 0, 0], 0.0),  # the second, before its first
    ("evaluate", 2, [0, 0, 3, 3], -1.5),  # the second, after its last
  ],
)
def test_a_batch_that_does_not_fit_after_all_goes_on_in_halves(
  features, undisturbed, tmp_path, monkeypatch, caplog, program, turn, starts, moved
):
  """The memory of a second batch may not be free in one piece, as once on a GPU."""
  calls = fail_of_two(monkeypatch, program, turn)
  started = record(monkeypatch, loop, "adapt_batch", lambda *_, start, **options: start)
  moves = record(monkeypatch, Progress, "_move", lambda self, tasks: tasks)
  lines = run(features, tmp_path, predictions=True)
  assert calls.count(2) == turn
  assert started == starts
  assert min(moves) == moved
  assert sum(moves) == 4
  assert "2 tasks at once did not fit" in caplog.text
  assert not (tmp_path / "snapshots").exists()
  assert [line["episode"] for line in lines] == [0, 1, 2, 3]
  assert len(predictions.gather(tmp_path)) == 4
  for one, other in zip(lines, undisturbed, strict=True):
    assert (one["support"], one["query"]) == (other["support"], other["query"])
    assert abs(one["accuracy"] - other["accuracy"]) < 0.1


def test_images_that_do_not_fit_leave_nothing_of_their_batch(
  features, undisturbed, tmp_path, monkeypatch
):
  """What a thread copies ahead fails when its turn comes; the batch before it is let go."""
  spread, held, before = loop.spread, [], jax.live_arrays()
  others = set(map(id, before))  # of other tests

  def full(tree, mesh):
    rows = len(jax.tree.leaves(tree)[0])
    own = [array for array in jax.live_arrays() if id(array) not in others]
    held.append((rows, {array.shape[0] for array in own if array.ndim}))
    if [rows for rows, _ in held] == [2, 2]:
      raise jax.errors.JaxRuntimeError(NO_ROOM)
    return spread(tree, mesh)

  monkeypatch.setattr(loop, "spread", full)
  gc.disable()
  try:
    lines = run(features, tmp_path)
  finally:
    gc.enable()
  assert [rows for rows, _ in held] == [2, 2, 1, 1]
  assert 2 not in held[2][1]
  assert [line["support"] for line in lines] == [line["support"] for line in undisturbed]


def test_a_damaged_snapshot_costs_its_batch_only(
  features, undisturbed, tmp_path, monkeypatch, caplog
):
  stopped(monkeypatch, 3, run, features, tmp_path)
  for file in (tmp_path / "snapshots").rglob("*.snapshot"):
    os.truncate(file, file.stat().st_size // 2)
  assert run(features, tmp_path) == undisturbed
  assert "cannot be read" in caplog.text


def test_a_snapshot_of_another_config_is_refused(features, tmp_path, monkeypatch):
  stopped(monkeypatch, 3, run, features, tmp_path)
  with pytest.raises(ConfigMismatchError, match=r"data.shots: 2 there, 3 here"):
    run(features, tmp_path, **{"data.shots": 3})


def test_fine_tuning_goes_on_in_a_phase_and_enters_the_next(tmp_path, monkeypatch):
  """Stopped in the steps with a clean pass, which end with RA's window."""
  rng = np.random.default_rng(0)
  for name in ("crow", "gull", "wren"):
    (tmp_path / "images" / name).mkdir(parents=True)
    for i in range(5):
      pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
      Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
  config = small_config(
    data__path=str(tmp_path / "images"), adapt__steps=5, episodes=1, lora__position="1"
  )
  experiment = finetune.experiment(config)
  (group,) = experiment.groups
  ready = group.prepare()  # once, so that all runs share what is compiled
  experiment = experiment._replace(groups=[group._replace(prepare=lambda: ready)])
  experiment.placing["devices"] = jax.devices()[:1]
  stopped(monkeypatch, 2, loop.run, experiment, tmp_path / "run", EVERY)
  started = record(monkeypatch, loop, "adapt_batch", lambda *_, start, **options: start)
  tracked = []
  loop.run(experiment, tmp_path / "run", EVERY)
  loop.run(experiment, tmp_path / "undisturbed", EVERY, tracked.append)
  assert started == [2, 0]
  programs = make_programs(ready.method, task_mesh(jax.devices()[:1]), bool(ready.weights))
  assert [run._cache_size() for run in programs.run.values()] == [1, 1]  # resumed or not
  assert read_episodes(tmp_path / "run") == read_episodes(tmp_path / "undisturbed")
  check_terms(tmp_path / "undisturbed", tracked)
  log = (tmp_path / "run" / "run.log").read_text()
  assert log.count("finetune: data.name=folder") == 2  # stopped, and gone on
  for text in ("ended: stopped by SIGTERM", "crow: 5", "1 at once on 1 devices", "100 %, 1/1 ep"):
    assert text in log


def check_terms(workdir, tracked):
  """SVL is on in the first three of five steps, RA in the second and third."""
  (line,) = read_episodes(workdir)
  on = lambda term: [norm > 0 for norm in line["terms"][term]["norm"]]
  assert on("vlm") == [True] * 5
  assert on("svl") == [True, True, True, False, False]
  assert on("ra") == [False, True, True, False, False]
  assert line["terms"]["ra"]["value"][0] is None
  assert line["terms"]["vlm"]["value"][-1] == pytest.approx(line["losses"]["vlm"], rel=1e-5)
  assert len(set(line["terms"]["vlm"]["value"])) == 5
  values = {s.step: s.values for s in tracked if s.axis == "steps"}
  assert list(values) == [1, 2, 3, 4, 5]
  assert values[2]["svl/norm"] == line["terms"]["svl"]["norm"][1]
  assert "svl/cosine" not in values[5]  # of a term that is off: not a number
  assert [s.values["accuracy/mean"] for s in tracked if s.axis == "episodes"] == [line["accuracy"]]
  written = {event.step: scalars(event) for event in read(workdir / "events" / "steps")}
  assert written[2]["ra/norm"] == pytest.approx(line["terms"]["ra"]["norm"][1])


def test_a_tracker_that_fails_is_a_warning(features, undisturbed, tmp_path, caplog):
  def offline(scalars):
    raise ConnectionError("no network")

  assert run(features, tmp_path, track=offline) == undisturbed
  assert "track: ConnectionError: no network; the run goes on." in caplog.text
