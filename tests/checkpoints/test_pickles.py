"""Pickles and archives made to do harm: one line each, and nothing of the process is changed."""

import io
import pickle
import struct
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from mdtrap_jax.checkpoints.__main__ import main
from mdtrap_jax.checkpoints.formats import torch_file
from mdtrap_jax.checkpoints.formats.arrays import UnusableFileError
from mdtrap_jax.checkpoints.formats.npz_file import open_npz
from mdtrap_jax.checkpoints.formats.torch_file import open_torch

# Opcodes, written out: Python's own pickler would refuse most of what is made here.
EMPTY_DICT, SETITEM, TUPLE1, TUPLE2, REDUCE, BUILD = b"}", b"s", b"\x85", b"\x86", b"R", b"b"


def name(module, attribute):
  return b"c" + f"{module}\n{attribute}\n".encode()


def text(value):
  return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value):
  return b"J" + struct.pack("<i", value)


def numbers(*values):
  return b"(" + b"".join(map(number, values)) + b"t"


def tensor(shape, strides, kind="FloatStorage", offset=0):
  storage = (
    b"(" + text("storage") + name("torch", kind) + text("0") + text("cpu") + number(9) + b"t"
  )
  arguments = storage + b"Q" + number(offset) + numbers(*shape) + numbers(*strides)
  return name("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"\x89}t" + REDUCE


def entry(key, value):
  return text(key) + value + SETITEM


def write(folder, body, data=bytes(400), method=zipfile.ZIP_STORED):
  path = folder / "a.pt"
  with zipfile.ZipFile(path, "w", method) as archive:
    archive.writestr("x/data.pkl", b"\x80\x02" + body + b".")
    archive.writestr("x/data/0", data)
  return path


def refused(path, capsys):
  """The one line that reader and inspection give."""
  with pytest.raises(UnusableFileError) as caught:
    open_torch(path)
  assert main(["inspect", str(path)]) == 1
  assert str(caught.value) in capsys.readouterr().out
  assert "\n" not in str(caught.value)
  assert str(path) in str(caught.value)
  return str(caught.value)


def test_a_sound_file(tmp_path):
  data = np.arange(100, dtype=np.float32)
  path = write(tmp_path, EMPTY_DICT + entry("a", tensor((2, 3), (1, 2), offset=4)), data.tobytes())
  arrays, is_torchscript = open_torch(path)
  np.testing.assert_array_equal(arrays["a"].read(), [[4, 6, 8], [5, 7, 9]])
  assert not is_torchscript


@pytest.mark.parametrize("kind", torch_file.STORAGES)
def test_state_of_a_storage_type(tmp_path, capsys, kind):
  """A state set on NumPy's bfloat16 made the next cast of the process die by signal 11."""
  state = b"(" + number(3) + text("<") + b"NNN" + number(1) + number(1) + number(63) + b"t"
  body = EMPTY_DICT + entry("a", name("torch", kind) + state + BUILD)
  assert "changes what is no" in refused(write(tmp_path, body), capsys)
  assert np.dtype(jnp.bfloat16).itemsize == 2
  assert jnp.ones(3).astype(jnp.bfloat16).sum() == 3


@pytest.mark.parametrize(
  "target",
  [
    name("torch._utils", "_rebuild_tensor_v2"),
    name("collections", "OrderedDict"),
    tensor((2,), (1,)),
    text("a"),
  ],
)
def test_state_of_anything_else(tmp_path, capsys, target):
  state = b"N" + EMPTY_DICT + entry("__defaults__", b")") + TUPLE2  # attributes of the object
  path = write(tmp_path, EMPTY_DICT + entry("a", target + state + BUILD))
  assert "changes what is no" in refused(path, capsys)


@pytest.mark.parametrize(
  ("module", "attribute"),
  [
    ("os", "system"),
    ("builtins", "eval"),
    ("collections", "namedtuple"),
    ("torch", "load"),
    ("torch", "FloatStorage.__init__"),
    ("torch.jit._picklex", "a"),
    ("__torch__x", "a"),
    ("numpy", "dtype"),
  ],
)
def test_other_names(tmp_path, capsys, module, attribute):
  path = write(tmp_path, EMPTY_DICT + entry("a", name(module, attribute)))
  assert f"uses '{module}.{attribute}'" in refused(path, capsys)


def test_calls_of_what_is_no_name(tmp_path, capsys):
  assert "calls" in refused(write(tmp_path, text("a") + b")" + REDUCE), capsys)


def test_torchscript_state(tmp_path):
  """An object whose class only the archive knows holds tensors; its numbers' lists do not."""
  numbers_list = name("torch.jit._pickle", "build_intlist") + b"](K\x01e" + TUPLE1 + REDUCE
  state = EMPTY_DICT + entry("w", tensor((2,), (1,))) + entry("k", numbers_list)
  inner = name("__torch__.b", "B") + b")\x81" + state + BUILD
  path = write(tmp_path, name("__torch__", "A") + b")\x81" + EMPTY_DICT + entry("b", inner) + BUILD)
  arrays, is_torchscript = open_torch(path)
  assert list(arrays) == ["b.w"]
  assert is_torchscript


