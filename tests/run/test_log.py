"""What a run says: with the time where nobody looks, and in a file; nothing of what is quick."""

import contextlib
import re
import time

import pytest
from absl import logging

from mdtrap_jax import config as configs
from mdtrap_jax.run import log as logs
from mdtrap_jax.run.log import Log, outline
from tests.episodes import small_config

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "


def test_lines_have_the_time_and_a_resumed_run_appends(tmp_path, capsys):
  path = tmp_path / "run.log"
  with Log(path) as log:
    log.say("one\ntwo")
    logging.warning("an image is missing")
  with contextlib.suppress(OSError), Log(path, aloud=False) as log:
    log.say("three")
    raise OSError("the disk is\nfull")
  lines = path.read_text().splitlines()
  assert all(re.match(TIME, line) for line in lines)
  assert [re.sub(TIME, "", line) for line in lines] == [
    "one", "two", "warning: an image is missing", "three", "ended: the disk is full",
  ]  # fmt: skip
  said = capsys.readouterr().err.splitlines()
  assert [re.sub(TIME, "", line) for line in said if re.match(TIME, line)] == ["one", "two"]
  logging.warning("later")  # no longer ours to keep
  assert "later" not in path.read_text()


def test_at_a_terminal_lines_are_as_they_are_and_tear_no_bar(tmp_path, capsys):
  with Log(tmp_path / "run.log") as log:
    log.terminal = True
    log.say("one")
    log.bar = True
    log.say("two")
  assert capsys.readouterr().err == "one\n"
  assert (tmp_path / "run.log").read_text().count("\n") == 2


def test_what_takes_long_is_named_while_it_does(monkeypatch, capsys):
  monkeypatch.setattr(logs, "PATIENCE", 0.05)
  log = Log()
  with log.busy("loading"):
    pass
  assert capsys.readouterr().err == ""
  with log.busy("compiling the step"):
    while "compiling the step …\n" not in (said := capsys.readouterr().err):
      time.sleep(0.01)
  said += capsys.readouterr().err
  assert [re.sub(TIME, "", line) for line in said.splitlines()][1:] == ["compiling the step … 0 s"]


def test_a_log_through_a_link_is_refused(tmp_path):
  (tmp_path / "run.log").symlink_to(tmp_path / "theirs")
  with pytest.raises(OSError, match="is a link"):
    Log(tmp_path / "run.log")


def test_a_config_in_one_line():
  config = configs.resolve(small_config(data__path="photos", model__dtype="float32"))
  assert outline(config) == (
    "finetune: data.name=folder data.ways=3 data.shots=1 data.queries=4 "
    "adapt.steps=10 episodes=5 seed=0 seeds=1 model.name=clip-tiny model.dtype=float32; "
    "loss 1 vlm + 0.1 svl + 3 ra"
  )
