"""Pretrains the miniature on generated scenes: `python -m mdtrap_jax.world.pretrain --config=…`.

The same command again resumes a killed run from its last checkpoint and ends with the same
weights, since the batch of a step follows from the seed and the step's number alone. The
result is `DIR/model`, which `checkpoints.load` reads, and `DIR/metrics.json`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import orbax.checkpoint as ocp
from absl import app, flags, logging
from ml_collections import config_flags
from tqdm import tqdm

from mdtrap_jax import checkpoints, models
from mdtrap_jax.data.views import normalize
from mdtrap_jax.models.families import miniature
from mdtrap_jax.models.image_stem import ImageStem
from mdtrap_jax.models.text_stem import TextStem
from mdtrap_jax.models.transformer import run_blocks
from mdtrap_jax.models.vlm import Params, VisionLanguageModel
from mdtrap_jax.world import VOCABULARY, WorldSource, sample_batch, zero_shot
from mdtrap_jax.world.scenes import BACKGROUNDS, COLORS, SHAPES, SIZES, TEXTURES


class TrainState(NamedTuple):
  """All that a step changes."""

  step: jax.Array  # [] int32, steps done
  params: Params  # float32
  opt_state: Any


class Metrics(NamedTuple):
  """Of one step."""

  loss: jax.Array  # [] float32
  accuracy: jax.Array  # [] float32, how often the own caption (and image) scores highest


def caption_facts(ids: jax.Array) -> jax.Array:
  """What captions say: `[B, 2·words] float32`, 1 for each attribute named.

  A word before "background" counts as another one than the same word elsewhere; how a caption
  begins ("a photo of a") does not count.

  Args:
    ids: `[B, L] int32`.
  """
  words = len(VOCABULARY)
  named = {*SHAPES, *TEXTURES, *COLORS, *BACKGROUNDS, *SIZES}
  counts = jnp.asarray([word in named for word in VOCABULARY], jnp.float32)
  following = jnp.concatenate([ids[:, 1:], jnp.zeros_like(ids[:, :1])], axis=1)
  place = ids + words * (following == VOCABULARY.index("background"))
  return jnp.sum(jax.nn.one_hot(place, 2 * words) * counts[ids][..., None], axis=1)


def contrastive_loss(
  image: jax.Array, text: jax.Array, facts: jax.Array, scale: jax.Array
) -> Metrics:
  """CLIP's symmetric cross-entropy, without the negatives that are none.

  Captions leave attributes out, so within a batch some are equal and many are true of several
  images: "a photo of a red object" of every red one. CLIP's loss would push such an image and
  caption apart as if the caption were wrong. Here caption `j` is no negative of image `i`, in
  either direction, if all it says is also said by caption `i`; equal captions are so in
  particular. What caption `i` leaves out is not known, and can still make a false negative.

  Args:
    image: `[B, D]`, unit norm.
    text: `[B, D]`, unit norm; row `i` is the caption of image `i`.
    facts: `[B, F]`, 1 where a caption states a fact, else 0.
    scale: `[]`, of the cosines.
  """
  logits = scale * image @ text.T
  own = jnp.eye(len(logits), dtype=bool)
  true_of = facts @ facts.T == jnp.sum(facts, axis=1)[None, :]
  logits = jnp.where(true_of & ~own, -jnp.inf, logits)
  labels = jnp.arange(len(logits))
  both = [
    optax.softmax_cross_entropy_with_integer_labels(part, labels) for part in (logits, logits.T)
  ]
  best = [jnp.argmax(part, axis=1) == labels for part in (logits, logits.T)]
  return Metrics(jnp.mean(jnp.stack(both)), jnp.mean(jnp.stack(best)))


def encode(
  model: VisionLanguageModel, params: Params, images: jax.Array, ids: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Unit-norm embeddings `[B, D]` of uint8 images and of word ids.

  As the model's own methods, but block by block: the compiler then unrolls the loop over
  blocks, which saves a quarter of a step's time on a CPU.
  """

  def blocks(encoder, config, tokens):
    for block in range(config.depth):
      tokens = run_blocks(encoder["blocks"], tokens, config.block, start=block, stop=block + 1)
    return tokens

  images = normalize(images, model.image_mean, model.image_std)
  tokens = blocks(params["image"], model.image, model.embed_image(params, images))
  stem, variables = ImageStem(model.image), {"params": params["image"]["stem"]}
  image = stem.apply(variables, tokens, method="pool")
  stem, variables = TextStem(model.text), {"params": params["text"]["stem"]}
  tokens = blocks(params["text"], model.text, stem.apply(variables, ids, method="embed"))
  text = stem.apply(variables, tokens, ids, method="pool")
  unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
  return unit(image), unit(text)