def test_shared_dictionaries_do_not_multiply(tmp_path, capsys):
  body = EMPTY_DICT
  for _ in range(40):  # {"a": d, "b": d}, 2^40 paths in 500 bytes
    body = EMPTY_DICT + text("a") + body + b"q\x00s" + text("b") + b"h\x00s"
  assert "nests dictionaries" in refused(write(tmp_path, body), capsys)


@pytest.mark.parametrize("depth", [100, 20_000])
def test_deep_dictionaries(tmp_path, capsys, depth):
  body = (EMPTY_DICT + text("a")) * depth + b"N" + SETITEM * depth
  assert "nests dictionaries" in refused(write(tmp_path, body), capsys)


def test_dictionary_inside_itself(tmp_path, capsys):
  body = EMPTY_DICT + b"q\x00" + text("a") + b"h\x00" + SETITEM
  assert "nests dictionaries" in refused(write(tmp_path, body), capsys)


def test_keys_that_cannot_be_hashed_in_time(tmp_path, capsys):
  shared = b")" + (b"q\x00h\x00" + TUPLE2) * 60  # ((t, t), (t, t)), 2^60 leaves
  path = write(tmp_path, EMPTY_DICT + shared + b"N" + SETITEM)
  assert "keys are no text or numbers" in refused(path, capsys)
  deep = b")" + TUPLE1 * 30_000  # C's stack ends before Python's
  path = write(tmp_path, EMPTY_DICT + deep + b"N" + SETITEM)
  assert "keys are no text or numbers" in refused(path, capsys)


def test_memo_far_away(tmp_path):
  """The memo is no table of as many places as the largest number says."""
  body = EMPTY_DICT + b"r\xff\xff\xff\x7f" + entry("a", tensor((2,), (1,)))
  assert list(open_torch(write(tmp_path, body))[0]) == ["a"]


def test_more_operations_than_any_model_has(tmp_path, capsys):
  path = write(tmp_path, b"N0" * 100, method=zipfile.ZIP_DEFLATED)
  assert "POP" in refused(path, capsys)
  assert "operations" in refused(write(tmp_path, b"N" * (2**19 + 1)), capsys)


@pytest.mark.parametrize("body", [b"s", b"N" + BUILD, b"h\x07", b"Q", b"t", TUPLE2, b"}(Nu", b""])
def test_bodies_that_make_no_sense(tmp_path, capsys, body):
  assert "truncated or damaged" in refused(write(tmp_path, body), capsys)


def test_names_given_twice(tmp_path, capsys):
  one = tensor((2,), (1,))
  body = EMPTY_DICT + entry("a", EMPTY_DICT + entry("b", one)) + entry("a.b", one)
  assert "two of its tensors are named a.b" in refused(write(tmp_path, body), capsys)


@pytest.mark.parametrize("shape", [(10**6, 10**6), (101,), (1, 101)])
def test_tensors_larger_than_what_is_stored(tmp_path, capsys, shape):
  path = write(tmp_path, EMPTY_DICT + entry("a", tensor(shape, (0,) * len(shape))))
  assert "a [1" in refused(path, capsys)


# Archives.


def test_torch_file_that_expands_without_end(tmp_path, capsys):
  body = EMPTY_DICT + entry("a", tensor((10**6,), (1,)))
  path = write(tmp_path, body, bytes(2**26), zipfile.ZIP_DEFLATED)
  assert path.stat().st_size < 2**17
  assert "claim to expand to" in refused(path, capsys)


def test_npz_that_expands_without_end(tmp_path):
  np.savez_compressed(tmp_path / "a.npz", a=np.zeros(2**24, np.float32))
  with pytest.raises(UnusableFileError, match="claim to expand to"):
    open_npz(tmp_path / "a.npz")
  np.savez_compressed(tmp_path / "b.npz", a=np.zeros(2**16, np.float32))  # harmless
  assert open_npz(tmp_path / "b.npz")["a"].read().shape == (2**16,)


def test_npz_header_that_claims_more_than_there_is(tmp_path):
  file = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    file, {"descr": "<f4", "fortran_order": False, "shape": (2**40,)}
  )
  with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
    archive.writestr("a.npy", file.getvalue() + bytes(8))
  with pytest.raises(UnusableFileError, match=r"a\.npy does not have the bytes"):
    open_npz(tmp_path / "a.npz")


def test_npz_of_objects_is_not_unpickled(tmp_path):
  np.savez(tmp_path / "a.npz", a=np.array([{1}], object))
  with pytest.raises(UnusableFileError, match="pickled objects"):
    open_npz(tmp_path / "a.npz")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archive_members_of_one_name(tmp_path):
  with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
    archive.writestr("a.npy", b"")
    archive.writestr("a.npy", b"")
  with pytest.raises(UnusableFileError, match="have one name"):
    open_npz(tmp_path / "a.npz")


def test_unusual_compression(tmp_path):
  with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_LZMA) as archive:
    archive.writestr("a.npy", b"a")
  with pytest.raises(UnusableFileError, match="compressed by a method"):
    open_npz(tmp_path / "a.npz")


def test_pickle_alone(tmp_path):
  (tmp_path / "a.pt").write_bytes(pickle.dumps({"a": 1}))
  with pytest.raises(UnusableFileError, match="no weights file that can be read safely"):
    open_torch(tmp_path / "a.pt")
