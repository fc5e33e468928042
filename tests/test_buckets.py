"""Requests to object stores that fail in all ways, and copies of what they hold."""

import errno

import pytest

from mdtrap_jax import buckets, files
from tests.stores import first

pytestmark = pytest.mark.usefixtures("quick")


def test_which_texts_are_buckets(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  assert [buckets.is_bucket(text) for text in ("gs://b/a", "s3://b", "gs:/b/a", "gs", "~", 3)] == [
    True, True, True, False, False, False,
  ]  # fmt: skip
  assert buckets.url_of("gs:/b//a/") == "gs://b/a"
  assert files.local("~/x") == f"{tmp_path}/x"
  assert files.local("") == ""
  with pytest.raises(ValueError, match="az://b/a: give a folder of this machine, gs://"):
    files.local("az://b/a")
  for wrong in ("gs://", "s3://b/../c"):
    with pytest.raises(ValueError, match="give (gs|s3)://BUCKET/FOLDER"):
      buckets.url_of(wrong)


def test_objects(store, tmp_path):
  bucket = buckets.Bucket(store.url())
  assert bucket.find() == {}
  assert [bucket.create("a/x", content) for content in (b"1", b"2", b"1")] == [True, False, True]
  assert (bucket.read("a/x"), bucket.read("a"), bucket.read("b")) == (b"1", None, None)
  bucket.write("a/x", b"")
  (tmp_path / "file").write_bytes(b"content")
  bucket.upload(tmp_path / "file", "z")
  assert {name: entry.size for name, entry in bucket.find().items()} == {"a/x": 0, "z": 7}
  assert buckets.Bucket(f"{bucket.url}/z").find()[""].size == 7
  bucket.remove(["z", "none"])
  assert list(bucket.find()) == ["a/x"]


@pytest.mark.parametrize("fault", ["503", "cut", "lie", "down", 0.05])
def test_a_request_that_fails_is_tried_again(store, fault, tmp_path):
  bucket = buckets.Bucket(store.url())
  with store.failing(first(2, fault)):
    assert bucket.create("one", b"mine")
  with store.failing(first(2, fault)):
    assert not bucket.create("one", b"another's")
  with store.failing(first(2, fault)):
    bucket.write("two", bytes(100_000))
  with store.failing(first(2, fault)):
    assert list(bucket.find()) == ["one", "two"]
  with store.failing(first(1, fault)):
    assert bucket.read("one") == b"mine"
  entry = bucket.find()["two"]
  with store.failing(first(2, fault)):
    bucket.download("two", entry, tmp_path / "two")
  assert (tmp_path / "two").read_bytes() == bytes(100_000)
  with store.failing(first(2, fault)):
    bucket.remove(["one"])
  assert list(bucket.find()) == ["two"]
  assert sorted(path.name for path in tmp_path.iterdir()) == ["two"]


def test_patience_ends_with_a_line(store, monkeypatch, caplog):
  monkeypatch.setattr(buckets, "PATIENCE", 0.0)
  monkeypatch.setattr(buckets, "_SILENT", -1.0)
  monkeypatch.setattr(buckets._file_system(store.scheme), "retries", 1, raising=False)
  bucket = buckets.Bucket(store.url())
  with (
    store.failing(lambda request: "503"),
    pytest.raises(OSError, match="writing one failed for 0 min .*: run the same command again"),
  ):
    bucket.write("one", b"")


def test_waiting_is_said_once(google, monkeypatch, caplog):
  monkeypatch.setattr(buckets, "_SILENT", 0.0)
  calls = iter([TimeoutError("slow"), ConnectionError("gone"), OSError(errno.EIO, "503"), 7])

  def act():
    if isinstance(result := next(calls), Exception):
      raise result
    return result

  assert buckets.Bucket("gs://bucket/x")._try("listing it", act) == 7
  said = [record.getMessage() for record in caplog.records]
  assert len(said) == 2
  assert said[0] == (
    "gs://bucket/x: listing it failed (slow); it is tried again for up to 30 min, and nothing is "
    "lost."
  )
  assert said[1].startswith("gs://bucket/x answers again after")


def test_what_cannot_succeed_is_one_line(store):
  wrong = buckets.Bucket(f"{store.scheme}://other/x")
  for act in (wrong.find, lambda: wrong.create("a", b""), lambda: wrong.write("a", b"")):
    with pytest.raises(FileNotFoundError, match=f"{store.scheme}://other/x: no such bucket"):
      act()
  denied = PermissionError("Access Denied.")
  final = buckets._final(denied, "s3://b/x")
  assert str(final) == (
    "s3://b/x: no permission (Access Denied): aws configure, or ask its owner for access."
  )
  assert isinstance(buckets._final(OSError("Forbidden: x"), "gs://b"), PermissionError)


def test_an_extra_that_is_missing_is_named(monkeypatch):
  buckets._file_system.cache_clear()
  monkeypatch.setattr(buckets.importlib, "import_module", _absent)
  with pytest.raises(
    ModuleNotFoundError, match=r"gs://… needs gcsfs: pip install 'mdtrap_jax\[gcs\]'"
  ):
    buckets.Bucket("gs://b/x")
  monkeypatch.undo()
  buckets._file_system.cache_clear()


def _absent(name):
  raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])


