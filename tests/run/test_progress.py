"""What a run reports of its pace."""

import types

import pytest

from mdtrap_jax.run import progress
from mdtrap_jax.run.progress import Progress


class Directory(types.SimpleNamespace):
  """As much of a work directory as a bar needs."""

  def folder(self, name):
    (self.path / name).mkdir(exist_ok=True)
    return self.path / name


@pytest.fixture
def clock(monkeypatch):
  """Seconds, which pass when a test says so."""
  now = [100.0]
  monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: now[0], time=float))
  return now


def test_the_rate_counts_what_was_done_here(tmp_path, clock):
  """Not what a snapshot held, nor the seconds between groups, in which a model may load."""
  directories = {"": Directory(path=tmp_path, finished={})}
  with Progress(directories, total=8, done=2) as shown:
    assert shown.rate is None
    with shown.group([""]):
      shown.skipped(2, 0.9)
      assert shown.rate is None
      clock[0] += 10
      shown.stepped(2, 0.1)
      assert shown.rate == pytest.approx(0.02)
    clock[0] += 1000
    with shown.group([""]):
      clock[0] += 30
      shown.stepped(4, 0.7)
      assert shown.rate == pytest.approx(3 / 40)
    assert shown.rate == pytest.approx(3 / 40)


def test_the_log_gets_a_line_now_and_then_and_the_last_word(tmp_path, clock, capsys):
  directories = {"": Directory(path=tmp_path, finished={})}
  with Progress(directories, total=10, done=0) as shown, shown.group([""]):
    for _ in range(7):  # of ten seconds each
      clock[0] += 10
      shown.stepped(1, 1.0)
  said = capsys.readouterr().err
  assert "\r" not in said
  shares = [line.split()[2:4] + line.split()[-2:] for line in said.splitlines()]
  assert shares == [
    ["30", "%,", "01:10", "left"], ["60", "%,", "00:40", "left"], ["70", "%,", "00:30", "left"],
  ]  # fmt: skip