def make_optimizer(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
  """AdamW with clipped gradients, warm-up and cosine; only matrices decay."""
  schedule = optax.warmup_cosine_decay_schedule(
    0.0, config.learning_rate, config.warmup_steps, config.steps
  )
  is_matrix = functools.partial(
    jax.tree_util.tree_map_with_path, lambda path, _: path[-1].key == "kernel"
  )
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.adamw(schedule, config.b1, config.b2, weight_decay=config.weight_decay, mask=is_matrix),
  )


def init_state(
  model: VisionLanguageModel, tx: optax.GradientTransformation, seed: int
) -> TrainState:
  """The state before the first step."""

  @jax.jit
  def init():
    params = model.init(jax.random.fold_in(jax.random.key(seed), 2**31))
    # Without weak types, so that the first segment's program serves the others.
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype), params)
    return TrainState(jnp.int32(0), params, tx.init(params))

  return init()


def make_segment(
  model: VisionLanguageModel,
  tx: optax.GradientTransformation,
  config: ml_collections.ConfigDict,
):
  """The compiled program of `config.segment` steps, rendering included.

  Returns:
    `TrainState` to the next one and the segment's mean `Metrics`.
  """
  root, most = jax.random.key(config.seed), float(np.log(config.max_scale))

  def loss(params, images, ids):
    image, text = encode(model, params, images, ids)
    metrics = contrastive_loss(image, text, caption_facts(ids), model.logit_scale(params))
    return metrics.loss, metrics

  def step(state, _):
    images, ids = sample_batch(jax.random.fold_in(root, state.step), config.batch_size)
    gradient, metrics = jax.grad(loss, has_aux=True)(state.params, images, ids)
    updates, opt_state = tx.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    params["logit_scale"] = jnp.minimum(params["logit_scale"], most)
    return TrainState(state.step + 1, params, opt_state), metrics

  @functools.partial(jax.jit, donate_argnums=0)
  def segment(state):
    state, metrics = jax.lax.scan(step, state, length=config.segment)
    return state, jax.tree.map(jnp.mean, metrics)

  return segment


def make_model(config: ml_collections.ConfigDict) -> VisionLanguageModel:
  """The untrained miniature of the config's size."""
  model = models.build(miniature.specification(**config.model))
  return dataclasses.replace(model, name="miniature", tokenize=miniature.tokenizer())


