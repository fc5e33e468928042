"""Reads torch's `.pt` and `.bin` files without torch and without running what they contain.

Such a file is a zip archive of one pickle and one raw file per tensor storage. The unpickler
here knows how to build tensors, dictionaries and (for TorchScript archives, as OpenAI
publishes) attribute holders; any other name in the pickle is refused.
"""

from __future__ import annotations

import collections
import math
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mdtrap_jax.checkpoints.formats.arrays import StoredArray, UnusableFileError, reading

STORAGES = {
  "DoubleStorage": np.float64,
  "FloatStorage": np.float32,
  "HalfStorage": np.float16,
  "BFloat16Storage": ml_dtypes.bfloat16,
  "LongStorage": np.int64,
  "IntStorage": np.int32,
  "ShortStorage": np.int16,
  "CharStorage": np.int8,
  "ByteStorage": np.uint8,
  "BoolStorage": np.bool_,
}
_CONTAINERS = ("state_dict", "model", "weights")  # keys under which trainers nest weights


class _Storage(NamedTuple):
  key: str
  dtype: np.dtype


class _Tensor(NamedTuple):
  storage: _Storage
  offset: int  # in elements
  shape: tuple[int, ...]
  strides: tuple[int, ...]  # in elements


def _rebuild(storage: _Storage, offset: int, shape: Any, strides: Any, *_) -> _Tensor:
  """What torch calls to make a tensor; numbers that would reach beyond its data are refused."""
  tensor = _Tensor(storage, offset, tuple(shape), tuple(strides))
  numbers = (offset, *tensor.shape, *tensor.strides)
  if (
    not isinstance(storage, _Storage)
    or len(tensor.shape) != len(tensor.strides)
    or any(not isinstance(number, int) or number < 0 for number in numbers)
  ):
    raise pickle.UnpicklingError(f"no tensor: {tensor}")
  return tensor


class _Attributes:
  """A TorchScript module: a holder of tensors and of other holders."""

  def __setstate__(self, state: Mapping[str, Any]):
    self.__dict__.update(state)


class _RefusedError(Exception):
  pass


class _Unpickler(pickle.Unpickler):
  """Builds descriptions of tensors; refuses every name that weights do not need."""

  def find_class(self, module: str, name: str) -> Any:
    """What the pickle's name stands for."""
    if (module, name) == ("collections", "OrderedDict"):
      return collections.OrderedDict
    if module == "torch" and name in STORAGES:
      return np.dtype(STORAGES[name])
    if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
      return _rebuild
    if (module, name) == ("torch._utils", "_rebuild_parameter"):
      return lambda tensor, *_: tensor
    if module.startswith("__torch__"):
      return type(name, (_Attributes,), {})
    raise _RefusedError(f"{module}.{name}")

  def persistent_load(self, pid: Any) -> _Storage:
    """A tensor's storage, `("storage", type, key, device, length)`."""
    return _Storage(str(pid[2]), np.dtype(pid[1]))


class TorchFile(NamedTuple):
  """The weights of one file."""

  arrays: dict[str, StoredArray]
  is_torchscript: bool


def open_torch(path: Path) -> TorchFile:
  """The state dict in a file that torch saved, or the weights of a TorchScript archive.

  Raises:
    UnusableFileError: it is damaged, of torch's format before version 1.6, or its pickle
      holds anything but weights.
  """
  with reading(path):
    if not zipfile.is_zipfile(path):
      raise UnusableFileError(
        f"{path}: no weights file that can be read safely. It is truncated (download it "
        "again), another format, or saved by torch before 1.6 (load it with torch there and "
        "save its state_dict again, as safetensors if possible)."
      )
  with reading(path), zipfile.ZipFile(path) as archive:
    names = archive.namelist()
    pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
      raise UnusableFileError(f"{path}: a zip archive, but not one that torch wrote.")
    root = pickles[0].removesuffix("data.pkl")
    if root + "byteorder" in names and archive.read(root + "byteorder") != b"little":
      raise UnusableFileError(f"{path}: saved on a big-endian machine, which is not supported.")
    with archive.open(pickles[0]) as file:
      try:
        content = _Unpickler(file).load()
      except _RefusedError as error:
        raise UnusableFileError(
          f"{path}: its pickle uses {error}, which weights do not need, so it was not "
          "executed. Save the model's state_dict alone."
        ) from error
    tensors = {}
    _collect(_weights(content), (), tensors)
  if not tensors:
    raise UnusableFileError(f"{path}: its pickle holds no weights.")
  arrays = {
    name: StoredArray(tensor.shape, tensor.storage.dtype, _reader(path, root, name, tensor))
    for name, tensor in tensors.items()
  }
  return TorchFile(arrays, isinstance(content, _Attributes))


def _weights(content: Any) -> Any:
  """The state dict inside what a trainer saved around it."""
  for key in _CONTAINERS:
    if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
      return content[key]
  return content


def _collect(value: Any, parents: tuple[str, ...], tensors: dict[str, _Tensor]) -> None:
  if isinstance(value, _Tensor):
    tensors[".".join(parents)] = value
  elif isinstance(value, _Attributes | Mapping):
    items = value.items() if isinstance(value, Mapping) else vars(value).items()
    for name, part in items:
      _collect(part, (*parents, str(name)), tensors)


def _reader(path: Path, root: str, name: str, tensor: _Tensor):
  def read() -> np.ndarray:
    dtype = tensor.storage.dtype
    steps = tuple(stride * dtype.itemsize for stride in tensor.strides)
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    count = last + 1 if math.prod(tensor.shape) else 0
    with (
      reading(path, name),
      zipfile.ZipFile(path) as archive,
      archive.open(f"{root}data/{tensor.storage.key}") as file,
    ):
      file.seek(tensor.offset * dtype.itemsize)
      data = np.frombuffer(file.read(count * dtype.itemsize), dtype, count)
    return np.lib.stride_tricks.as_strided(data, tensor.shape, steps, writeable=False)

  return read
