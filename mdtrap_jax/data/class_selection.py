"""Which images of a source take part: by class, by a list of files, by being enough."""

import difflib
import functools
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from absl import logging

from mdtrap_jax import files
from mdtrap_jax.data.content import Content, digest_of
from mdtrap_jax.data.names import nfc, shown
from mdtrap_jax.data.source import Source


class ClassSubset:
  """A source restricted to some classes, its images under their original indices.

  Images of the other classes keep their place but get the label -1, which is never drawn. So
  the indices in results mean the whole source's images whatever classes were kept, and a cache
  of its images serves every subset.
  """

  def __init__(self, source: Source, class_names: Sequence[str]):
    """Keeps `class_names`, in the source's own order."""
    kept = [label for label, name in enumerate(source.class_names) if name in set(class_names)]
    renumbered = np.full(len(source.class_names) + 1, -1, np.int32)  # The last is for -1 itself.
    renumbered[kept] = np.arange(len(kept))
    self._source = source
    self.name = source.name
    self.class_names = tuple(source.class_names[label] for label in kept)
    self.labels = renumbered[source.labels]  # [n] int32
    self.image = source.image
    self.describe = source.describe

  @property
  def identity(self) -> str:
    """The whole source's."""
    return self._source.identity

  def content(self) -> Content:
    """The whole source's: images of any class decide which indices the others have."""
    return self._source.content()


class FileSubset(ClassSubset):
  """A source restricted to the files of a list, its images under their original indices."""

  def __init__(self, source: Source, listing: str, named: frozenset[str]):
    """Keeps the files in `named`, as `source.files` spells them; `listing` is their list."""
    super().__init__(source, source.class_names)
    listed = np.array([name in named for name in source.files], bool)
    self.labels = np.where(listed, self.labels, -1).astype(np.int32)
    self._entry = {f"files of {listing}": (len(named), digest_of(sorted(named)))}

  @functools.cached_property
  def identity(self) -> str:
    """Of the whole source and the list."""
    return digest_of([self._source.identity, self._entry])

  def content(self) -> Content:
    """The whole source's, and the list."""
    return self._source.content() | self._entry


def keep_classes(source: Source, class_names: Sequence[str]) -> Source:
  """Restricts a source to the named classes; no names at all keep it whole.

  Raises:
    ValueError: If the source has no class of such a name.
  """
  own = {nfc(name): name for name in source.class_names}
  for name in class_names:
    if nfc(name) not in own:
      near = difflib.get_close_matches(name, source.class_names, n=1, cutoff=0.5)
      hint = f" Did you mean {near[0]!r}?" if near else ""
      raise ValueError(
        f"{source.name} has no class {name!r}.{hint} Its classes: "
        f"{', '.join(source.class_names)}. Change --config.data.classes."
      )
  return ClassSubset(source, [own[nfc(name)] for name in class_names]) if class_names else source


def keep_files(source: Source, listing: str | os.PathLike[str]) -> Source:
  """Restricts a source to the files of a list: the images that a reference draws from, say.

  Args:
    source: It has `files`, the relative name of each image.
    listing: A text file with one name a line, `/` between folders; of a longer path the end
      counts (`train/cat/1.jpg` is `cat/1.jpg`), and empty lines do not.

  Raises:
    OSError: If the list cannot be read.
    ValueError: If it is no text, names a file that is not there, or the source has no files.
  """
  path = shown(listing)
  if not hasattr(source, "files"):
    raise ValueError(f"{source.name} has no files, so --config.data.files={path} means nothing.")
  if not os.path.isfile(listing := files.local(listing)):
    raise FileNotFoundError(
      f"--config.data.files={path}: no such file. Give a text file with one image a line."
    )
  try:
    text = pathlib.Path(listing).read_text(encoding="utf-8-sig")
  except UnicodeDecodeError as error:
    raise ValueError(
      f"--config.data.files={path} is no UTF-8 text with one image a line."
    ) from error
  own = {file: file for file in source.files}
  for label, file in zip(source.labels, source.files, strict=True):  # By the name in prompts too.
    if label >= 0:
      own.setdefault(f"{source.class_names[label]}/{file.partition('/')[2]}", file)
  named, missing = set(), []
  for line in filter(None, (nfc(line.strip()) for line in text.splitlines())):
    parts = line.replace("\\", "/").split("/")
    ends = ("/".join(parts[start:]) for start in range(len(parts)))
    match = next((end for end in ends if end in own), None)
    named.add(own[match]) if match else missing.append(line)
  if missing or not named:
    raise ValueError(
      f"--config.data.files={path}: {len(missing)} of its {len(missing) + len(named)} files are "
      f"not in {source.name}{', the first is ' + shown(missing[0]) if missing else ''}. Its names "
      f"are written like {shown(source.files[0])}."
    )
  return FileSubset(source, os.path.basename(listing), frozenset(named))


