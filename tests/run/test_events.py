"""Numbers of a run over episodes and over steps."""

import re
import struct
import sys
import types

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

import mdtrap_jax
from mdtrap_jax.run.events import EventFile, Scalars, term_means
from tests.paths import ROOT


def read(folder):
  """The events of the one file in a folder, without the one that names its version."""
  (path,) = [path for path in folder.iterdir() if path.is_file() and path.name != ".mdtrap_jax"]
  content, events = path.read_bytes(), []
  while content:  # TFRecord: length and its checksum, bytes and theirs
    (size,) = struct.unpack("<Q", content[:8])
    events.append(Event.FromString(content[12 : 12 + size]))
    content = content[size + 16 :]
  return events[1:]


def scalars(event):
  return {value.tag: value.simple_value for value in event.summary.value}


def test_a_mean_over_more_episodes_replaces_the_one_before(tmp_path):
  file = EventFile(tmp_path)
  file.write({"a": 1.0, "b": float("nan")}, 5)
  file.restart()
  file.write({"a": 2.0}, 5)
  file.close()
  first, restart, second = read(tmp_path)
  assert (first.step, scalars(first)) == (5, {"a": 1.0})
  assert (restart.step, restart.session_log.status) == (0, SessionLog.START)
  assert (second.step, scalars(second)) == (5, {"a": 2.0})


def line(values, norms, status="ok"):
  return {
    "status": status,
    "accuracy_at": {"2": 0.5, "4": 0.5},
    "terms": {"svl": {"value": values, "norm": norms}},
  }


def test_terms_are_averaged_over_the_episodes_that_did_not_fail():
  lines = [line([1.0, None], [2.0, 0.0]), line([2.0, None], [4.0, 0.0])]
  lines += [line([9.0, 9.0], [9.0, 9.0], "non-finite"), {"status": "ok"}]
  means = term_means(lines)
  assert means[2] == {"svl/value": 1.5, "svl/norm": 3.0}
  assert means[4] == pytest.approx({"svl/value": float("nan"), "svl/norm": 0.0}, nan_ok=True)


def test_the_tracker_of_the_page(monkeypatch):
  """With stand-ins for Weights & Biases and for the run."""
  logged, axes = [], {}
  wandb = types.SimpleNamespace(
    init=lambda project: None,
    define_metric=lambda tag, step_metric=None: axes.update({tag: step_metric}),
    log=logged.append,
  )

  def run_experiment(config, workdir, track):
    assert (config.data.name, workdir) == ("isic", "runs/isic")
    track(Scalars("", "episodes", 16, {"accuracy/mean": 0.5}))
    track(Scalars("svl", "steps", 50, {"svl/norm": 0.25}))

  monkeypatch.setitem(sys.modules, "wandb", wandb)
  monkeypatch.setattr(mdtrap_jax, "run_experiment", run_experiment)
  page = (ROOT / "docs" / "runs.md").read_text(encoding="utf-8")
  (code,) = re.findall(r"^```python\n(import wandb\n.*?)^```", page, re.DOTALL | re.MULTILINE)
  exec(compile(code, "docs/runs.md", "exec"), {})
  assert logged == [
    {"run/accuracy/mean": 0.5, "episodes": 16}, {"svl/svl/norm": 0.25, "steps": 50},
  ]  # fmt: skip
  assert axes == {
    "episodes": None, "steps": None, "run/accuracy/mean": "episodes", "svl/svl/norm": "steps",
  }  # fmt: skip
