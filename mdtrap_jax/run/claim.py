"""Whose a directory is: a run takes only an empty one, marks it, and touches no other.

Links in a work directory are refused: what they lead to is not the run's. The work directory
itself may be given as a link.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from mdtrap_jax import files

MARKER = ".mdtrap_jax"
LAYOUT = 1  # of the files of a run; another one is another version's
_PROCESS = re.compile(r"process-\d+", re.IGNORECASE)
_HEAD = "mdtrap_jax, layout "
_ABOUT = "This directory is a run's, which replaces and removes its own files here.\n"


def check_variant(name: str) -> str:
  """A variant's name, which becomes a directory; cells of a study have parts, `a/b`.

  Raises:
    ValueError: it would lead out of the work directory, or is what the run itself uses.
  """
  for part in name.split("/"):
    files.check_name(part, "variant")
    if files.is_reserved(part):
      raise ValueError(f"variant: the name {name!r} is one of the run's own files: give another.")
  return name


def claim_root(root: str | Path) -> Path:
  """Makes or takes a work directory, without asking what runs are in it.

  Returns:
    Its path without links.

  Raises:
    ValueError, OSError: it is something else's, or inside a run; nothing was written then.
  """
  try:
    root = Path(root).resolve()
  except RuntimeError as error:  # links in a circle
    raise OSError(f"{root} is a link that leads to itself: give another --workdir.") from error
  if not _exists(root) or not is_ours(root):
    for parent in root.parents:
      if is_ours(parent):
        raise ValueError(f"{root} is inside {parent}, which is a run's: give another --workdir.")
    check(root)
    root.parent.mkdir(parents=True, exist_ok=True)
    mark(root)
  return root


def claim(root: str | Path, name: str = "", process: int = 0) -> Path:
  """Makes the directory of one variant of a run, or takes one that is this run's already.

  Args:
    root: the work directory.
    name: of the variant, or empty.
    process: which of several processes writes there.

  Returns:
    Where that process writes the variant's files; every directory down to it is marked.

  Raises:
    ValueError, OSError: it is something else's, inside another run, or holds other runs; nothing
      was written then.
  """
  parts = check_variant(name).split("/") if name else []
  root = claim_root(root)
  base = root / f"process-{process}" if process else root
  folder = base
  steps = [base, *(folder := folder / part for part in parts)]
  for step in steps:  # before anything is made
    check(step)
  for step in steps[:-1]:
    if _exists(step / "config.json"):
      raise ValueError(
        f"{step} is a run without variants, and {folder.name} would be a run inside it: give "
        "another --workdir."
      )
  for below in _runs_below(folder):
    raise ValueError(f"{folder} holds another run, {below}: give another --workdir.")
  for step in steps:
    mark(step)
  return folder


def mark(folder: Path) -> None:
  """Makes and marks a directory, or marks an empty one; one of ours stays as it is.

  Raises:
    ValueError, OSError: it is something else's.
  """
  check(folder)
  folder.mkdir(exist_ok=True)
  if not is_ours(folder):
    # In place and not renamed to it: processes that start at once would find each other's files.
    descriptor = open_regular(folder / MARKER, os.O_WRONLY | os.O_CREAT)
    with open(descriptor, "w", encoding="utf-8") as file:
      file.write(_HEAD + f"{LAYOUT}\n" + _ABOUT)


def is_ours(folder: Path) -> bool:
  """Whether a directory carries our marker.

  Raises:
    ValueError: it does, of another version.
  """
  try:
    with open(open_regular(folder / MARKER, os.O_RDONLY), errors="replace") as file:
      line = file.readline(100).strip()
  except OSError:
    return False
  if not line.startswith(_HEAD):
    return False
  if line != f"{_HEAD}{LAYOUT}":
    raise ValueError(
      f"{folder} is a run of another version of mdtrap_jax, and runs are resumed within one "
      "version only: give another --workdir."
    )
  return True


def is_process(folder: Path) -> bool:
  """Whether a directory of a run holds the files of another of its processes."""
  return _PROCESS.fullmatch(folder.name) is not None


def open_regular(path: Path, flags: int) -> int:
  """A descriptor of a regular file; a link is not followed and a pipe not waited for.

  Raises:
    OSError: it is something else, or cannot be opened.
  """
  try:
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
  except OSError as error:
    if error.errno in (errno.ELOOP, errno.ENXIO):
      raise _not_followed(path) from error
    raise
  if not stat.S_ISREG(os.fstat(descriptor).st_mode):
    os.close(descriptor)
    raise _not_followed(path)
  return descriptor


def _not_followed(path: Path) -> OSError:
  return OSError(
    f"{path} is a link or no plain file, and a run writes to files of its own only: remove it "
    "or give another --workdir."
  )


def check(folder: Path) -> None:
  """Refuses a directory that is neither ours, nor empty, nor yet to be made."""
  try:
    if not stat.S_ISDIR(folder.lstat().st_mode):
      raise NotADirectoryError(
        f"{folder} is a file or link where a run needs a directory of its own: remove it or give "
        "another --workdir."
      )
  except FileNotFoundError:
    return
  if is_ours(folder):
    return
  names = set(os.listdir(folder))
  if MARKER in names:
    marker = (folder / MARKER).lstat()
    if stat.S_ISREG(marker.st_mode) and not marker.st_size:  # being written, or a kill's
      names.remove(MARKER)
  if names and is_ours(folder):  # now: another process of the same run was at it
    return
  if {"config.json", "episodes.jsonl"} <= names:
    raise ValueError(
      f"{folder} looks like a run of an older version of mdtrap_jax, and runs are resumed within "
      "one version only: give another --workdir."
    )
  if names:
    raise ValueError(
      f"{folder} is not empty and no run of mdtrap_jax (it holds {min(names)!r}): give a new or "
      "empty --workdir."
    )


def _exists(path: Path) -> bool:
  return os.path.lexists(path)


def _runs_below(folder: Path) -> Iterator[Path]:
  """Directories of ours below one, other than its processes', that have a `config.json`."""
  if not folder.is_dir():
    return
  for child in sorted(folder.iterdir()):
    if child.is_symlink() or not child.is_dir() or not is_ours(child):
      continue
    if files.is_reserved(child.name) and not is_process(child):  # a part of the run, as `model`
      continue
    if not is_process(child) and _exists(child / "config.json"):
      yield child
    yield from _runs_below(child)
