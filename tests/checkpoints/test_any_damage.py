"""Files of a checkpoint changed in any way: it loads, or one line says why not, in seconds."""

import copy
import datetime
import json
import shutil
import struct
import warnings
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mdtrap_jax import checkpoints
from mdtrap_jax.checkpoints import tokenizer_files
from mdtrap_jax.checkpoints.formats.arrays import UnusableFileError
from mdtrap_jax.checkpoints.formats.safetensors_file import open_safetensors
from mdtrap_jax.checkpoints.formats.torch_file import open_torch
from mdtrap_jax.checkpoints.inspect import inspect
from tests.checkpoints.tiny import make_model, make_params

bounded = settings(
  max_examples=60,
  derandomize=True,
  database=None,
  deadline=datetime.timedelta(seconds=60),  # of an overloaded machine; usual are milliseconds
  suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
numbers = st.one_of(
  st.sampled_from([0, -1, 1, 2, 3, 2**31, 2**63, 2**64, 10**12, 10**400]),
  st.sampled_from([0.0, 0.5, -1.5, float("nan"), float("inf"), 1e308]),
  st.booleans(),
  st.none(),
)
values = st.recursive(
  st.one_of(numbers, st.text(max_size=5), st.sampled_from(["F32", "gelu", "BPE", "2", "a\nb"])),
  lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=2)
  ),
  max_leaves=4,
)


@st.composite
def changed(draw, sound):
  """The JSON content with one to three of its parts replaced, removed or doubled."""
  content = copy.deepcopy(sound)
  for _ in range(draw(st.integers(1, 3))):
    parent, key = {"": content}, ""
    while isinstance(parent[key], dict | list) and parent[key] and draw(st.integers(0, 4)):
      parent = parent[key]
      keys = sorted(parent) if isinstance(parent, dict) else list(range(len(parent)))
      key = draw(st.sampled_from(keys[:200]))
    if draw(st.booleans()) or not isinstance(parent, dict) or key == "":
      parent[key] = draw(values)
    else:
      del parent[key]
    content = parent[""] if key == "" else content
  return content