def test_a_copy_reads_only_what_is_new(store, tmp_path):
  bucket = buckets.Bucket(store.url("pets"))
  for name in ("cat/1", "cat/2", "dog/1"):
    bucket.write(name, name.encode())
  one = buckets.local_copy(bucket.url, cache=tmp_path)
  assert {str(p.relative_to(one)): p.read_text() for p in one.rglob("*") if p.is_file()} == {
    name: name for name in ("cat/1", "cat/2", "dog/1")
  }
  before = len(store.proxy.requests)
  assert buckets.local_copy(bucket.url, cache=tmp_path) == one
  listing = len(store.proxy.requests) - before
  bucket.write("dog/1", b"another")
  before = len(store.proxy.requests)
  two = buckets.local_copy(bucket.url, cache=tmp_path)
  assert (two / "dog" / "1").read_text() == "another"
  assert (one / "dog" / "1").read_text() == "dog/1"
  assert len(store.proxy.requests) - before == listing + 1
  cats = buckets.local_copy(bucket.url, lambda name: name.startswith("cat/"), cache=tmp_path)
  assert [path.name for path in cats.iterdir()] == ["cat"]
  file = buckets.local_copy(f"{bucket.url}/cat/1", cache=tmp_path)
  assert file.read_text() == "cat/1"
  with pytest.raises(FileNotFoundError, match="no such folder or object in that bucket"):
    buckets.local_copy(f"{bucket.url}/bird", cache=tmp_path)


def test_what_changes_while_it_is_read_is_no_copy(store, tmp_path):
  bucket = buckets.Bucket(store.url())
  bucket.write("a", b"before")
  entry = bucket.find()["a"]
  bucket.write("a", b"afterwards")
  with pytest.raises(OSError, match="changed while it was read"):
    bucket.download("a", entry, tmp_path / "a")
  assert list(tmp_path.iterdir()) == []


def test_a_folder_is_complete_or_known_not_to_be(store):
  url = store.url("model")
  assert not files.is_there(url)
  for extra in ("first", "second"):
    with files.writing(url, last="about") as folder:
      folder.mkdir()
      for name in ("about", "zebra", extra):
        (folder / name).write_text(name)
  assert files.is_there(url)
  assert sorted(buckets.Bucket(url).find()) == ["about", "second", "zebra"]
  writes = [r for r in store.proxy.requests if r.startswith(("PUT", "POST"))][-3:]
  with files.writing(f"{url}.csv") as path:
    path.write_text("a,b")
  assert buckets.Bucket(f"{url}.csv").read("") == b"a,b"
  copy = files.local(f"{url}.csv")
  assert files.typed(copy) == f"{url}.csv"
  assert files.typed("/copies/x") == "/copies/x"
  if store.scheme == "s3":
    assert writes[-1].endswith("/about")
