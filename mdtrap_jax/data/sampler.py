"""Which classes and images an episode has: a pure function of the seed and its number.

Legend: `C` classes (ways), `K` shots, `Q` queries per class, `n` images of the source.
"""

from typing import NamedTuple

import numpy as np

from mdtrap_jax.data.draws import shuffle


class EpisodeIndices(NamedTuple):
  """The images of one episode; all numbers but `classes` are indices into the source."""

  classes: np.ndarray  # [C] int32, classes of the source in drawn order.
  support: np.ndarray  # [C, K] int64.
  query: np.ndarray  # [C, Q] int64.
  spare: tuple[np.ndarray, ...]  # C arrays [...] int64: the class's other images, drawn order.


def sample_episode(
  labels: np.ndarray, *, seed: int, episode: int, ways: int, shots: int, queries: int
) -> EpisodeIndices:
  """Draws `C` classes, then `K` support and `Q` query images of each, without replacement.

  All randomness comes from a Philox generator keyed by `(seed, episode)`, so an episode is the
  same whatever was drawn before it, on whichever machine. With the same labels and ways, fewer
  shots draw the same classes and a prefix of the same images.

  Args:
    labels: int32 `[n]`; images with a negative label are never drawn.
    seed: Of the run, 0 to 2⁶⁴-1.
    episode: The episode's number, 0 to 2⁶⁴-1.
    ways: `C`.
    shots: `K`.
    queries: `Q`.

  Returns:
    The indices of the episode.

  Raises:
    ValueError: If a size or key is out of range, there are fewer than `C` classes, or a drawn
      class has fewer than `K + Q` images (`check_feasible` says so before any is drawn).
  """
  for name, value, least in (
    ("ways", ways, 1), ("shots", shots, 1), ("queries", queries, 1), ("seed", seed, 0),
    ("episode", episode, 0),
  ):  # fmt: skip
    if not least <= value < 2**64:
      raise ValueError(f"{name}={value} must be at least {least} and below 2**64.")
  labels = np.asarray(labels)
  available = np.unique(labels[labels >= 0])
  if len(available) < ways:
    raise ValueError(f"An episode of ways={ways} needs as many classes; {len(available)} exist.")
  bits = np.random.Philox(key=np.array([seed, episode], np.uint64))
  classes = shuffle(bits, available)[:ways].astype(np.int32)
  support, query, spare = [], [], []
  for label in classes:
    images = shuffle(bits, np.flatnonzero(labels == label).astype(np.int64))
    if len(images) < shots + queries:
      raise ValueError(
        f"Class {label} has {len(images)} images, fewer than shots + queries = {shots} + {queries}."
      )
    support.append(images[:shots])
    query.append(images[shots : shots + queries])
    spare.append(images[shots + queries :])
  return EpisodeIndices(classes, np.stack(support), np.stack(query), tuple(spare))