def one_line(call):
  """What the call gives, or `None` after an error as the command line catches it."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore", UserWarning)
      return call()
  except (ValueError, OSError) as error:
    assert "\n" not in str(error)  # noqa: PT017 (most examples raise)
    assert len(str(error)) < 3000  # noqa: PT017
    return None


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  path = tmp_path_factory.mktemp("any") / "model"
  model = make_model()
  checkpoints.save(path, model, make_params(model))
  return path


@pytest.fixture
def folder(saved, tmp_path):
  return shutil.copytree(saved, tmp_path / "model")


CONFIG = {
  "model_type": "clip",
  "projection_dim": 4,
  "vision_config": {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
  },
  "text_config": {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 518,
    "max_position_embeddings": 12,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 517,
  },
}


@settings(bounded, max_examples=30)
@given(changed(CONFIG))
@example(CONFIG)
def test_configs(folder, config):
  (folder / "config.json").write_text(json.dumps(config))
  report = one_line(lambda: inspect(folder))
  loaded = one_line(lambda: checkpoints.load(folder))
  assert (loaded is not None) == (report is not None and not report.problems)


@bounded
@given(changed({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.1, 0.2, 0.3]}), st.booleans())
def test_statistics(folder, content, of_open_clip):
  if of_open_clip:
    content = {"preprocess_cfg": content}
  name = "open_clip_config.json" if of_open_clip else "preprocessor_config.json"
  (folder / name).write_text(json.dumps(content))
  one_line(lambda: inspect(folder))


ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
HEADER = {"a": ENTRY, "b": ENTRY | {"data_offsets": [24, 48]}, "__metadata__": {"format": "pt"}}


@bounded
@given(changed(HEADER))
@example(HEADER)
def test_safetensors_headers(tmp_path, header):
  path, text = tmp_path / "a.safetensors", json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(48))
  arrays = one_line(lambda: open_safetensors(path))
  for array in (arrays or {}).values():
    assert array.read().shape == array.shape
  if header == HEADER:
    assert len(arrays) == 2


TENSOR = (
  b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
  b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQK\x00K\x02K\x03\x86K\x03K\x01\x86\x89}tR"
)
OPERATIONS = [
  *(bytes([code]) for code in b"().}]NtasueRbQ0120\x81\x85\x86\x87\x88\x89\x94\x8f\x90\x91\x93"),
  b"K\x01", b"M\xff\xff", b"J\xff\xff\xff\xff", b"\x8a\x09" + b"\xff" * 8 + b"\x00",
  b"q\x00", b"q\x01", b"r\xff\xff\xff\xff", b"h\x00", b"h\x01", b"j\xff\xff\xff\xff",
  b"X\x01\x00\x00\x00a", b"X\xff\xff\xff\xff", b"\x8d" + b"\xff" * 8, b"U\x01a", b"C\x01a",
  b"G" + struct.pack(">d", float("nan")), b"\x8b\xff\xff\xff\x7f", b"\x80\x04",
  b"\x95" + b"\xff" * 8,
  b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_parameter\n", b"c__torch__\nA\n",
  b"ccollections\nOrderedDict\n", b"ctorch\nBFloat16Storage\n", b"cos\nsystem\n", TENSOR,
]  # fmt: skip


@bounded
@given(st.lists(st.sampled_from(OPERATIONS), max_size=25))
@example([b"}", b"X\x01\x00\x00\x00a", TENSOR, b"s", b"."])
def test_pickles(tmp_path, operations):
  path = tmp_path / "a.pt"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("x/data.pkl", b"\x80\x02" + b"".join(operations) + b".")
    archive.writestr("x/data/0", bytes(24))
  try:
    arrays = open_torch(path).arrays
  except UnusableFileError as error:
    assert "\n" not in str(error)  # noqa: PT017 (most examples raise)
    return
  for array in arrays.values():
    assert array.read().shape == array.shape


def tokenizer_json():
  from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

  tokens = ["a", "a</w>", "c", "t</w>", "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
  vocabulary = {token: i for i, token in enumerate(tokens)}
  merges = [("c", "a"), ("ca", "t</w>")]
  model = models.BPE(vocabulary, merges, unk_token="a", end_of_word_suffix="</w>")
  tokenizer = Tokenizer(model)
  tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.enable_padding(length=5)
  tokenizer.enable_truncation(3)
  return json.loads(tokenizer.to_str())


WORDS = {"vocabulary": ["<pad>", "<start>", "<unk>", "a", "<end>"], "context_length": 12}
HASH = {"vocabulary_size": 8, "context_length": 12, "end_last": False}
FILES = {
  "tokenizer.json": tokenizer_json(),
  tokenizer_files.WORDS: WORDS,
  tokenizer_files.HASH: HASH,
  "vocab.json": {"a": 0, "a</w>": 1, "aa</w>": 2, "<|startoftext|>": 3, "<|endoftext|>": 4},
}


@pytest.mark.parametrize("name", FILES)
def test_tokenizers(tmp_path, name):
  (tmp_path / "merges.txt").write_text("a a</w>\n")
  size = len(WORDS["vocabulary"]) if name in (tokenizer_files.WORDS, "vocab.json") else 8
  text = make_model(vocabulary_size=size).text

  @bounded
  @given(changed(FILES[name]))
  @example(FILES[name])
  def check(content):
    (tmp_path / name).write_text(json.dumps(content))
    tokenize = one_line(lambda: tokenizer_files.read_tokenizer(tmp_path, "clip", text))
    if tokenize is not None:
      ids = one_line(lambda: tokenize(["a cat", ""]))
      assert ids is None or (ids.shape == (2, 12) and ids.dtype == np.int32)
    assert tokenize is not None or json.dumps(content) != json.dumps(FILES[name])

  check()
