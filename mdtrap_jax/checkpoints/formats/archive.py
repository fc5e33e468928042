"""Opens zip archives of arrays, which may be made to expand without end."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path

from mdtrap_jax.checkpoints.formats.arrays import UnusableFileError

# Weights hardly compress; zeros do, a thousandfold, and small archives of them are harmless.
MOST_EXPANSION = 64
_HARMLESS = 2**24  # bytes
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
  """An archive whose members have names of their own and sizes that its own size allows.

  Raises:
    UnusableFileError: it expands far beyond its size, repeats a name, or is compressed by a
      method that arrays are not.
  """
  with zipfile.ZipFile(path) as archive:
    members = archive.infolist()
    expanded, size = sum(member.file_size for member in members), path.stat().st_size
    if expanded > MOST_EXPANSION * size + _HARMLESS:
      raise UnusableFileError(
        f"{path}: its {size} bytes claim to expand to {expanded}, which no weights do. "
        "Download it from where its author publishes it."
      )
    if len({member.filename for member in members}) < len(members):
      raise UnusableFileError(f"{path}: two files in the archive have one name. Download it again.")
    if any(member.compress_type not in _METHODS for member in members):
      raise UnusableFileError(
        f"{path}: compressed by a method that no writer of weights uses. Save it again, "
        "uncompressed."
      )
    yield archive
