"""What a run says of each query image: kept, whole after a kill, and drawn by `mdtrap report`."""

import io
import json
import os

import numpy as np
import pytest

from mdtrap_jax.data.task import TaskId
from mdtrap_jax.report import runs
from mdtrap_jax.run import predictions
from mdtrap_jax.run.lines import read_episodes
from mdtrap_jax.statistics import accuracy_of
from tests.run.test_loop import features, run, stopped, undisturbed  # noqa: F401 (fixtures)
from tests.test_command_line import say

KEPT = {"predictions": True}


@pytest.fixture(scope="module")
def whole(features, tmp_path_factory):  # noqa: F811
  """The directory of a run that keeps its predictions and that nobody stops."""
  folder = tmp_path_factory.mktemp("whole")
  run(features, folder, **KEPT)
  return folder


def names(folder):
  return {path.name for path in folder.iterdir() if path.name.startswith("predictions")}


def test_they_are_what_the_lines_say(whole, undisturbed):  # noqa: F811
  lines = read_episodes(whole)
  assert lines == undisturbed  # nothing else is different
  assert names(whole) == {"predictions.npz", "predictions.json"}
  records = predictions.gather(whole)
  assert sorted(records) == [line["episode"] for line in lines]
  for line in lines:
    record = records[line["episode"]]
    assert record.images == sum(line["query"], [])
    assert record.class_names == line["class_names"]
    assert record.files == [f"row {i}" for i in record.images]
    for cosines, field in ((record.after, "accuracy"), (record.before, "zero_shot_accuracy")):
      hits = cosines.argmax(1) == record.labels
      assert hits.mean() == pytest.approx(line[field], abs=1e-6)


def test_the_file_as_its_manifest_says(whole):
  about = json.loads((whole / "predictions.json").read_text())
  with np.load(whole / "predictions.npz") as arrays:
    assert set(arrays) == set(about["arrays"])
    line = read_episodes(whole)[1]
    row = arrays["episode"].tolist().index(line["episode"])
    rows = slice(*arrays["first"][row : row + 2])
    (domain,) = about["domains"]
    said = arrays["classes"][row][arrays["after"][rows].argmax(1)]
    assert (said == arrays["label"][rows]).mean() == pytest.approx(line["accuracy"], abs=1e-6)
    shown = [domain["class_names"][label] for label in arrays["label"][rows]]
    assert shown == [n for n, i in zip(line["class_names"], line["query"], strict=True) for _ in i]


@pytest.mark.parametrize("count", [3, 7])
def test_a_stopped_run_keeps_the_same(features, whole, tmp_path, monkeypatch, count):  # noqa: F811
  start = lambda *arguments: run(*arguments, **KEPT)
  stopped(monkeypatch, count, start, features, tmp_path)
  if count == 7:  # a batch is done: a kill cut what came after it short
    assert names(tmp_path) == {"predictions.part"}
    assert len(predictions.gather(tmp_path)) == 2
    with open(tmp_path / "predictions.part", "ab") as file:
      file.write((tmp_path / "predictions.part").read_bytes()[:500])
  start(features, tmp_path)
  for name in ("predictions.npz", "predictions.json"):
    assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


def test_a_kill_between_record_and_line(features, whole, tmp_path, monkeypatch):  # noqa: F811
  from mdtrap_jax.run.directory import WorkDirectory

  with monkeypatch.context() as patch:
    patch.setattr(WorkDirectory, "append", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      run(features, tmp_path, **KEPT)
  assert names(tmp_path) == {"predictions.part"}
  run(features, tmp_path, **KEPT)
  assert (tmp_path / "predictions.npz").read_bytes() == (whole / "predictions.npz").read_bytes()


@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()])
def test_a_full_disk_or_a_signal_in_the_middle_of_a_record_leaves_what_was_there(
  tmp_path, monkeypatch, error
):
  write, log = os.write, predictions.Log(tmp_path)
  records = [
    predictions.Record(n, "", ["a", "b"], [n], ["file"], [0], 1.0, *np.ones((2, 1, 2), np.float32))
    for n in range(2)
  ]

  def fail(descriptor, content):
    if content.startswith(begun):
      return write(descriptor, content[:7])
    raise error

  log.append(records[:1])
  before, begun = (tmp_path / "predictions.part").read_bytes(), predictions._pack(records[1])
  with monkeypatch.context() as patch:
    patch.setattr(os, "write", fail)
    with pytest.raises(type(error)):
      log.append(records[1:])
  assert (tmp_path / "predictions.part").read_bytes() == before
  log.append(records[1:])  # as the same process may
  assert sorted(predictions.gather(tmp_path)) == [0, 1]


