"""The files of a run in a bucket: what is kept when, and what is read from it."""

import contextlib
import json
import shutil

import pytest

from mdtrap_jax import __main__, buckets
from mdtrap_jax import config as settings
from mdtrap_jax.report import comparison
from mdtrap_jax.run import claim, lease
from mdtrap_jax.run import store as stores
from mdtrap_jax.run.directory import WorkDirectory
from mdtrap_jax.run.lines import read_episodes
from mdtrap_jax.run.stop import PreemptedError
from tests.episodes import small_config
from tests.run.test_directory import line
from tests.stores import first

CONFIG = settings.resolve(small_config())


pytestmark = pytest.mark.usefixtures("quick")


def begin(store, variant="", process=0):
  return WorkDirectory(store.root, CONFIG, variant=variant, process=process, push=store.push)


def stopped():
  return contextlib.suppress(PreemptedError)


def names(url):
  return list(buckets.Bucket(url).find())


def numbers(url):
  return [row["episode"] for row in read_episodes(url)]


def test_a_directory_of_this_machine_stays_as_it_is(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  with stores.opened("~/run") as store, begin(store) as directory:
    directory.append([line(0)])
  assert store.root == tmp_path / "run"
  assert {path.name for path in store.root.iterdir()} == {
    claim.MARKER, ".lock", "config.json", "episodes.jsonl",
  }  # fmt: skip


def test_lines_are_parts_until_the_run_ends(store):
  url = store.url()
  with stopped(), stores.opened(url) as kept, begin(kept) as directory:
    directory.append([line(0), line(1)])
    parts = [name for name in names(url) if "parts" in name]
    directory.append([line(2)])
    (directory.folder("events") / "events.1").write_bytes(b"some")
    raise PreemptedError("SIGTERM")
  assert len(parts) == 1
  there = names(url)
  assert [name for name in there if "parts" not in name] == [
    claim.MARKER, "config.json", f"events/{claim.MARKER}", "events/events.1",
  ]  # fmt: skip
  assert numbers(url) == [0, 1, 2]
  assert not kept.root.exists()
  with stores.opened(url) as kept, begin(kept) as directory:
    assert sorted(directory.finished) == [0, 1, 2]
    assert (kept.root / "events" / "events.1").stat().st_size == 0  # by its name alone
    directory.append([line(2), line(3)])
    directory.write_json("summary.json", {"episodes": 4})
  assert [name for name in names(url) if not name.startswith("events")] == [
    claim.MARKER, "config.json", "episodes.jsonl", "summary.json",
  ]  # fmt: skip
  assert numbers(url) == [0, 1, 2, 3]
  assert buckets.Bucket(url).read("events/events.1") == b"some"
  (run,) = comparison.find_runs([url.removesuffix("/run")])
  assert (run.name, len(read_episodes(run))) == ("run", 4)


@pytest.mark.parametrize("fault", ["503", "lie", "cut", "down"])
def test_nothing_is_written_twice_or_lost(store, fault):
  url = store.url()
  with stores.opened(url) as kept, begin(kept) as directory:
    with store.failing(first(3, fault)):
      directory.append([line(0)])
    with store.failing(first(3, fault)):
      directory.append([line(1)])
    assert len([name for name in names(url) if "parts" in name]) == 2
  assert numbers(url) == [0, 1]


def test_lines_come_after_what_they_stand_for(amazon):
  with stores.opened(amazon.url()) as kept, begin(kept) as directory:
    (directory.folder("model") / "weights").write_bytes(b"of the episode")
    (directory.path / "zebra").write_bytes(b"too")
    directory.append([line(0)])
    written = [
      request.partition("/run/")[2] for request in amazon.proxy.requests if "PUT" in request
    ]
  assert written[-6:-1] == [
    claim.MARKER, f"model/{claim.MARKER}", "config.json", "model/weights", "zebra",
  ]  # fmt: skip
  assert written[-1].startswith("episodes.parts/000000000000-")


def test_an_episode_that_two_runs_did_counts_once():
  one = b'{"episode": 1, "accuracy": 0.5}\n{"episode": 2}\n'
  two = b'{"episode": 1, "accuracy": 0.25}\n{"episode": 3}\n{"damaged\n'
  assert stores.joined([one, two]) == one + b'{"episode": 3}\n{"damaged\n'


def test_variants_and_processes_and_what_compacts_them(store, capsys):
  url = store.url()
  with stopped(), stores.opened(url, 0, 2) as one:
    with stores.opened(url, 1, 2) as two, begin(two, "a", 1) as other:
      other.append([line(1)])
    with begin(one, "a") as a, begin(one, "b") as b:
      a.append([line(0)])
      b.append([line(0)])
    raise PreemptedError("SIGTERM")
  # The second ended as it should, and so its lines are one object.
  assert {name.partition("0")[0] for name in names(url) if "episodes" in name} == {
    "a/episodes.parts/", "b/episodes.parts/", "process-1/a/episodes.jsonl",
  }  # fmt: skip
  assert __main__.main(["compact", url]) == 0
  assert capsys.readouterr().out == f"2 parts of {url} became whole.\n"
  assert [name for name in names(url) if "episodes" in name] == [
    "a/episodes.jsonl", "b/episodes.jsonl", "process-1/a/episodes.jsonl",
  ]  # fmt: skip
  with stores.opened(url) as kept:  # one process alone sees what all have finished
    assert [row["episode"] for row in read_episodes(kept.root / "process-1" / "a")] == [1]
  assert __main__.main(["compact", "runs/x"]) == 1
  assert "runs/x: runs on a disk have no parts" in capsys.readouterr().err


def test_predictions_come_back_and_come_before_the_lines(store, monkeypatch):
  url, uploaded = store.url(), []
  upload, create = buckets.Bucket.upload, buckets.Bucket.create
  note = lambda name: uploaded.append(name.rpartition("/")[2])
  monkeypatch.setattr(buckets.Bucket, "upload", lambda *a: note(a[2]) or upload(*a))
  monkeypatch.setattr(buckets.Bucket, "create", lambda *a: note(a[1]) or create(*a))
  with stopped(), stores.opened(url) as kept, begin(kept) as directory:
    (directory.path / "predictions.part").write_bytes(b"records")
    directory.append([line(0)])
    raise PreemptedError("SIGTERM")
  (part,) = [name for name in uploaded if name.endswith(".jsonl")]
  assert uploaded.index("predictions.part") < uploaded.index(part)
  with stores.opened(url) as kept:
    assert (kept.root / "predictions.part").read_bytes() == b"records"


def test_snapshots_of_a_process_that_is_no_more(google):
  url = google.url()
  bucket = buckets.Bucket(url)
  for process in ("", "process-1/", "process-2/", "process-3/"):
    for name in (claim.MARKER, f"snapshots/{claim.MARKER}", "snapshots/0.snapshot"):
      content = b"state" if name.endswith("0.snapshot") else f"{claim._HEAD}1\n".encode()
      bucket.write(process + name, content)
  with stores.opened(url, 1, 2) as kept:
    state = lambda process: (kept.root / process / "snapshots" / "0.snapshot").read_bytes()
    assert [state(p) for p in (".", "process-1", "process-2", "process-3")] == [
      b"", b"state", b"", b"state",
    ]  # fmt: skip
    (kept.root / "process-3" / "snapshots" / "0.snapshot").unlink()
  assert [name for name in names(url) if name.endswith("0.snapshot")] == [
    "process-1/snapshots/0.snapshot", "process-2/snapshots/0.snapshot", "snapshots/0.snapshot",
  ]  # fmt: skip


def test_what_is_not_this_runs_is_refused_and_stays(store):
  url = store.url()
  bucket = buckets.Bucket(url)
  bucket.write("thesis.tex", b"mine")
  with (
    pytest.raises(ValueError, match=rf"^{url} is not empty and no run of mdtrap_jax .it holds"),
    stores.opened(url) as kept,
  ):
    begin(kept)
  assert {name: bucket.read(name) for name in names(url)} == {"thesis.tex": b"mine"}
  other = store.url()
  with stores.opened(other) as kept, begin(kept) as directory:
    directory.append([line(0)])
  before = buckets.Bucket(other).find()
  more = settings.resolve(small_config(data__shots=2))
  with pytest.raises(ValueError, match="data.shots: 1 there, 2 here"), stores.opened(other) as kept:
    WorkDirectory(kept.root, more, push=kept.push)
  with (
    pytest.raises(ValueError, match=f"{other}/inside is inside {other}"),
    stores.opened(f"{other}/inside") as kept,
  ):
    begin(kept)
  assert buckets.Bucket(other).find() == before
  bucket.write("../theirs", b"")
  with pytest.raises(ValueError, match="no file can have this name"), stores.opened(url):
    pass


def test_another_run_is_told_who_holds_it(google, monkeypatch):
  monkeypatch.setattr(lease, "RENEWED", 0.1)
  monkeypatch.setattr(lease, "_LOOK", 0.05)
  url = google.url()
  with stores.opened(url), pytest.raises(OSError, match=f"{url} is in use by another run .process"):
    stores.compact(url)
  assert names(url) == []


def test_a_lease_of_the_dead_is_taken_at_once_and_of_another_host_after_a_while(
  google, monkeypatch
):
  monkeypatch.setattr(lease, "RENEWED", 0.05)
  monkeypatch.setattr(lease, "EXPIRES", 0.4)
  monkeypatch.setattr(lease, "_STALE", 1e9)
  monkeypatch.setattr(lease, "_LOOK", 0.02)
  bucket = buckets.Bucket(google.url())
  dead = {**lease._here(), "started": 1}
  bucket.write(".lease-000000004", json.dumps(dead).encode())
  held = lease.Lease(bucket)
  assert names(bucket.url) == [".lease-000000005"]
  # It cannot renew for a while, and somebody elsewhere takes over.
  monkeypatch.setattr(lease, "_here", lambda: {"host": "elsewhere", "process": 7})
  renew = lease.Lease._renew
  monkeypatch.setattr(lease.Lease, "_renew", lambda self: None)
  second = lease.Lease(bucket)
  assert names(bucket.url) == [".lease-000000006"]
  renew(held)
  assert held.lost == (
    f"{bucket.url} was taken over by another run (process 7 on elsewhere), as this one could not "
    "be reached: what was finished is kept there."
  )
  renew(second)
  assert not second.lost
  held.close()
  second.close()
  assert names(bucket.url) == []


def test_a_run_that_was_taken_over_writes_no_more(google):
  url = google.url()

  def go_on():
    with stores.opened(url) as kept, begin(kept) as directory:
      buckets.Bucket(url).write(".lease-000000009", b"{}")
      kept._lease._renew()
      directory.append([line(0)])

  with pytest.raises(OSError, match=f"{url} was taken over by another run"):
    go_on()
  assert names(url) == [".lease-000000009"]


def test_a_working_copy_that_vanishes_takes_nothing_with_it(google):
  url = google.url()
  message = pytest.raises(OSError, match="was removed while the run went on")
  with message, stores.opened(url) as store, begin(store):
    store.push()
    shutil.rmtree(store.root)
    store.push()
  assert {claim.MARKER, "config.json"} <= set(names(url))
