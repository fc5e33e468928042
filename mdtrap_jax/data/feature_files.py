"""Features of one's own, from files: any that cannot be read ends in one line that names it.

They are a folder with `features.npy` `[n, ...]` (read as a memory map) and `labels.npy` `[n]`, or
a folder of such folders, by domain; one of these `.npy` files; or a `.npz` file with `features`,
`labels` and, if the classes have names, `classes` (of several sets `<domain>/features` and so on).
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from pathlib import Path

import numpy as np

from mdtrap_jax import files
from mdtrap_jax.data.feature_set import FeatureSet, check_features

_FORMATS = (
  "Features are a .npz file (np.savez('x.npz', features=…, labels=…)), or a folder with "
  "features.npy and labels.npy"
)


def read_features(path: str | Path, domain: str) -> FeatureSet:
  """A feature set from a file or folder.

  Args:
    path: one of those described above.
    domain: which set of several; also the name in messages.

  Raises:
    FileNotFoundError: there is no such thing.
    ValueError: features or labels that cannot be right, or cannot be read.
  """
  is_array = os.fspath(path).endswith(".npy")
  path = Path((files.beside if is_array else files.local)(path))
  if path.is_file():
    if path.suffix == ".npy":
      return _read_folder(path.parent, domain, path.name)
    if path.suffix != ".npz":
      raise ValueError(f"{path} is no file of features. {_FORMATS}.")
    return _read_npz(path, domain)
  return _read_folder(path / domain if (path / domain).is_dir() else path, domain)


def _read_folder(folder: Path, domain: str, features: str = "features.npy") -> FeatureSet:
  labels = features.replace("features", "labels") if "features" in features else "labels.npy"
  if not (folder / features).is_file():
    raise FileNotFoundError(
      f"{folder} has no {features}. Set --config.data.features= to something else. {_FORMATS}."
    )
  if not (folder / labels).is_file():
    raise FileNotFoundError(f"{folder} has {features} but no {labels} beside it.")
  return _check(
    domain,
    str(folder),
    load_array(folder / features, mmap_mode="r"),
    load_array(folder / labels),
    _class_names(folder / "identity.json"),
  )


def load_array(path: Path, mmap_mode: str | None = None) -> np.ndarray:
  """The array of a `.npy` file.

  Raises:
    ValueError: the file is no such file, cut short, or holds Python objects.
  """
  try:
    with open(path, "rb") as file:
      _check_header(file, path.stat().st_size)
    return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
  except Exception as error:  # numpy's parser raises whatever damaged bytes lead it to
    raise ValueError(f"{path} cannot be read: {_reason(error)}. Write it again.") from error


def _read_npz(path: Path, domain: str) -> FeatureSet:
  try:
    file = zipfile.ZipFile(path)
  except OSError:
    raise
  except Exception as error:  # as `load_array`
    raise ValueError(
      f"{path} cannot be read: {_reason(error)}. It was cut short, or is no .npz file; write it "
      "again with np.savez."
    ) from error
  with file:
    held = {name.removesuffix(".npy") for name in file.namelist()}
    prefix = f"{domain}/" if f"{domain}/features" in held else ""
    arrays = {
      part: _read_member(path, file, f"{prefix}{part}.npy")
      for part in ("features", "labels", "classes")
      if prefix + part in held
    }
  for part in ("features", "labels"):
    if part not in arrays:
      sets = sorted(n.removesuffix("/features") for n in held if n.endswith("/features"))
      known = f"; it has the domains {', '.join(sets)}" if sets else ""
      raise ValueError(f"{path} has no array {prefix + part!r}{known}.")
  names = arrays.get("classes")
  if names is not None:
    if names.ndim != 1 or names.dtype.kind not in "USiu":
      raise ValueError(
        f"{path}: the array {prefix + 'classes'!r} is {names.dtype} {list(names.shape)}; it must "
        "be [C] names."
      )
    names = [n.decode(errors="replace") if isinstance(n, bytes) else str(n) for n in names]
  return _check(domain, str(path), arrays["features"], arrays["labels"], names)


def _read_member(path: Path, file: zipfile.ZipFile, name: str) -> np.ndarray:
  try:
    with file.open(name) as member:
      _check_header(member, file.getinfo(name).file_size)
    size, memory = file.getinfo(name).file_size, _memory()
    if size > memory / 2:
      raise ValueError(
        f"unpacked it would take {size / 2**30:.1f} GiB of this machine's {memory / 2**30:.1f} "
        "GiB of memory; in a folder, as features.npy, it is read row by row"
      )
    with file.open(name) as member:
      return np.lib.format.read_array(member, allow_pickle=False)
  except Exception as error:  # as `load_array`
    array = name.removesuffix(".npy")
    raise ValueError(
      f"{path}: the array {array!r} cannot be read: {_reason(error)}. Write the file again."
    ) from error


def _check_header(file, size: int) -> None:
  """Compares what an array's header declares with the bytes there are, before any is read."""
  version = np.lib.format.read_magic(file)
  read = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
  }.get(version)
  if read is None:
    raise ValueError(f"version {version} of the format is not known")
  shape, _, dtype = read(file)
  if dtype.hasobject:
    raise ValueError("it holds Python objects; convert it with astype to numbers or text")
  if (needed := file.tell() + math.prod(shape) * dtype.itemsize) != size:
    raise ValueError(f"an array of shape {list(shape)} needs {needed} bytes, not {size}")


def _class_names(path: Path) -> list[str] | None:
  """The classes of a folder that says them."""
  if not path.is_file():
    return None
  try:
    names = json.loads(path.read_text(encoding="utf-8"))["class_names"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
      raise ValueError("its class_names are no list of names")
  except (ValueError, TypeError, KeyError, RecursionError) as error:
    raise ValueError(
      f"{path} is damaged: {_reason(error)}. Remove it, and classes get numbers for names."
    ) from error
  return names


def _check(domain: str, where: str, *arrays) -> FeatureSet:
  """`check_features`, whose messages begin with the file."""
  return check_features(f"{domain} in {where}", *arrays)._replace(name=domain)


def _memory() -> int:
  """Bytes of this machine's memory."""
  return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _reason(error: Exception) -> str:
  """What an exception says, in one line without its full stop."""
  text = " ".join(str(error).split()) or type(error).__name__
  return f"no {text}" if isinstance(error, KeyError) else text.rstrip(".")
