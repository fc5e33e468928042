"""Which folders are classes, and which files of a class are its images.

A level of folders that is no class (splits, folds, images beside masks) would make episodes of
the wrong question, and print an accuracy. So what is surely no class stops with the path to
give instead; what may be either is asked for; what disks and cameras leave behind is passed over.
"""

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from absl import logging

from mdtrap_jax.data.images import SUFFIXES
from mdtrap_jax.data.names import listed, nfc, shown

# What file servers, archives and viewers put beside images.
_LEFTOVERS = frozenset(
  (
    "@eadir", "@recycle", "@recently-snapshot", "@sharebin", "@tmp", "#recycle", "#snapshot",
    "$recycle.bin", "system volume information", "lost+found", "__macosx", "__pycache__",
    "thumbnail", "thumbnails",
  )
)  # fmt: skip
SPLITS = frozenset(
  (
    "train", "training", "trainval", "val", "valid", "validation", "dev", "test", "testing",
    "eval", "evaluation", "holdout",
  )
)  # fmt: skip
_FILLERS = frozenset(("set", "data", "dataset", "images", "image", "imgs", "img", "split", "seg"))
_NUMBERED = re.compile(r"(fold|split|part|batch|shard|cv)[ _-]*\d+", re.IGNORECASE)
_PICTURES = frozenset(("image", "images", "img", "imgs", "jpegimages", "pictures", "photos"))
_MASKS = frozenset(
  (
    "mask", "masks", "segmentation", "segmentations", "segmentationclass", "annotation",
    "annotations", "label", "labels", "groundtruth", "ground_truth", "ground truth", "gt",
    "segmentationobject",
  )
)  # fmt: skip
_DEEPEST = 8  # folders around folders around the classes


class ClassFiles(NamedTuple):
  """What lies below the folder of one class."""

  images: list[str]  # paths, in the order of the source
  others: list[str]  # files that are no images, or no files
  folders: list[str]  # passed over
  visited: list[tuple[int, int]]  # device and inode of each folder


class _Level(NamedTuple):
  folders: list[str]  # names
  images: list[str]
  leftovers: list[str]


def class_folders(root: str, confirmed: Sequence[str] = ()) -> tuple[str, list[str]]:
  """Finds the folders that are the classes.

  Args:
    root: Where to look. A folder that holds nothing but one folder, which holds several, is
      entered, with a warning.
    confirmed: Names that the user gave to the folders, which settles that they are classes
      where that could be doubted.

  Returns:
    The folder that was entered and the names of its subfolders, sorted.

  Raises:
    ValueError: If a level is no class or may be none, with the path to give instead.
    OSError: If a folder cannot be listed.
  """
  root, level = _enter(root)
  leftovers = [name for name in level.leftovers if name[0] != "."]
  if leftovers:
    logging.warning(
      "%s: passed over %s, which hold no images of a class.", shown(root), listed(leftovers)
    )
  if level.images and level.folders:
    logging.warning(
      "%s: passed over %d images beside the folders of the classes, among them %s: they are of "
      "no class.", shown(root), len(level.images), listed(level.images, 3),
    )  # fmt: skip
  below = {name: _look(os.path.join(root, name)) for name in level.folders}
  if reason := _no_classes(root, below) or _doubtful(root, below, confirmed):
    raise ValueError(f"{shown(root)}: {reason}")
  if len(below) > 1 and all(len(deep.folders) > 1 and not deep.images for deep in below.values()):
    inside = (name for deep in below.values() for name in deep.folders)
    logging.warning(
      "%s: the folders %s are taken as the classes, not those in them (%s).",
      shown(root), listed(below), listed(dict.fromkeys(inside)),
    )  # fmt: skip
  return root, level.folders


def class_files(folder: str) -> ClassFiles:
  """The images below the folder of a class, sorted, links followed.

  A folder that several paths lead to is entered once. Of pipes, devices and sockets the name
  counts for nothing. Masks beside images are passed over.

  Raises:
    OSError: If a folder cannot be listed.
  """
  found, seen = ClassFiles([], [], [], []), set()
  pending: list[tuple[str, bool]] = [(folder, True)]  # Not recursion: nesting has no limit.
  while pending:
    path, is_folder = pending.pop()
    if not is_folder:
      regular = os.path.isfile(path) or not os.path.exists(path)  # A dead link fails when read.
      photo = regular and _suffix(path) in SUFFIXES
      (found.images if photo else found.others).append(path)
      continue
    try:
      status = os.stat(path)
    except OSError as error:
      raise _unlisted(path, error) from error
    place = status.st_dev, status.st_ino
    if place in seen:
      continue
    seen.add(place)
    found.visited.append(place)
    entries = _entries(path)
    passed = {entry.name for entry, is_folder in entries if is_folder and _leftover(entry.name)}
    pictures = any(
      entry.name.casefold() in _PICTURES if is_folder else _suffix(entry.name) in SUFFIXES
      for entry, is_folder in entries
    )
    if pictures:
      passed |= {e.name for e, is_folder in entries if is_folder and e.name.casefold() in _MASKS}
    found.folders.extend(os.path.join(path, name) for name in sorted(passed) if name[0] != ".")
    pending += [
      (entry.path, is_folder)
      for entry, is_folder in reversed(entries)
      if entry.name not in passed and entry.name[0] != "."
    ]
  return found


