"""The hub: what is downloaded, and one line in seconds where it cannot be reached."""

import socket
import time

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from mdtrap_jax import checkpoints
from mdtrap_jax.checkpoints import hub
from tests.checkpoints.tiny import make_model, make_params

NAMES = ["README.md", "model.safetensors", "pytorch_model.bin", "flax_model.msgpack"]


class Sibling:
  def __init__(self, name):
    self.rfilename = name


class Api:
  """A hub that has one repository, or raises."""

  def __init__(self, answer):
    self.answer = answer

  def __call__(self):
    return self

  def model_info(self, name, timeout):
    assert timeout <= 5
    if isinstance(self.answer, Exception):
      raise self.answer
    return type("Info", (), {"siblings": [Sibling(file) for file in self.answer]})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("hub") / "model"
  model = make_model()
  checkpoints.save(path, model, make_params(model))
  return path


@pytest.fixture
def cache(tmp_path, monkeypatch, folder):
  """A local cache that holds `me/tiny`."""
  repository = tmp_path / "models--me--tiny"
  (repository / "refs").mkdir(parents=True)
  (repository / "refs" / "main").write_text("abc")
  (repository / "snapshots").mkdir()
  (repository / "snapshots" / "abc").symlink_to(folder)
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))


def test_only_what_is_needed_is_downloaded(folder, monkeypatch):
  asked = {}

  def snapshot(name, allow_patterns):
    asked[name] = set(allow_patterns)
    return str(folder)

  monkeypatch.setattr(huggingface_hub, "HfApi", Api(NAMES))
  monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
  assert checkpoints.load("clip-vit-b16")[0].image.width == 8
  patterns = asked["openai/clip-vit-base-patch16"]
  assert {"model.safetensors", "config.json", "tokenizer.json"} <= patterns
  assert not {"pytorch_model.bin", "flax_model.msgpack", "README.md"} & patterns
  monkeypatch.setattr(huggingface_hub, "HfApi", Api(["pytorch_model.bin.index.json"]))
  checkpoints.load("somebody/something")
  assert {"pytorch_model.bin.index.json", "pytorch_model-*.bin"} <= asked["somebody/something"]
  monkeypatch.setattr(huggingface_hub, "HfApi", Api(["README.md"]))
  with pytest.raises(FileNotFoundError, match="no weights file of a known format"):
    checkpoints.load("somebody/something")


class StrangeTransportError(Exception):
  """As httpx's: not derived from what the hub's library documents."""


def test_cached_weights_are_used_where_the_hub_cannot_be_reached(cache, monkeypatch, caplog):
  monkeypatch.setattr(huggingface_hub, "HfApi", Api(StrangeTransportError("no\nroute")))
  assert checkpoints.load("me/tiny")[0].image.width == 8
  lines = [r.getMessage() for r in caplog.records if "cannot be reached" in r.getMessage()]
  assert len(lines) == 1
  assert "no route" in lines[0]
  assert "\n" not in lines[0]
  with pytest.raises(FileNotFoundError, match=r"you/tiny is not in the local cache.*no route"):
    checkpoints.load("you/tiny")


def test_fingerprint_of_a_cached_repository_asks_no_network(cache, monkeypatch, folder):
  monkeypatch.setattr(huggingface_hub, "HfApi", Api(AssertionError("asked")))
  assert checkpoints.fingerprint("me/tiny") == checkpoints.fingerprint(folder)


def response(status):
  import httpx2

  return httpx2.Response(status, request=httpx2.Request("GET", "http://x"))


@pytest.mark.parametrize(
  ("error", "message"),
  [
    (errors.RepositoryNotFoundError, "a/b: neither a local file or folder nor a repository"),
    (errors.GatedRepoError, "a/b is given only to those who accept its license.*hf auth login"),
  ],
)
def test_refusals_of_the_hub(monkeypatch, error, message):
  pytest.importorskip("httpx2", reason="this huggingface_hub has another HTTP library")
  monkeypatch.setattr(huggingface_hub, "HfApi", Api(error("no", response=response(401))))
  with pytest.raises(FileNotFoundError, match=message):
    checkpoints.load("a/b")


@pytest.mark.parametrize("name", ["a b/c", "a/" + "b" * 200])
def test_names_that_no_repository_has(name):
  with pytest.raises(FileNotFoundError, match="neither a local file"):
    checkpoints.load(name)


@pytest.mark.parametrize("listens", [False, True])
def test_a_network_without_answer_costs_seconds(monkeypatch, listens):
  """Refused, or taken and never answered: `huggingface_hub` itself tries for half a minute."""
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
  monkeypatch.setattr(hub, "PATIENCE", 0.2)
  with socket.socket() as server:
    server.bind(("127.0.0.1", 0))
    if listens:
      server.listen()
    endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
    api = huggingface_hub.HfApi(endpoint=endpoint)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    start = time.monotonic()
    with pytest.raises(FileNotFoundError, match="cannot be reached"):
      checkpoints.load("a/b")
    assert time.monotonic() - start < 10
