"""`python -m tests.replay PATH…`: replays recordings of the reference implementations.

Prints one line per check; exits with 1 if any fails, and else with 2 if a path could not be
replayed. A path is a recording, or a folder of recordings.
"""

import sys
from pathlib import Path

import jax
import numpy as np

FLOAT64 = ("mind", "heads")  # kinds recorded in float64


def kind_of(path: Path) -> str:
  """Which replay a file or folder is for, by what it holds and not by its name.

  Raises:
    ValueError: it is in none of the known formats.
  """
  if path.is_dir():
    if (path / "io.npz").exists():
      return "encoders"
  elif path.suffix == ".npz":
    with np.load(path) as file:
      names = set(file.files)
    if "random_prototype_index" in names:
      return "mind"
    if (
      {"support", "support_labels"} <= names
      or {"ncc", "url", "url_unseen", "copa"} & names
      or {"support_12x12", "support_images_12x12"} & names
      or "train_losses" in names
    ):
      return "heads"
    if "token_ids" in names:
      return "encoders"
  raise ValueError(
    f"{path} is in none of the formats that can be replayed: mind_*.npz, "
    "copa_*.npz, url_*.npz, siglip_*.npz, pe_core_*.npz, or a folder with io.npz."
  )


def replay(path: Path):
  """The checks of one recording."""
  kind = kind_of(path)
  jax.config.update("jax_enable_x64", kind in FLOAT64)
  if kind == "mind":
    from tests.replay.mind import replay as run
  elif kind == "heads":
    from tests.replay.heads import replay as run
  else:
    from tests.replay.encoders import replay as run
  return run(path)


def main(arguments: list[str]) -> int:
  """Replays every path; the exit status."""
  if not arguments:
    print(__doc__)
    return 2
  failed = unread = 0
  for argument in arguments:
    path = Path(argument)
    print(path)
    try:
      if not path.exists():
        raise ValueError(f"{path} does not exist.")
      checks = replay(path)
    except ValueError as error:  # the other paths are replayed all the same
      print(f"  error: {error}")
      unread += 1
      continue
    for check in checks:
      print(f"  {check}")
      failed += not check.ok
  if unread:
    print(f"{unread} could not be replayed")
  print(f"{failed} FAIL" if failed else "all ok" if not unread else "the others: all ok")
  return 1 if failed else 2 * bool(unread)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