def _enter(root: str) -> tuple[str, _Level]:
  """Goes down while there is but one folder, if several lie at the end."""
  level = _look(root)
  path, lower = root, level
  for _ in range(_DEEPEST):
    if len(lower.folders) != 1 or lower.images:
      break
    path = os.path.join(path, lower.folders[0])
    lower = _look(path)
  if path == root or len(lower.folders) < 2 or lower.images:
    return root, level
  logging.warning(
    "%s holds one folder only; the %d folders in %s are taken as the classes.",
    shown(root), len(lower.folders), shown(path),
  )  # fmt: skip
  return path, lower


def _no_classes(root: str, below: dict[str, _Level]) -> str | None:
  """Why the folders are no classes, for all that is known."""
  splits = [name for name in below if _is_split(name)]
  if len(splits) > 1:
    start = next((name for name in splits if "train" in name.casefold()), splits[0])
    inside = sorted(set.union(*(set(below[name].folders) for name in splits)))
    remedy = (
      f"the classes seem to be the folders in them ({listed(inside)}). Give one split, as "
      f"--config.data.path={shown(os.path.join(root, start))}"
      if inside
      else "give a folder with one subfolder of images per class"
    )
    return f"its folders {listed(splits)} are splits, not classes; {remedy}."
  pictures = [name for name in below if name.casefold() in _PICTURES]
  masks = [name for name in below if name.casefold() in _MASKS]
  if pictures and (masks or len(pictures) == len(below)):
    classes = below[pictures[0]].folders
    path = shown(os.path.join(root, pictures[0]))
    remedy = (
      f"Give --config.data.path={path}, which has the folders {listed(classes)}"
      if classes
      else f"Sort the images of {path} into one subfolder per class"
    )
    return f"its folders {listed(pictures + masks)} are parts of a data set, not classes. {remedy}."
  return None


def _doubtful(root: str, below: dict[str, _Level], confirmed: Sequence[str]) -> str | None:
  """Why the level below might be the classes, unless the user named the upper one."""
  lower = {nfc(folder) for level in below.values() for folder in level.folders}
  if confirmed and not {_plain(name) for name in confirmed} & {_plain(name) for name in lower}:
    return None
  names = {nfc(name) for name in below}
  for name, level in below.items():
    beside = names & {nfc(folder) for folder in level.folders}
    if len(beside - {nfc(name)}) > 1:
      return (
        f"its folder {shown(name)} has subfolders named like the classes beside it "
        f"({listed(sorted(beside))}), so it seems to be no class. Move it elsewhere, or if it is "
        "a class, name all folders in --config.data.class_names."
      )
  if len(below) < 2 or any(level.images for level in below.values()):
    return None
  common = set.intersection(
    *({nfc(folder) for folder in level.folders} for level in below.values())
  )
  if len(common) < 2:
    return None
  first = shown(os.path.join(root, next(iter(below))))
  return (
    f"each of its folders {listed(below)} has the subfolders {listed(sorted(common))}, so either "
    f"may be the classes. If the lower, give one folder, as --config.data.path={first}; if the "
    "upper, name each of them in --config.data.class_names."
  )


def _is_split(name: str) -> bool:
  """`train`, `val_images`, `training_set`, `seg_test`, `fold1`; not `bullet train`."""
  words = set(re.findall(r"[^\W\d_]+", name.casefold()))
  named = bool(words & SPLITS) and words <= SPLITS | _FILLERS
  return named or _NUMBERED.fullmatch(name) is not None


def _look(folder: str) -> _Level:
  level = _Level([], [], [])
  for entry, is_folder in _entries(folder):
    if _leftover(entry.name):
      level.leftovers.append(entry.name)
    elif is_folder:
      level.folders.append(entry.name)
    elif _suffix(entry.name) in SUFFIXES:
      level.images.append(entry.name)
  return level


def _leftover(name: str) -> bool:
  return name.startswith(".") or name.casefold() in _LEFTOVERS


def _entries(folder: str) -> list[tuple[os.DirEntry, bool]]:
  """What a folder holds, sorted alike however accents were typed, and what of it are folders."""
  try:
    with os.scandir(folder) as entries:
      found = [(entry, _is_folder(entry)) for entry in entries]
  except OSError as error:
    raise _unlisted(folder, error) from error
  return sorted(found, key=lambda item: (nfc(item[0].name), item[0].name))


def _is_folder(entry: os.DirEntry) -> bool:
  try:
    return entry.is_dir()
  except OSError:  # A link that leads to itself.
    return False


def _unlisted(folder: str, error: OSError) -> OSError:
  where = shown(folder)
  where = where if len(where) < 300 else f"{where[:200]}… ({where.count('/')} folders deep)"
  return OSError(f"Cannot list the folder {where}: {error.strerror}. Move it away or repair it.")


def _suffix(path: str) -> str:
  return os.path.splitext(path)[1].lower()


def _plain(name: str) -> str:
  return re.sub(r"[\W_]+", " ", nfc(name).casefold()).strip()
