"""Weights files with damaged bytes, of every format: one error that names the file."""

import collections
import io
import json
import pickle
import random
import zipfile

import numpy as np
import pytest
from flax import serialization
from safetensors.numpy import save_file

from mdtrap_jax.checkpoints.formats.arrays import UnusableFileError
from mdtrap_jax.checkpoints.formats.msgpack_file import open_msgpack
from mdtrap_jax.checkpoints.formats.npz_file import open_npz
from mdtrap_jax.checkpoints.formats.safetensors_file import open_safetensors
from mdtrap_jax.checkpoints.formats.sharded import open_sharded
from mdtrap_jax.checkpoints.formats.torch_file import open_torch

ARRAYS = {
  f"block.{i}.weight": np.random.default_rng(i).standard_normal((4, 5)).astype(np.float32)
  for i in range(3)
}
READERS = {
  "a.safetensors": open_safetensors,
  "a.index.json": open_sharded,
  "a.npz": open_npz,
  "packed.npz": open_npz,
  "a.msgpack": open_msgpack,
  "a.pt": lambda path: open_torch(path)[0],
}
HEADERS = (
  "[]",
  '{"a": 3}',
  '{"a": {"dtype": "F32", "shape": "xx", "data_offsets": [0, 8]}}',
  '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}',
  '{"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}',
  '{"a": {"dtype": "F32", "shape": [2.5], "data_offsets": [0, 10]}}',
)


def write(folder, name):
  """A sound file."""
  path = folder / name
  if name == "a.index.json":
    save_file(ARRAYS, folder / "a.safetensors")
    path.write_text(json.dumps({"weight_map": dict.fromkeys(ARRAYS, "a.safetensors")}))
  elif name == "a.safetensors":
    save_file(ARRAYS, path)
  elif name == "a.msgpack":
    tree = {name: {"kernel": array} for name, array in ARRAYS.items()}
    path.write_bytes(serialization.msgpack_serialize(tree))
  elif name == "a.pt":
    torch = pytest.importorskip("torch", reason="torch, which writes the file, is missing")
    torch.save({name: torch.tensor(array) for name, array in ARRAYS.items()}, path)
  else:
    (np.savez if name == "a.npz" else np.savez_compressed)(path, **ARRAYS)
  return path


def read_all(path, name):
  return [array.read() for array in READERS[name](path).values()]


@pytest.mark.parametrize("name", READERS)
def test_any_damage_is_one_error_that_names_the_file(tmp_path, name):
  path = write(tmp_path, name)
  sound, generator, failed = path.read_bytes(), random.Random(0), 0
  assert len(read_all(path, name)) == len(ARRAYS)
  for number in range(120):
    damaged = bytearray(sound)
    if number % 4:
      for _ in range(generator.choice((1, 3, 8))):
        damaged[generator.randrange(len(sound))] = generator.randrange(256)
    else:
      damaged = damaged[: generator.randrange(len(sound))]
    path.write_bytes(damaged)
    try:
      read_all(path, name)
    except (UnusableFileError, FileNotFoundError) as error:
      assert str(path) in str(error)  # noqa: PT017 (numbers may change unnoticed)
      failed += 1
  assert failed > 30


@pytest.mark.parametrize("header", HEADERS)
def test_safetensors_headers_that_make_no_sense(tmp_path, header):
  path = tmp_path / "a.safetensors"
  path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(80))
  with pytest.raises(UnusableFileError, match=r"a\.safetensors.*in its header.*Download it"):
    open_safetensors(path)


