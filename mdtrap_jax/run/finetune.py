"""From a config to a results table: loads, adapts batch after batch, reports, resumes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import platform
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging

from mdtrap_jax import __version__, checkpoints, models
from mdtrap_jax import config as settings
from mdtrap_jax.data.cache import ImageCache
from mdtrap_jax.data.class_selection import check_feasible
from mdtrap_jax.data.loader import EpisodeBatch, ahead, episode_batches
from mdtrap_jax.data.prompts import make_prompts
from mdtrap_jax.data.sources import Source, make_source
from mdtrap_jax.methods.finetune import STATUS, Adaptation, AdaptState, Episode, Evaluation
from mdtrap_jax.models.lora import LoraConfig
from mdtrap_jax.models.vlm import Params, VisionLanguageModel
from mdtrap_jax.objectives import chain
from mdtrap_jax.run import hosts, parallel, results
from mdtrap_jax.run.progress import Progress
from mdtrap_jax.run.segments import Outcome, adapt_batch
from mdtrap_jax.run.snapshots import Snapshot, SnapshotDirectory
from mdtrap_jax.run.stop import Preemption, preemption

PACKAGES = ("jax", "jaxlib", "flax", "optax")


class Prompts(NamedTuple):
  """All classes of a source as the text encoder sees them."""

  token_ids: np.ndarray  # [n, L] int32
  text: np.ndarray  # [n, D] float32, embeddings by the base model


def run(config: ml_collections.ConfigDict, workdir: str | Path) -> dict[str, dict[str, Any]]:
  """Adapts every episode of `config` that `workdir` does not hold yet.

  Args:
    config: from a file of `configs/`.
    workdir: where the run's files are, or with `config.variants` one directory for each;
      made, or resumed.

  Returns:
    What each `summary.json` says, by variant; a run without variants is called "".

  Raises:
    ValueError, OSError: input that cannot be right; raised before anything is computed where
      it can be known then.
  """
  config = settings.resolve(config)
  if config.model.dtype == "auto":  # settled here, so that a resumed run keeps it
    config.model.dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
  follow_family(config)
  runs, source = settings.variants(config), load_source(config)
  identity = {
    "name": source.name,
    "class_names": list(source.class_names),
    "images": len(source.labels),
  }
  workdir = Path(workdir)
  own = hosts.own_directory(workdir)
  with contextlib.ExitStack() as stack:
    directories = {
      name: stack.enter_context(results.WorkDirectory(own / name, run, identity))
      for name, run in runs.items()
    }
    hosts.merge(workdir, directories)
    todo = [
      episode
      for episode in range(config.episodes)
      if any(episode not in d.finished for d in directories.values())
    ]
    snapshots = stack.enter_context(
      contextlib.closing(
        SnapshotDirectory(own / "snapshots", {name: d.config for name, d in directories.items()})
      )
    )
    seconds = 0.0
    if mine := hosts.share(todo):
      seconds = _run_episodes(config, runs, source, directories, snapshots, mine)
    hosts.merge(workdir, directories)
    snapshots.remove()
    rate = len(todo) / seconds if mine else None
    return {name: _finish(directory, rate) for name, directory in directories.items()}


def follow_family(config: ml_collections.ConfigDict) -> None:
  """Settles, in place, what a resolved config leaves to the family of its model.

  Raises:
    FileNotFoundError, ValueError: the model's family cannot be known.
  """
  data, model = config.data, config.model
  if data.template is None or data.resize == "family":
    name = (
      models.find(model.name).family if model.random_weights else checkpoints.family_of(model.name)
    )
    family = models.FAMILIES[name]
    data.template = data.template or family.prompt
    data.resize = family.resize if data.resize == "family" else data.resize


def load_source(config: ml_collections.ConfigDict) -> Source:
  """The images of `config.data`, once it is sure that every episode can be drawn."""
  data = config.data
  return check_feasible(make_source(data), data.ways, data.shots, data.queries, data.small_classes)


def load_model(config: ml_collections.ConfigDict) -> tuple[VisionLanguageModel, Params]:
  """The model of `config.model`, published or of random weights."""
  dtype = "float32" if config.model.dtype == "auto" else config.model.dtype
  if not config.model.random_weights:
    return checkpoints.load(config.model.name, dtype=jnp.dtype(dtype))
  logging.warning("%s has random weights: its accuracy means nothing.", config.model.name)
  model = models.build(config.model.name)
  params = jax.jit(model.init)(jax.random.key(config.seed))
  return model, jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def make_lora(config: ml_collections.ConfigDict) -> LoraConfig:
  """`config.lora` as the models take it."""
  position = config.lora.position
  blocks = [block.strip() for block in position.split(",") if block.strip()]
  if all(block.isdigit() for block in blocks):
    position = tuple(int(block) for block in blocks)
  return LoraConfig(
    rank=config.lora.rank,
    alpha=config.lora.alpha,
    dropout=config.lora.dropout,
    projections=tuple(config.lora.projections),
    encoder=config.lora.encoder,
    position=position,
    scale=config.lora.scale,
  )


def make_weights(runs: dict[str, ml_collections.ConfigDict]) -> dict[str, jax.Array]:
  """`{term: [P]}`, the weights of every term that any of the variants uses."""
  objectives = [run.objective.to_dict() for run in runs.values()]
  names = {name for objective in objectives for name in chain.enabled_terms(objective)}
  return {
    name: jnp.array([objective[name]["weight"] for objective in objectives], jnp.float32)
    for name in sorted(names)
  }


def make_adaptation(
  config: ml_collections.ConfigDict, model: VisionLanguageModel, logit_scale: float
) -> Adaptation:
  """How `config` adapts an episode of `model`.

  Raises:
    ValueError: settings that do not fit each other or the model.
  """
  data, adapt, lora = config.data, config.adapt, make_lora(config)
  for encoder in lora.encoders:
    lora.blocks({"image": model.image, "text": model.text}[encoder].depth)
  num_clean = data.ways * data.shots
  batch_size = adapt.batch_size or None
  tx = chain.make_objective(
    config.objective.to_dict(),
    chain.make_optimizer(steps=adapt.steps, **config.optimizer.to_dict()),
    steps=adapt.steps,
    logit_scale=logit_scale,
    num_views=adapt.views * num_clean,
    num_clean=num_clean,
    batch_size=batch_size,
  )
  return Adaptation(
    model=model,
    lora=lora,
    tx=tx,
    views=adapt.views,
    batch_size=batch_size,
    seed=config.seed,
    chunk=adapt.chunk or None,
  )


def encode_prompts(
  model: VisionLanguageModel, params: Params, class_names: tuple[str, ...], template: str
) -> Prompts:
  """Tokens and base-model embeddings of every class of a source, computed once."""
  token_ids = model.tokenize(make_prompts(class_names, template))
  text = jax.jit(model.encode_text)(params, token_ids)
  return Prompts(token_ids, np.asarray(text.astype(jnp.float32)))


def make_episodes(batch: EpisodeBatch, prompts: Prompts, size: int) -> Episode:
  """A batch for the device, `[size, ...]`; the last episode is repeated where rows lack."""
  ways, shots = batch.support_index.shape[1:]
  queries = batch.query_index.shape[2]
  rows = np.minimum(np.arange(size), len(batch.episode) - 1)
  labels = lambda count: np.tile(np.repeat(np.arange(ways, dtype=np.int32), count), (size, 1))
  return Episode(
    number=batch.episode[rows].astype(np.int32),
    support=batch.support[rows],
    support_labels=labels(shots),
    query=batch.query[rows],
    query_labels=labels(queries),
    token_ids=prompts.token_ids[batch.classes][rows],
    text=prompts.text[batch.classes][rows],
  )


def _run_episodes(
  config,
  runs,
  source: Source,
  directories,
  snapshots: SnapshotDirectory,
  todo: list[int],
) -> float:
  """Adapts the episodes `todo` under all variants; returns the seconds of the loop."""
  data, steps = config.data, config.adapt.steps
  objective, weights = config.objective.to_dict(), make_weights(runs)
  for name, values in weights.items():  # a term is in the program if any variant uses it
    objective[name]["weight"] = float(values[jnp.argmax(abs(values))])
  with config.unlocked():
    config.objective = objective
  model, params = load_model(config)
  adaptation = make_adaptation(config, model, float(model.logit_scale(params)))
  phases, marks = chain.make_phases(objective, steps), chain.evaluation_marks(steps)
  prompts = encode_prompts(model, params, source.class_names, data.template)
  params = adaptation.needed(params)
  adaptation, (mesh, each) = _fit(config, adaptation, params, weights, prompts)
  params = parallel.replicate(adaptation.needed(params, config.weight_shards), mesh)
  size = mesh.size * each
  programs = parallel.make_programs(adaptation, mesh)
  batches = functools.partial(
    episode_batches,
    source,
    batch_size=size,
    seed=config.seed,
    ways=data.ways,
    shots=data.shots,
    queries=data.queries,
    size=model.image.image_size,
    resize=data.resize,
    unreadable=data.unreadable,
    threads=data.threads,
    cache=_image_cache(config, source, model.image.image_size),
  )

  started = time.monotonic()
  stoppable = preemption(hosts.request_stop, hosts.stop_requested)
  with Progress(directories, len(todo), steps) as progress, stoppable as asked:
    on_devices = lambda batch: parallel.spread(make_episodes(batch, prompts, size), mesh)
    for numbers, left in _groups(todo, snapshots.restore()):
      with contextlib.closing(ahead(on_devices, batches(numbers))) as loaded:
        for batch, episodes in loaded:
          prepared, state = programs.prepare(params, episodes, weights)
          start, evaluations = 0, {}
          if left is not None:
            state, evaluations = left.rows(batch.episode, size, state)
            state, start = parallel.spread(state, mesh), left.step
            progress.stepped(len(batch.episode), start)
          snapshots.begin()
          after = functools.partial(_after_segment, batch, progress, snapshots, asked)
          outcome = adapt_batch(
            programs,
            params,
            prepared,
            state,
            phases,
            marks,
            start=start,
            evaluations=evaluations,
            after=after,
          )
          count = len(batch.episode)
          for p, directory in enumerate(directories.values()):
            lines = [_line(i, p, batch, source, outcome) for i in range(count)]
            directory.append(line for line in lines if line["episode"] not in directory.finished)
          progress.finished(outcome, count)
          asked.check()
  return time.monotonic() - started


def _groups(
  todo: list[int], snapshot: Snapshot | None
) -> Iterator[tuple[list[int], Snapshot | None]]:
  """The episodes to adapt: first those that a snapshot holds, then those that start anew."""
  under_way = [number for number in todo if snapshot and number in snapshot.episodes]
  if under_way:
    yield under_way, snapshot
  if rest := [number for number in todo if number not in under_way]:
    yield rest, None


def _after_segment(
  batch: EpisodeBatch,
  progress: Progress,
  snapshots: SnapshotDirectory,
  asked: Preemption,
  step: int,
  done: int,
  state: AdaptState,
  evaluations: dict[int, Evaluation],
) -> None:
  """Reports, saves where the batch is, and stops the run if that was asked for."""
  rows = len(batch.episode)
  progress.stepped(rows, done)
  if asked.name or snapshots.due():
    leaves, evaluations = jax.tree.map(
      lambda leaf: np.asarray(leaf)[:rows], (jax.tree.leaves(state), evaluations)
    )
    snapshots.save(Snapshot(tuple(map(int, batch.episode)), step, leaves, evaluations))
  asked.check()


def _image_cache(config, source: Source, size: int) -> ImageCache | None:
  if not config.data.cache_dir:
    return None
  return ImageCache(
    config.data.cache_dir, source.identity, len(source.labels), size, config.data.resize
  )


def _fit(
  config,
  adaptation: Adaptation,
  params,
  weights,
  prompts: Prompts,
) -> tuple[Adaptation, parallel.Placement]:
  """Episodes at once and where; if not even one fits, with its rows in smaller chunks."""
  while True:
    try:
      return adaptation, _place(config, adaptation, params, weights, prompts)
    except MemoryError:
      rows = config.data.ways * config.data.shots * (config.adapt.views + 1)
      chunk = (adaptation.chunk or rows) // 2
      if config.adapt.chunk or not chunk:
        raise
      adaptation = dataclasses.replace(adaptation, chunk=chunk)
      logging.warning(
        "one episode does not fit: %d of its %d rows are encoded at a time.", chunk, rows
      )


def _place(config, adaptation, params, weights, prompts: Prompts) -> parallel.Placement:
  # Of all episodes, not of those left: a resumed run rounds as the first one did.
  most = -(-config.episodes // jax.process_count())
  data, size = config.data, adaptation.model.image.image_size
  shape = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.uint8)
  integers = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.int32)
  support, query = data.ways * data.shots, data.ways * data.queries
  episode = Episode(
    integers(),
    shape(support, size, size, 3),
    integers(support),
    shape(query, size, size, 3),
    integers(query),
    integers(data.ways, prompts.token_ids.shape[1]),
    jax.ShapeDtypeStruct((data.ways, prompts.text.shape[1]), jnp.float32),
  )
  clean = any(
    phase.clean for phase in chain.make_phases(config.objective.to_dict(), config.adapt.steps)
  )
  placement = parallel.place(
    adaptation,
    params,
    episode,
    weights,
    clean=clean,
    most=most,
    shards=config.weight_shards,
    each=config.episodes_per_device,
  )
  logging.info("%d episodes at once on each of %d devices", placement.each, placement.mesh.size)
  return placement


def _line(i: int, p: int, batch: EpisodeBatch, source: Source, outcome: Outcome):
  """What `episodes.jsonl` says of row `i` of a batch under variant `p`."""
  evaluations = outcome.evaluations
  ok = outcome.status[i, p] == STATUS.index("ok") and all(
    np.isfinite(evaluation.cosines[i, p]).all() for evaluation in evaluations.values()
  )
  accuracy = {
    step: round(float(evaluation.accuracy[i, p]), 6) for step, evaluation in evaluations.items()
  }
  losses = {
    name: float(term.value[i, p]) for name, term in outcome.terms.items() if term.weight[i, p]
  }
  if not ok:
    logging.warning("episode %d became non-finite: frozen and counted as failed.", batch.episode[i])
  return {
    "episode": int(batch.episode[i]),
    "status": "ok" if ok else "non-finite",
    "accuracy": list(accuracy.values())[-1] if ok else None,
    "accuracy_at": {str(step): value for step, value in accuracy.items() if step},
    "zero_shot_accuracy": accuracy[0],
    "class_names": [source.class_names[c] for c in batch.classes[i]],
    "support": batch.support_index[i].tolist(),
    "query": batch.query_index[i].tolist(),
    "losses": {name: value if np.isfinite(value) else None for name, value in losses.items()},
  }


def _finish(directory, rate: float | None) -> dict[str, Any]:
  """Writes `summary.json` over all episodes of the directory."""
  lines = [line for _, line in sorted(directory.finished.items())]
  previous = directory.path / "summary.json"
  if rate is None and previous.exists():  # nothing was left to do: keep the measured rate
    rate = json.loads(previous.read_text(encoding="utf-8")).get("episodes_per_second")
  summary = results.summarize(lines) | {
    "episodes_per_second": rate,
    "peak_memory_bytes": parallel.peak_memory(),
    "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
    "platform": jax.default_backend(),
    "python": platform.python_version(),
    "versions": {"mdtrap_jax": __version__} | {name: version(name) for name in PACKAGES},
  }
  directory.write_json("summary.json", summary)
  return summary
