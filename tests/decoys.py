"""A folder of a user's, of which not a byte, name, mode or link may change."""

import os
from pathlib import Path


def plant(folder: Path) -> Path:
  """Makes files, folders and links such as a person may have."""
  (folder / "photos" / "cats").mkdir(parents=True)
  (folder / "photos" / "cats" / "1.png").write_bytes(b"\x89PNG\x00one")
  (folder / "features.npy").write_bytes(b"mine")
  (folder / "identity.json").write_text("{}")
  (folder / ".hidden").write_text("secret")
  (folder / "empty").mkdir()
  (folder / "read-only.txt").write_text("keep")
  (folder / "read-only.txt").chmod(0o444)
  (folder / "link").symlink_to("photos")
  (folder / "dead").symlink_to("nowhere")
  return folder


def picture(folder: Path) -> dict[str, tuple]:
  """Every name below a folder with its kind, mode, content and link, to be compared later."""
  found = {}
  for root, folders, files in os.walk(folder):
    for name in (*folders, *files, ""):
      path = Path(root, name)
      status = path.lstat()
      inside = os.readlink(path) if path.is_symlink() else None
      if inside is None and path.is_file():
        inside = path.read_bytes()
      found[str(path)] = (status.st_mode, status.st_nlink, status.st_ino, inside)
  return found
