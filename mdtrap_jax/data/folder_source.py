"""Images in a folder of the user's own, one subfolder per class."""

import collections
import functools
import os
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging

from mdtrap_jax import files
from mdtrap_jax.data import images, layout
from mdtrap_jax.data.content import Content, digest_of, identity_of
from mdtrap_jax.data.names import is_printable, listed, nfc, shown

_PATH = "Set --config.data.path= to a folder with one subfolder per class."


class FolderSource:
  """A folder with one subfolder per class, of any depth; symbolic links are followed.

  Attributes:
    name: The folder.
    class_names: As used in prompts, in NFC.
    labels: [n] int32.
    files: `n` names relative to the folder, in NFC.
  """

  def __init__(
    self,
    path: str | os.PathLike[str],
    class_names: Mapping[str, str] | Sequence[str] | None = None,
    decoding: images.Decoding = images.DEFAULT,
  ):
    """Lists the folder; no image is read yet.

    Args:
      path: The folder. Its subfolders, sorted by name, are the classes; hidden files and
        folders are passed over, and so are, with a warning, files that are not images.
      class_names: The name in prompts of each subfolder that has another than its own, or the
        names of all subfolders in sorted order.
      decoding: What becomes of depth and transparency.

    Raises:
      OSError: If there is no such folder, or a part of it cannot be listed.
      ValueError: If it has no subfolder with images, its subfolders are or may be no classes,
        or the names do not fit it.
    """
    root = files.local(path)
    if "\0" in root or not os.path.isdir(root):
      what = "not a folder" if os.path.lexists(root.replace("\0", "")) else "no such folder"
      raise FileNotFoundError(f"{shown(root)}: {what}. {_PATH}")
    self.name = shown(root)
    given = class_names or ()
    confirmed = (*given.keys(), *given.values()) if isinstance(given, Mapping) else given
    root, folders = layout.class_folders(root, confirmed)
    self.class_names = _class_names(self.name, folders, given)
    self.files: list[str] = []
    self._paths: list[str] = []
    self._decoding, self._notes = decoding, images.Notes(self.name)
    labels, others, passed, owners = [], [], [], {}
    for label, folder in enumerate(folders):
      found = layout.class_files(os.path.join(root, folder))
      for place in found.visited:
        if (owner := owners.setdefault(place, folder)) != folder:
          raise ValueError(
            f"{self.name}: the classes {shown(owner)} and {shown(folder)} lead to one folder by "
            "links, so its images would have two labels. Remove the link that is wrong."
          )
      self._paths += found.images
      self.files += [nfc(os.path.relpath(file, root)) for file in found.images]
      labels += [label] * len(found.images)
      others += found.others
      passed += found.folders
    hint = images.readers(os.path.splitext(file)[1].lower() for file in others)
    if others:
      logging.warning(
        "%s: passed over %d files that are not images, among them %s%s.",
        self.name, len(others), listed(others, 3), hint,
      )  # fmt: skip
    if passed:
      logging.warning(
        "%s: passed over %d folders that hold no images of a class, among them %s.",
        self.name, len(passed), listed(passed, 3),
      )  # fmt: skip
    if not self._paths:
      raise ValueError(
        f"{self.name} holds no images in subfolders (subfolders: {listed(folders) or 'none'})"
        f"{hint}. "
        "Put the images of each class into a subfolder of its own, named after the class."
      )
    self.labels = np.array(labels, np.int32)

  @functools.cached_property
  def identity(self) -> str:
    """Hex digest of the images, the class names and how images are decoded."""
    return identity_of(self.class_names, self.content(), self._decoding, images.VERSION)

  @property
  def paths(self) -> tuple[str, ...]:
    """Of the `n` images, to be opened."""
    return tuple(self._paths)

  def content(self) -> Content:
    """Number of images and a digest of names and bytes for each class."""
    return dict(self._content)

  @functools.cached_property
  def _content(self) -> Content:
    readable = [
      path for path in self._paths if os.path.isfile(path) and os.access(path, os.R_OK)
    ]  # The others fail when they are drawn.
    known = dict(zip(readable, files.digests(readable), strict=True))
    entries = [[] for _ in self.class_names]
    for label, path, name in zip(self.labels, self._paths, self.files, strict=True):
      entries[label].append((name.partition("/")[2], known.get(path)))
    return {
      name: (len(entry), digest_of(entry))
      for name, entry in zip(self.class_names, entries, strict=True)
    }

  def image(self, index: int) -> np.ndarray:
    """Decodes an image, uint8 `[H, W, 3]`."""
    return images.decode(self._paths[index], self._paths[index], self._decoding, self._notes)

  def describe(self, index: int) -> str:
    """The image's file."""
    return shown(self._paths[index])


def _class_names(
  root: str, folders: Sequence[str], given: Mapping[str, str] | Sequence[str]
) -> tuple[str, ...]:
  """The name in prompts of each folder."""
  if strange := [name for name in folders if not is_printable(name)]:
    raise ValueError(
      f"{root}: a class takes its name from its folder, but the names {listed(strange)} are not "
      "UTF-8 text of one line. Rename them."
    )
  own = [nfc(name) for name in folders]
  if twice := [name for name, count in collections.Counter(own).items() if count > 1]:
    raise ValueError(
      f"{root}: several folders have the name {listed(twice)}, written with other accents "
      "(Unicode NFC and NFD). Rename or merge them."
    )
  if given and not isinstance(given, Mapping):
    if len(given) != len(own):
      raise ValueError(
        f"--config.data.class_names has {len(given)} names and {root} has {len(own)} classes: "
        f"{', '.join(own)}. Name each, in this order."
      )
    given = dict(zip(own, given, strict=True))
  renamed = {nfc(key): nfc(value) for key, value in dict(given).items()}
  if unknown := sorted(set(renamed) - set(own)):
    raise ValueError(f"{root} has no subfolder {listed(unknown)} to name; it has {listed(own)}.")
  names = tuple(renamed.get(name, name) for name in own)
  if len(set(names)) < len(names):
    raise ValueError(f"{root}: two classes have the same name among {names}.")
  return names