def describe_classes(source: Source) -> str:
  """What was understood: the classes with the number of their images, a line each.

  >>> from mdtrap_jax.data.array_source import ArraySource
  >>> pixels = np.zeros((3, 2, 2, 3), np.uint8)
  >>> print(describe_classes(ArraySource(pixels, np.array([0, 1, 1]), ["ant", "bee"])))
  arrays: 2 classes, 3 images
    ant: 1
    bee: 2
  """
  counts = np.bincount(source.labels[source.labels >= 0], minlength=len(source.class_names))
  aside = int((source.labels < 0).sum())
  rest = f" ({aside} more are left out)" if aside else ""
  lines = [f"{source.name}: {len(counts)} classes, {counts.sum()} images{rest}"]
  lines += [
    f"  {shown(name)}: {count}" for name, count in zip(source.class_names, counts, strict=True)
  ]
  return "\n".join(lines)


def check_feasible(
  source: Source, ways: int, shots: int, queries: int, small_classes: str = "error"
) -> Source:
  """Makes sure that every class can fill an episode and that there are enough classes.

  Args:
    source: Where episodes are drawn.
    ways: Classes per episode, `C`.
    shots: Support images per class, `K`.
    queries: Query images per class, `Q`.
    small_classes: What becomes of a class with fewer than `K + Q` images: "error", or "drop" to
      leave it out of all episodes, with a warning.

  Returns:
    The source, without its small classes if they were dropped.

  Raises:
    ValueError: If episodes cannot be drawn, naming every class at fault and its count.
  """
  if small_classes not in ("error", "drop"):
    raise ValueError(f"small_classes={small_classes!r} is neither 'error' nor 'drop'.")
  if ways < 2:
    raise ValueError(
      f"ways={ways}: with a single class every answer is right. Set --config.data.ways= to 2 or "
      "more."
    )
  needed = shots + queries
  counts = np.bincount(source.labels[source.labels >= 0], minlength=len(source.class_names))
  small = [
    f"{name} ({count})"
    for name, count in zip(source.class_names, counts, strict=True)
    if count < needed
  ]
  if small:
    lacking = (
      f"{source.name}: fewer than shots + queries = {shots} + {queries} = {needed} images in "
      f"{', '.join(small)}."
    )
    if small_classes == "error":
      raise ValueError(
        f"{lacking} Ask for fewer shots or queries, leave such classes out with "
        "--config.data.small_classes=drop, or name those to keep in --config.data.classes."
      )
    logging.warning("%s Left out of all episodes.", lacking)
    large = [
      name for name, count in zip(source.class_names, counts, strict=True) if count >= needed
    ]
    source = ClassSubset(source, large)
  if len(source.class_names) < ways:
    raise ValueError(
      f"{source.name}: an episode of {ways} ways needs as many classes with {needed} images "
      f"each, but there are {len(source.class_names)} ({', '.join(source.class_names)}). Set "
      "--config.data.ways= to at most that, ask for fewer shots or queries, or add images."
    )
  return source
