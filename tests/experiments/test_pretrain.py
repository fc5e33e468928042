"""Runs of pretraining: what they leave, stopped in the middle, in folders of somebody else's."""

import json
import os
import signal

import jax
import numpy as np
import pytest

from mdtrap_jax import checkpoints, experiments
from mdtrap_jax import config as configs
from mdtrap_jax.experiments import pretrain
from mdtrap_jax.methods.method import AdaptState
from mdtrap_jax.run import claim, loop
from mdtrap_jax.run.lines import read_episodes
from mdtrap_jax.run.stop import PreemptedError
from mdtrap_jax.world import zero_shot
from mdtrap_jax.world.pretrain import Metrics
from tests import decoys
from tests.colors import STEPS, colors, make_method, small_config

EVERY = loop.Pace(segment=0.0)  # a segment is one step
ORIGINAL = pretrain.experiment


def small_experiment(config, workdir, before=lambda step: None):
  """On plain colors; `before` is called with the step after each segment."""
  group = pretrain.make_group(config, make_method(), colors(), workdir)

  def prepare():
    ready = group.prepare()

    def watch(step, *arguments):
      before(step)
      return ready.watch(step, *arguments)

    return ready._replace(watch=watch)

  experiment = ORIGINAL(config, workdir)
  return experiment._replace(groups=[group._replace(prepare=prepare)])


def train(workdir, before=lambda step: None, pace=loop.PACE, **changes):
  return loop.run(small_experiment(small_config(**changes), workdir, before), workdir, pace)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("trained") / "whole"
  train(workdir)
  return workdir


def metrics_of(workdir):
  return json.loads((workdir / "metrics.json").read_text())


def test_the_loss_falls_and_what_the_files_say(trained):
  metrics = metrics_of(trained)
  loss, accuracy = np.array(metrics["loss"]), np.array(metrics["accuracy"])
  assert loss.shape == accuracy.shape == (STEPS,)
  assert loss[-4:].mean() < loss[:4].mean() - 0.4
  assert accuracy[-4:].mean() > accuracy[:4].mean()
  assert list(metrics["zero_shot"]) == ["0", "10", "20", "24"]
  (line,) = read_episodes(trained)
  assert (line["status"], line["episode"], line["seed"]) == ("ok", 0, 0)
  assert line["accuracy"] == line["accuracy_at"]["24"] == metrics["zero_shot"]["24"]
  assert line["zero_shot_accuracy"] == metrics["zero_shot"]["0"]
  assert not (trained / "snapshots").exists()


def test_what_is_exported_is_the_model_that_was_evaluated(trained):
  model, params = checkpoints.load(trained / "model")
  method = make_method()
  assert (model.image, model.text) == (method.model.image, method.model.text)
  assert (model.image_mean, model.image_std) == (method.model.image_mean, method.model.image_std)
  accuracy = zero_shot.evaluate(model, params, colors(), episodes=20, queries=3)
  np.testing.assert_allclose(accuracy.mean, metrics_of(trained)["zero_shot"]["24"], atol=0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_goes_on_in_the_middle(trained, tmp_path, number):
  def stop(step):
    if step == 13:
      os.kill(os.getpid(), number)

  with pytest.raises(PreemptedError, match=number.name):
    train(tmp_path, stop, EVERY)
  assert not (tmp_path / "metrics.json").exists()
  assert not (tmp_path / "model" / "config.json").exists()
  (snapshot,) = (tmp_path / "snapshots").glob("*.snapshot")
  assert read_steps(tmp_path) == []
  steps = []
  train(tmp_path, steps.append)
  assert 13 < steps[0] < steps[-1] == STEPS
  assert metrics_of(tmp_path) == metrics_of(trained)
  jax.tree.map(
    np.testing.assert_array_equal,
    *(checkpoints.load(workdir / "model")[1] for workdir in (tmp_path, trained)),
  )
  assert not snapshot.exists()


def read_steps(workdir):
  path = workdir / "episodes.jsonl"
  return path.read_text().splitlines() if path.exists() else []


def test_a_finished_run_says_its_table_again(trained, monkeypatch):
  monkeypatch.setattr(pretrain, "experiment", small_experiment)
  model = decoys.state(trained / "model")
  table = experiments.run(small_config(), trained)
  assert table.splitlines()[0].split() == ["steps", "24"]
  assert f"{100 * metrics_of(trained)['zero_shot']['24']:.1f}" in table.splitlines()[-1]
  assert decoys.state(trained / "model") == model
  (trained / "metrics.json").rename(trained / "elsewhere")
  try:
    with pytest.raises(FileNotFoundError, match="metrics.json is gone.*another --workdir"):
      experiments.run(small_config(), trained)
  finally:
    (trained / "elsewhere").rename(trained / "metrics.json")


def test_another_config_is_refused(trained):
  with pytest.raises(configs.ConfigMismatchError, match="seed: 0 there, 1 here"):
    train(trained, seed=1)


def test_nothing_of_somebody_elses_is_touched(tmp_path):
  theirs = decoys.plant(tmp_path / "theirs")
  before = decoys.state(theirs)
  with pytest.raises(ValueError, match="give a new or empty --workdir|older version"):
    train(theirs)
  assert decoys.state(theirs) == before
  ours = claim.claim_root(tmp_path / "ours")  # ours, with a folder of theirs where the model goes
  before = decoys.state(decoys.plant(ours / "model"))
  steps = []
  with pytest.raises(ValueError, match="model .*another --workdir|older version"):
    train(ours, steps.append)
  assert decoys.state(ours / "model") == before
  assert not steps


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
  workdir = claim.claim_root(tmp_path / "run")
  ready = pretrain.make_group(small_config(), make_method(), colors(), workdir).prepare()
  loss = np.full((1, STEPS), 2.0)
  loss[0, 7:] = np.nan
  state = AdaptState({}, {"curve": Metrics(loss, loss)}, np.array([1]))
  with pytest.raises(ValueError, match=r"loss is nan at step 8: lower --config.learning_rate=0.01"):
    ready.watch(10, state, {})


def test_the_held_out_images_are_the_worlds(tmp_path):
  """What a real run evaluates on; nothing is rendered here."""
  experiment = pretrain.experiment(small_config(), tmp_path / "run")
  ((name, domain),) = experiment.sources[""]["domains"].items()
  assert (name, len(domain["class_names"])) == ("source", 240)
  assert {count for count, _ in domain["content"].values()} == {4}
  assert [task.seed for task in experiment.groups[0].tasks] == [0]
  assert not (tmp_path / "run").exists()
