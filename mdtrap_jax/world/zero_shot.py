"""Zero-shot accuracy by domain and severity: `python -m mdtrap_jax.world.zero_shot`."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mdtrap_jax import checkpoints
from mdtrap_jax.data.prompts import DEFAULT_TEMPLATE, make_prompts
from mdtrap_jax.data.sampler import sample_episode
from mdtrap_jax.data.source import Source
from mdtrap_jax.data.views import normalize
from mdtrap_jax.models.vlm import Params, VisionLanguageModel
from mdtrap_jax.statistics import Accuracy, mean_and_ci
from mdtrap_jax.world import LOOKS, DigitsSource, WorldSource

SEVERITIES = (0.0, 0.25, 0.5, 0.75, 1.0)
BATCH = 256  # images encoded at once


@functools.partial(jax.jit, static_argnames="model")
def _encode_image(model, params, images):
  """Unit-norm embeddings `[B, D]` of uint8 images."""
  embeddings = model.encode_image(params, normalize(images, model.image_mean, model.image_std))
  return embeddings / jnp.linalg.norm(embeddings, axis=-1, keepdims=True)


@functools.partial(jax.jit, static_argnames="model")
def _encode_text(model, params, ids):
  embeddings = model.encode_text(params, ids)
  return embeddings / jnp.linalg.norm(embeddings, axis=-1, keepdims=True)


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
  for start in range(0, len(source), BATCH):
    # The last batch is filled up with its last image, so that one program serves all.
    index = np.minimum(np.arange(start, start + BATCH), len(source) - 1)
    images = np.stack([source.image(i) for i in index])
    rows.append(np.asarray(_encode_image(model, params, images) @ text.T))
  return np.concatenate(rows)[: len(source)]


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
  table = cosines(model, params, source, template)
  accuracies = []
  for number in range(episodes):
    episode = sample_episode(
      source.labels, seed=seed, episode=number, ways=ways, shots=1, queries=queries
    )
    scores = table[episode.query][..., episode.classes]  # [C, Q, C]
    accuracies.append(np.mean(np.argmax(scores, axis=-1) == np.arange(ways)[:, None]))
  return mean_and_ci(accuracies)


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