def entry(*offsets, shape=(2,)):
  return {"dtype": "F32", "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
  ("header", "message"),
  [
    ({"a": entry(0, 8), "b": entry(0, 8)}, "b begins at byte 0 .* ends at 8: they overlap"),
    ({"a": entry(0, 8), "b": entry(4, 12)}, "overlap"),
    ({"a": entry(0, 8), "b": entry(12, 20)}, "b begins at byte 12 .* leave a hole"),
    ({"a": entry(4, 12)}, "leave a hole"),
    ({"a": entry(0, 8)}, "12 bytes after the last array belong to none"),
    ({"a": entry(0, 8), "b": entry(8, 28)}, "ends at byte .* but the file has"),
    ({"a": entry(0, 20)}, "a has 20 bytes, not those of"),
    ({"a": entry(-8, 0)}, "offsets of a"),
    ({"a": entry(8, 0, shape=(-2,))}, "offsets of a"),
    ({"a": entry(0, 8, shape=(-1, -2))}, "offsets of a"),
    ({"a": entry(0, 20, shape=(5,) + (1,) * 40)}, "offsets of a"),
    ({"a": entry(0, 8.0)}, "TypeError"),
  ],
)
def test_safetensors_whose_arrays_do_not_lie_side_by_side(tmp_path, header, message):
  path, text = tmp_path / "a.safetensors", json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(20))
  with pytest.raises(UnusableFileError, match=message):
    open_safetensors(path)


def test_safetensors_with_one_name_twice(tmp_path):
  one = json.dumps(entry(0, 8))
  text = f'{{"a": {one}, "a": {one}}}'.encode()
  path = tmp_path / "a.safetensors"
  path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
  with pytest.raises(UnusableFileError, match="in its header.*'a' is given twice"):
    open_safetensors(path)


def test_msgpack_that_claims_more_than_there_is(tmp_path):
  path = tmp_path / "a.msgpack"
  path.write_bytes(serialization.msgpack_serialize({"a": np.zeros((2, 3), np.float32)}))
  data = path.read_bytes()
  assert data.count(b"\x92\x02\x03") == 1  # the shape
  path.write_bytes(data.replace(b"\x92\x02\x03", b"\x92\x7f\x7f"))
  with pytest.raises(UnusableFileError, match=r"does not have the bytes of float32\[127, 127\]"):
    open_msgpack(path)


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": 3}', ""])
def test_shard_indices_that_make_no_sense(tmp_path, index):
  (tmp_path / "a.index.json").write_text(index)
  with pytest.raises(UnusableFileError, match=r"a\.index\.json: truncated or damaged"):
    open_sharded(tmp_path / "a.index.json")


class Call:
  """Pickles as a call of torch's tensor builder."""

  def __init__(self, *arguments):
    self.arguments = arguments

  def __reduce__(self):
    from torch._utils import _rebuild_tensor_v2

    return _rebuild_tensor_v2, self.arguments


class Storage:
  """Pickles as a reference to the archive's only storage, of 100 numbers."""


@pytest.mark.parametrize(
  ("offset", "shape", "strides"),
  [
    (0, (2, 2), (-2, 1)),
    (50, (2,), (-1,)),
    (-3, (2,), (1,)),
    (0, (2, 2), (1,)),
    (0, (-2,), (1,)),
    (0, ("a",), (1,)),
    (0, None, None),
    (0, (2,), (10**12,)),
    (10**15, (2,), (1,)),
    (0, (101,), (1,)),
  ],
)
def test_tensors_beyond_their_storage_are_refused(tmp_path, offset, shape, strides):
  torch = pytest.importorskip("torch", reason="torch, whose names the pickle has, is missing")

  class Pickler(pickle.Pickler):
    def persistent_id(self, value):
      is_storage = isinstance(value, Storage)
      return ("storage", torch.FloatStorage, "0", "cpu", 100) if is_storage else None

  file = io.BytesIO()
  Pickler(file, 2).dump(
    {"a": Call(Storage(), offset, shape, strides, False, collections.OrderedDict())}
  )
  path = tmp_path / "a.pt"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("x/data.pkl", file.getvalue())
    archive.writestr("x/data/0", bytes(400))
  with pytest.raises(UnusableFileError, match=r"a\.pt: truncated or damaged"):
    read_all(path, "a.pt")
