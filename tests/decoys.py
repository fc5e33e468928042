"""Files of somebody else's, that nothing of ours may change."""

import os
from pathlib import Path

NAMES = (
  "config.json", "summary.json", "episodes.jsonl", ".lock", ".mdtrap_jax", ".summary.json.partial",
  "study.csv", "study.png", "model.safetensors", "snapshots/0/state", "snapshots/7/about",
  "snapshots/0123456789abcdef.snapshot", "events/events.out", "figures/a.png",
  "process-1/config.json", "vlm/config.json", "vlm/episodes.jsonl", "photos/cats/1.png",
  "features.npy", "labels.npy", "identity.json", ".hidden",
)  # fmt: skip


def plant(folder: Path) -> Path:
  """Fills a folder with files and links of all names that a run uses itself."""
  for number, name in enumerate(NAMES):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{name} of somebody else's\n" * (number + 1))
    path.chmod(0o640)
  (folder / "empty").mkdir()
  (folder / "read-only.txt").write_text("keep")
  (folder / "read-only.txt").chmod(0o444)
  (folder / "link").symlink_to("model.safetensors")
  (folder / "nowhere").symlink_to("missing")
  return folder


def state(folder: Path) -> dict[str, tuple]:
  """Kind, mode, inode and content of everything in a folder, to be compared later."""
  found = {}
  for root, folders, names in os.walk(folder):
    for name in [*folders, *names]:
      path = Path(root) / name
      content = None
      if path.is_symlink():
        content = os.readlink(path)
      elif path.is_file():
        content = path.read_bytes()
      found[str(path.relative_to(folder))] = (path.lstat().st_mode, path.lstat().st_ino, content)
  return found
