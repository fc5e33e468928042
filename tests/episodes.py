"""Small made-up episodes that several tests share."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from configs import default
from mdtrap_jax import experiments, models
from mdtrap_jax.data.task import Task
from mdtrap_jax.experiments import finetune
from mdtrap_jax.models.image_stem import ImageConfig
from mdtrap_jax.models.text_stem import TextConfig
from mdtrap_jax.report import summary
from mdtrap_jax.run import loop
from mdtrap_jax.run.lines import read_object

WAYS, SHOTS, QUERIES, STEPS = 3, 1, 4, 10


def small_config(row="svl_ra", **overrides) -> ml_collections.ConfigDict:
  """The default config, cut down to seconds; overrides are dotted names with `__` for dots."""
  config = default.get_config(row)
  config.update_from_flattened_dict(
    {
      "model.name": "clip-tiny",
      "model.random_weights": True,
      "data.ways": WAYS,
      "data.shots": SHOTS,
      "data.queries": QUERIES,
      "data.threads": 1,
      "adapt.steps": STEPS,
      "objective.svl.weight": 0.1,
      "optimizer.learning_rate": 1e-2,
      "lora.rank": 2,
      "episodes": 5,
    }
  )
  config.update_from_flattened_dict(
    {name.replace("__", "."): value for name, value in overrides.items()}
  )
  return config


@functools.cache
def smallest_clip():
  """A CLIP of two blocks and five tokens, whose programs compile fast, and random weights."""
  shape = dict(width=64, depth=2, heads=1, mlp_width=128, embed_dim=32)
  specification = models.Specification(
    "clip",
    ImageConfig(image_size=16, patch_size=8, **shape),
    TextConfig(context_length=8, vocabulary_size=128, **shape),
  )
  model = models.build(specification)
  return model, models.random_weights(model, jax.random.key(0))


def small_adaptation(config):
  """How the smallest CLIP is adapted, and its weights."""
  model, params = smallest_clip()
  return finetune.make_method(config, config.objective.to_dict(), model, 30.0), params


def small_weights(config):
  """The terms' weights of a run without variants, `{term: [1]}`."""
  return finetune.make_weights({"": config})


def small_episodes(model, count: int) -> Task:
  """Episodes of colored noise, `[count, ...]`; each class has a tint of its own."""
  rng = np.random.default_rng(0)
  size = model.image.image_size
  tint = rng.integers(0, 120, (count, WAYS, 1, 1, 1, 3))

  def images(per_class):
    noise = rng.integers(0, 130, (count, WAYS, per_class, size, size, 3))
    return (noise + tint).astype(np.uint8).reshape(count, -1, size, size, 3)

  labels = lambda n: np.tile(np.repeat(np.arange(WAYS, dtype=np.int32), n), (count, 1))
  text = rng.standard_normal((count, WAYS, model.text.embed_dim)).astype(np.float32)
  ids = rng.integers(1, 90, (count, WAYS, model.text.context_length)).astype(np.int32)
  ids[..., -1] = model.text.vocabulary_size - 1
  return Task(
    seed=np.zeros(count, np.int32),
    number=np.arange(count, dtype=np.int32) + 7,
    support=images(SHOTS),
    support_labels=labels(SHOTS),
    query=images(QUERIES),
    query_labels=labels(QUERIES),
    token_ids=ids,
    text=text,
  )


def row(tree, i):
  """One episode of a batch."""
  return jax.tree.map(lambda leaf: jnp.asarray(leaf)[i], tree)


def tiny_models():
  """Names of the registry that are small enough for tests."""
  return [name for name in models.MODELS if "tiny" in name]


def run_finetune(config, workdir, pace=loop.PACE, devices=None):
  """A whole run, on so many devices if not on all; what each run's `summary.json` says."""
  experiment = finetune.experiment(config)
  if devices:
    experiment.placing["devices"] = jax.devices()[:devices]
  finished = loop.run(experiment, workdir, pace)
  return {
    name: summary.write(directory, finished.rate)
    for name, directory in finished.directories.items()
  }


def run_heads(config, workdir):
  """A whole run of heads; what its `summary.json` says."""
  experiments.run(config, workdir)
  return read_object(Path(workdir) / "summary.json")
