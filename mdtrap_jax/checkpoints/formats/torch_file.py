"""Reads torch's `.pt`, `.pth`, `.bin` and `.ckpt` files without torch, running nothing in them.

Such a file is a zip archive of one pickle and one raw file per tensor storage. The pickle is
read as data (`pickle_machine.py`); the tensors, dictionaries and (for TorchScript archives, as
OpenAI publishes) attribute holders in it are known here, and any other name is refused.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mdtrap_jax.checkpoints.formats.archive import open_archive
from mdtrap_jax.checkpoints.formats.arrays import StoredArray, UnusableFileError, reading
from mdtrap_jax.checkpoints.formats.pickle_machine import (
  Call,
  Instance,
  Name,
  Persistent,
  PickleError,
  read_pickle,
)

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
_TENSOR = Name("torch._utils", "_rebuild_tensor_v2")
_PARAMETER = Name("torch._utils", "_rebuild_parameter")
_LISTS = "torch.jit._pickle"  # TorchScript's lists of numbers, which are no weights
# Keys under which trainers nest weights.
_CONTAINERS = ("state_dict", "model_state_dict", "model", "weights")
_MOST_ENTRIES = 2**17  # visited, so that shared dictionaries cannot multiply without end
_MOST_LEVELS = 64


class _Tensor(NamedTuple):
  key: str  # of its storage
  dtype: np.dtype
  offset: int  # in elements
  shape: tuple[int, ...]
  strides: tuple[int, ...]  # in elements

  @property
  def span(self) -> int:
    """Elements of the storage from the first to the last that it uses."""
    steps = zip(self.shape, self.strides, strict=True)
    return 1 + sum((n - 1) * stride for n, stride in steps) if math.prod(self.shape) else 0


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
    with open_archive(path) as archive:
      root, content = _content(path, archive)
      tensors = _tensors(path, _weights(content))
      for name, tensor in tensors.items():
        _check_extent(path, name, tensor, archive.getinfo(f"{root}data/{tensor.key}").file_size)
  if not tensors:
    raise UnusableFileError(f"{path}: its pickle holds no weights.")
  arrays = {
    name: StoredArray(tensor.shape, tensor.dtype, _reader(path, root, name, tensor))
    for name, tensor in tensors.items()
  }
  return TorchFile(arrays, isinstance(content, Instance))


def _content(path: Path, archive: zipfile.ZipFile) -> tuple[str, Any]:
  """The archive's root folder, and what its pickle holds."""
  names = archive.namelist()
  pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
  if len(pickles) != 1:
    raise UnusableFileError(f"{path}: a zip archive, but not one that torch wrote.")
  root = pickles[0].removesuffix("data.pkl")
  if root + "byteorder" in names and archive.read(root + "byteorder") != b"little":
    raise UnusableFileError(f"{path}: saved on a big-endian machine, which is not supported.")

  def check_name(name: Name) -> None:
    storage = name.module == "torch" and name.name in STORAGES
    ours = name in (_TENSOR, _PARAMETER, Name("collections", "OrderedDict"))
    script = name.module == _LISTS or name.module.split(".")[0] == "__torch__"
    if not (storage or ours or script):
      raise UnusableFileError(
        f"{path}: its pickle uses {str(name)[:100]!r}, which weights do not need, so it was not "
        "executed. Save the model's state_dict alone."
      )

  try:
    return root, read_pickle(archive.read(pickles[0]), check_name)
  except PickleError as error:
    raise UnusableFileError(
      f"{path}: truncated or damaged: {error}. Download it again from where its author "
      "publishes it."
    ) from error


def _weights(content: Any) -> Any:
  """The state dict inside what a trainer saved around it."""
  for key in _CONTAINERS:
    if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
      return content[key]
  return content


def _tensors(path: Path, content: Any) -> dict[str, _Tensor]:
  """All tensors in nested dictionaries and attribute holders, by their joined names."""
  tensors, visited = {}, 0
  waiting = [(0, "", content)]
  while waiting:
    level, name, value = waiting.pop()
    visited += 1
    if level > _MOST_LEVELS or visited > _MOST_ENTRIES:
      raise UnusableFileError(
        f"{path}: its pickle nests dictionaries more than {_MOST_LEVELS} deep or has more than "
        f"{_MOST_ENTRIES} entries, which no weights do. Save the model's state_dict alone."
      )
    if isinstance(value, Instance):
      value = value.state
    if isinstance(value, Mapping):
      inside = [
        (level + 1, f"{name}.{key}" if name else str(key), part) for key, part in value.items()
      ]
      waiting += reversed(inside)
    elif (tensor := _as_tensor(value)) is not None:
      if name in tensors:
        raise UnusableFileError(f"{path}: two of its tensors are named {name}.")
      tensors[name] = tensor
  return tensors


def _as_tensor(value: Any) -> _Tensor | None:
  if not isinstance(value, Call):
    return None
  if value.function == _PARAMETER:
    value = value.arguments[0]
  if not isinstance(value, Call) or value.function != _TENSOR:
    return None
  storage, offset, shape, strides, *_ = value.arguments
  if not isinstance(storage, Persistent):
    raise ValueError("a tensor without data")
  _, kind, key, *_ = storage.key
  tensor = _Tensor(str(key), np.dtype(STORAGES[kind.name]), offset, tuple(shape), tuple(strides))
  numbers = (offset, *tensor.shape, *tensor.strides)
  if (
    len(tensor.shape) != len(tensor.strides)
    or len(tensor.shape) > 32
    or any(type(number) is not int or number < 0 for number in numbers)
  ):
    raise ValueError("a tensor of impossible shape or strides")
  return tensor


def _check_extent(path: Path, name: str, tensor: _Tensor, stored: int) -> None:
  """Refuses a tensor beyond its data, or that repeats them: either may be of any size."""
  count = stored // tensor.dtype.itemsize
  if tensor.offset + tensor.span > count or math.prod(tensor.shape) > count:
    raise UnusableFileError(
      f"{path}: truncated or damaged, {name} {list(tensor.shape)} is larger than its {count} "
      "stored numbers. Download it again."
    )


def _reader(path: Path, root: str, name: str, tensor: _Tensor):
  def read() -> np.ndarray:
    dtype = tensor.dtype
    steps = tuple(stride * dtype.itemsize for stride in tensor.strides)
    with (
      reading(path, name),
      zipfile.ZipFile(path) as archive,
      archive.open(f"{root}data/{tensor.key}") as file,
    ):
      file.seek(tensor.offset * dtype.itemsize)
      data = np.frombuffer(file.read(tensor.span * dtype.itemsize), dtype, tensor.span)
    return np.lib.stride_tricks.as_strided(data, tensor.shape, steps, writeable=False)

  return read