def test_more_episodes_later(features, tmp_path):  # noqa: F811
  run(features, tmp_path, **KEPT, episodes=2)
  run(features, tmp_path, **KEPT)
  assert sorted(predictions.gather(tmp_path)) == [0, 1, 2, 3]
  damaged = tmp_path / "predictions.npz"
  damaged.write_bytes(damaged.read_bytes()[:-1])
  with pytest.raises(ValueError, match="does not fit predictions.json"):
    predictions.gather(tmp_path)


def test_it_is_asked_for_at_the_start(features, tmp_path, capsys):  # noqa: F811
  run(features, tmp_path)
  before = (tmp_path / "config.json").read_bytes()
  with pytest.raises(ValueError, match="has 4 episodes and no predictions of them: give another"):
    run(features, tmp_path, **KEPT)
  assert (tmp_path / "config.json").read_bytes() == before
  assert not names(tmp_path)
  capsys.readouterr()  # what the runs said
  code, out, err = say(capsys, "report", str(tmp_path))
  assert (code, out, err.count("\n")) == (1, "", 1)
  assert "kept no predictions; run it again with --config.predictions=true" in err
  assert not (tmp_path / "report").exists()


def test_tables_of_records_come_back():
  """Of unequal ways, two domains, and files that several episodes share."""
  rng = np.random.default_rng(0)
  made = {}
  for episode, (domain, ways) in enumerate((("birds", 3), ("leaves", 2), ("birds", 2))):
    about = {"class_names": [f"class {k}" for k in range(ways)][::-1], "query": [[7, 5]] * ways}
    cosines = rng.standard_normal((2, 2 * ways + 3, 4)).astype(np.float32)  # rows of padding
    task = TaskId(episode, domain, 0, episode)
    made[episode] = predictions.make_record(task, about, *cosines, 10.0, "é{}".format)
  arrays, about = predictions._table(list(made.values()))
  assert [domain["files"] for domain in about["domains"]] == [["é7", "é5"]] * 2
  assert arrays["before"].shape == (14, 3)
  assert np.isneginf(arrays["after"][6:, 2]).all()
  packed = b"".join(map(predictions._pack, made.values()))
  for cut in (len(packed), len(packed) - 1, 10):
    back, good = predictions._parse(io.BytesIO(packed[:cut]))
    assert len(back) == {len(packed): 3, len(packed) - 1: 2, 10: 0}[cut]
    assert packed[:good] == b"".join(map(predictions._pack, (made[n] for n in back)))
  for one, other in zip(back.values(), made.values(), strict=False):
    np.testing.assert_equal(one._asdict(), other._asdict())


def test_the_report_of_a_run(whole, capsys):
  capsys.readouterr()
  code, out, err = say(capsys, "report", str(whole))
  assert (code, err) == (0, "")
  lines = read_episodes(whole)
  (found,) = runs.assess(whole).values()
  assert found.own.accuracy.value == pytest.approx(accuracy_of(lines).mean, abs=1e-6)
  before = found.scores["nearest centroids"].accuracy.value
  assert before == pytest.approx(accuracy_of(lines, "zero_shot_accuracy").mean, abs=1e-6)
  images = {i for line in lines for row in line["query"] for i in row}
  assert found.own.images == len(images)
  assert found.own.predictions == sum(len(row) for line in lines for row in line["query"])
  confusion = np.zeros((6, 6), int)
  for record in predictions.gather(whole).values():
    for label, said in zip(record.labels, record.after.argmax(1), strict=True):
      place = found.names.index
      confusion[place(record.class_names[label]), place(record.class_names[said])] += 1
  np.testing.assert_array_equal(found.own.confusion, confusion)
  page = (whole / "report" / "toy" / "report.html").read_text()
  assert "Every query image of 4 episodes" in page
  assert "guessing gives 20.0 %" in page
  assert f"accuracy {100 * accuracy_of(lines).mean:.1f}" in out
  assert say(capsys, "report", str(whole))[0] == 0  # its own folder is replaced
