"""Zero-shot accuracy by domain and severity: `python -m mdtrap_jax.world.zero_shot`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from mdtrap_jax import checkpoints
from mdtrap_jax.data.prompts import DEFAULT_TEMPLATE, make_prompts
from mdtrap_jax.data.sampler import sample_episode
from mdtrap_jax.data.source import Source
from mdtrap_jax.data.views import normalize
from mdtrap_jax.models.vlm import Params, VisionLanguageModel
from mdtrap_jax.objectives.losses import unit
from mdtrap_jax.statistics import Accuracy, mean_and_ci
from mdtrap_jax.world import LOOKS, DigitsSource, WorldSource

SEVERITIES = (0.0, 0.25, 0.5, 0.75, 1.0)
BATCH = 256  # images encoded at once


class Episodes(NamedTuple):
  """`E` drawn episodes, indices into one source."""

  classes: np.ndarray  # [E, C]
  query: np.ndarray  # [E, C, Q] of images


def draw(labels: np.ndarray, *, episodes: int, ways: int, queries: int, seed: int) -> Episodes:
  """The first episodes that few-shot adaptation with one shot draws, without their support.

  Raises:
    ValueError: a class has fewer than `queries` + 1 images, or there are fewer than `ways`.
  """
  drawn = [
    sample_episode(labels, seed=seed, episode=number, ways=ways, shots=1, queries=queries)
    for number in range(episodes)
  ]
  return Episodes(np.stack([e.classes for e in drawn]), np.stack([e.query for e in drawn]))


def scores(table: jax.Array, episodes: Episodes) -> jax.Array:
  """Cosines of every episode's queries with its classes, `[E, C, Q, C]`.

  Args:
    table: `[n, classes]`, of all images with all classes.
    episodes: drawn from them.
  """
  return table[episodes.query[..., None], episodes.classes[:, None, None, :]]


def encode_image(model: VisionLanguageModel, params: Params, images: jax.Array) -> jax.Array:
  """Unit-norm embeddings `[B, D]` of uint8 images."""
  return unit(model.encode_image(params, normalize(images, model.image_mean, model.image_std)))


_encode_image = jax.jit(encode_image, static_argnums=0)
_encode_text = jax.jit(
  lambda model, params, ids: unit(model.encode_text(params, ids)), static_argnums=0
)


def cosines(
  model: VisionLanguageModel,
  params: Params,
  source: Source,
  template: str = DEFAULT_TEMPLATE,
) -> np.ndarray:
  """Cosine of every image of a source with the prompt of every class.

  Returns:
    `[n, classes] float32`.
  """
  text = _encode_text(model, params, model.tokenize(make_prompts(source.class_names, template)))
  rows = []
  for start in range(0, len(source.labels), BATCH):
    # The last batch is filled up with its last image, so that one program serves all.
    index = np.minimum(np.arange(start, start + BATCH), len(source.labels) - 1)
    images = np.stack([source.image(i) for i in index])
    rows.append(np.asarray(_encode_image(model, params, images) @ text.T))
  return np.concatenate(rows)[: len(source.labels)]


def evaluate(
  model: VisionLanguageModel,
  params: Params,
  source: Source,
  *,
  episodes: int = 300,
  ways: int = 5,
  queries: int = 15,
  seed: int = 0,
  template: str = DEFAULT_TEMPLATE,
) -> Accuracy:
  """Episodic zero-shot accuracy: each query goes to the prompt of the largest cosine.

  Args:
    model: of any family.
    params: its weights.
    source: images of the model's size, at least `queries` + 1 of each class.
    episodes: number of episodes.
    ways: classes `C` of an episode.
    queries: images `Q` of each class.
    seed: of the episodes, which are those that few-shot adaptation with one shot draws.
    template: of the prompts.

  Returns:
    Mean over episodes with its 95 % interval.
  """
  drawn = draw(source.labels, episodes=episodes, ways=ways, queries=queries, seed=seed)
  best = np.argmax(scores(cosines(model, params, source, template), drawn), axis=-1)  # [E, C, Q]
  return mean_and_ci(np.mean(best == np.arange(ways)[:, None], axis=(1, 2)))


def world_sources(
  severities: Sequence[float] = SEVERITIES, images_per_class: int = 16
) -> Iterator[Source]:
  """The held-out source, every target at every severity, and the handwritten digits."""
  yield WorldSource("source", images_per_class=images_per_class)
  for domain in LOOKS:
    if domain != "source":
      for severity in severities:
        yield WorldSource(domain, severity, images_per_class)
  yield DigitsSource()


def main(arguments: list[str] | None = None) -> int:
  """Prints the table of one model."""
  parser = argparse.ArgumentParser(
    prog="python -m mdtrap_jax.world.zero_shot",
    description="5-way zero-shot accuracy on the generated world and the digits.",
  )
  parser.add_argument("--model", default="miniature", help="named size, folder or hub name")
  parser.add_argument("--episodes", type=int, default=300)
  parser.add_argument("--json", type=Path, help="write the table here too")
  options = parser.parse_args(arguments)
  try:
    model, params = checkpoints.load(options.model)
  except (OSError, ValueError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  table = {}
  for source in world_sources():
    accuracy = evaluate(model, params, source, episodes=options.episodes)
    table[source.name] = accuracy._asdict()
    print(f"{source.name:<20} {accuracy}", flush=True)
  if options.json:
    options.json.write_text(json.dumps(table, indent=2) + "\n")
  return 0


if __name__ == "__main__":
  sys.exit(main())