def check(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError unless the numbers of steps fit together."""
  for field in ("steps", "batch_size", "segment", "evaluate_every", "checkpoint_every"):
    if config[field] < 1:
      raise ValueError(f"config.{field}={config[field]} must be at least 1.")
  for field in ("steps", "evaluate_every", "checkpoint_every"):
    if config[field] % config.segment:
      raise ValueError(
        f"config.{field}={config[field]} must be a multiple of config.segment="
        f"{config.segment}, the steps of one compiled call."
      )
  if config.warmup_steps >= config.steps:
    raise ValueError(
      f"config.warmup_steps={config.warmup_steps} must be below config.steps={config.steps}."
    )


def run(config: ml_collections.ConfigDict, workdir: str | Path) -> dict[str, Any]:
  """Trains, or goes on training, and exports.

  Args:
    config: from configs/miniature.py.
    workdir: of checkpoints, metrics and the exported model; made, or resumed.

  Returns:
    The contents of `metrics.json`.

  Raises:
    ValueError: a config that cannot be right, or a directory of another config.
  """
  check(config)
  workdir = Path(workdir).resolve()
  workdir.mkdir(parents=True, exist_ok=True)
  _claim(workdir / "config.json", config)
  model, tx = make_model(config), make_optimizer(config)
  state = init_state(model, tx, config.seed)
  options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
  with ocp.CheckpointManager(workdir / "checkpoints", options=options) as manager:
    history: list[dict[str, float]] = []
    if (last := manager.latest_step()) is not None:
      restored = manager.restore(
        last,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(state), history=ocp.args.JsonRestore()
        ),
      )
      state, history = restored["state"], restored["history"]
    state = _train(config, model, tx, state, history, manager)
  checkpoints.save(workdir / "model", model, state.params, dtype=jnp.float16)
  metrics = {
    "steps": config.steps,
    "images": config.steps * config.batch_size,
    "seconds": sum(line["seconds"] for line in history),
    "jax": jax.__version__,
    "device": jax.devices()[0].device_kind,
    "history": history,
  }
  (workdir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
  return metrics


def _train(config, model, tx, state, history, manager) -> TrainState:
  """Runs the remaining segments; appends to `history` and saves as the config says."""
  segment = make_segment(model, tx, config)
  held_out = WorldSource("source", images_per_class=4)
  done = int(state.step)
  bar = tqdm(
    total=config.steps,
    initial=done,
    unit="step",
    dynamic_ncols=True,
    smoothing=0.1,
    bar_format="{percentage:3.0f}%|{bar}| {desc} [{elapsed}<{remaining}]",
  )
  with bar:
    while done < config.steps:
      started = time.monotonic()
      state, metrics = jax.block_until_ready(segment(state))
      seconds = time.monotonic() - started
      done += config.segment
      line = {
        "step": done,
        "loss": float(metrics.loss),
        "accuracy": float(metrics.accuracy),
        "seconds": seconds,
      }
      if done % config.evaluate_every == 0 or done == config.steps:
        accuracy = zero_shot.evaluate(
          model, state.params, held_out, episodes=config.evaluate_episodes, queries=3
        )
        line["zero_shot"] = accuracy.mean
        bar.write(f"step {done}: loss {line['loss']:.3f}, zero-shot {accuracy}")
      history.append(line)
      rate = config.segment * config.batch_size / seconds
      bar.set_description_str(
        f"step {done}/{config.steps}, loss {line['loss']:.3f}, "
        f"accuracy {line['accuracy']:.1%}, {rate:.0f} images/s",
        refresh=False,
      )
      bar.update(config.segment)
      if not np.isfinite(line["loss"]):
        raise ValueError(
          f"The loss is {line['loss']} at step {done}; lower config.learning_rate="
          f"{config.learning_rate} and start in another directory."
        )
      if done % config.checkpoint_every == 0 or done == config.steps:
        manager.save(
          done,
          args=ocp.args.Composite(
            state=ocp.args.StandardSave(state), history=ocp.args.JsonSave(history)
          ),
        )
  return state


def _claim(path: Path, config: ml_collections.ConfigDict) -> None:
  """Writes the config, or checks that it is the one that the directory was made with."""
  ours = json.loads(config.to_json())
  if not path.exists():
    path.write_text(json.dumps(ours, indent=2) + "\n")
  elif (theirs := json.loads(path.read_text())) != ours:
    fields = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    raise ValueError(
      f"{path.parent} holds a run of another config, which differs in {', '.join(fields)}: "
      "give another --workdir."
    )


def main(argv: list[str]) -> None:
  """Runs the command line."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}: fields are set as --config.NAME=….")
  logging.set_verbosity(logging.WARNING)
  try:
    metrics = run(flags.FLAGS.config, flags.FLAGS.workdir)
  except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")
  accuracy = metrics["history"][-1]["zero_shot"]
  print(
    f"zero-shot accuracy on held-out source scenes {accuracy:.1%}; written to {flags.FLAGS.workdir}"
  )


if __name__ == "__main__":
  config_flags.DEFINE_config_file("config", None, "configs/miniature.py", lock_config=True)
  flags.DEFINE_string("workdir", None, "Directory of the run's files; made, or resumed.")
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main)
