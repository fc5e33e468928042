"""The only place where episodes are batched and spread over devices.

Everything else is written for one episode. Here it is mapped over variants of the terms'
weights and over a leading axis `[E, ...]`, and that axis is split over all devices of a mesh.
Episodes never communicate.
"""

from __future__ import annotations

import functools
import math
import os
import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mdtrap_jax.methods.finetune import Adaptation, Episode
from mdtrap_jax.models import sharding
from mdtrap_jax.models.transformer import LARGE
from mdtrap_jax.objectives import chain

AXIS = "episode"
MEMORY_SHARE = 0.9  # of a device's memory that a batch of episodes may fill
CPU_ROWS = 2048  # tokens per step that keep a CPU core busy; more leave its caches
CONTAINER = Path("/sys/fs/cgroup")  # what a container may use of its host, on Linux
CPU_COPIES = 32  # of an encoder's activations: more than a step ever needed on a CPU


def use_cpu_cores() -> None:
  """Makes every CPU core a device of its own; must come before JAX computes anything.

  A core with episodes of its own shares neither its caches nor the wait for the slowest thread
  of each small operation; `BENCHMARKS.md` says what that gains. How many of them a run uses,
  `place` decides. A number of devices that somebody asked for, by JAX's setting or XLA's flag,
  stays as it is, and accelerators do.
  """
  asked = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
  if not asked and jax.config.jax_num_cpu_devices < 1:
    jax.config.update("jax_num_cpu_devices", _cores())


def _cores() -> int:
  """Cores that this process may use, in a container too."""
  affinity = getattr(os, "sched_getaffinity", None)
  cores = len(affinity(0)) if affinity else os.cpu_count() or 1
  quota, period = (_container_limit("cpu.max") or (cores, 1))[:2]
  return max(1, min(cores, round(quota / period)))


def _container_limit(name: str) -> tuple[int, ...] | None:
  """What a container may use by a file of its cgroup (version 2); `None` for no limit."""
  try:
    return tuple(map(int, (CONTAINER / name).read_text(encoding="utf-8").split()))
  except (OSError, ValueError):  # none, or "max"
    return None


def episode_mesh(devices: Sequence[jax.Device] | None = None, shards: int = 1) -> Mesh:
  """A mesh over this process's devices or those given, to which episodes are dealt out.

  Args:
    devices: as many as a multiple of `shards`.
    shards: with more than one, a second axis of devices that hold one copy of the weights
      between them; see `models.sharding`.
  """
  devices = np.asarray(jax.local_devices() if devices is None else devices)
  if shards == 1:
    return Mesh(devices, (AXIS,))
  return Mesh(devices.reshape(-1, shards), (AXIS, sharding.AXIS))


def over_episodes(
  fn: Callable[..., Any], mesh: Mesh, mapped: tuple[bool, ...], donate: tuple[int, ...] = ()
) -> Callable[..., Any]:
  """Compiles `fn`, written for one episode, for a batch of them on all devices of `mesh`.

  Args:
    fn: pure function of one episode.
    mesh: from `episode_mesh`.
    mapped: for each positional argument, whether it has a leading episode axis `[E, ...]`;
      the others are shared by all episodes. `E` is a multiple of the number of devices.
    donate: arguments whose memory the result may take over.
  """
  batched = jax.vmap(fn, in_axes=tuple(0 if m else None for m in mapped))
  episodes = PartitionSpec(mesh.axis_names)

  # `shard_map` and not sharding propagation: no collective can creep in between episodes.
  def call(*arguments):
    specs = tuple(
      episodes if m else sharding.specs(argument)
      for m, argument in zip(mapped, arguments, strict=True)
    )
    return jax.shard_map(batched, mesh=mesh, in_specs=specs, out_specs=episodes, check_vma=False)(
      *arguments
    )

  return jax.jit(  # unused weights are in the memory too: keep them in its analysis
    call,
    donate_argnums=donate,
    keep_unused=True,
    compiler_options=compiler_options(mesh.size, mesh.devices.flat[0].platform),
  )


@functools.cache
def compiler_options(devices: int = 1, platform: str | None = None) -> dict[str, Any]:
  """What makes XLA's programs for a CPU faster, where this XLA knows the options.

  Without the first, matrix products and what surrounds them are fused into YNNPACK kernels,
  which measured a fifth slower than Eigen's products and plain loops on the encoders' shapes.
  The second keeps a product on its own core, if every core has episodes of its own.

  Args:
    devices: that a program runs on at once.
    platform: what they are; jax's default when `None`.
  """
  if (platform or jax.default_backend()) != "cpu":
    return {}
  options: dict[str, Any] = {"xla_cpu_experimental_ynn_fusion_type": ""}
  if devices >= _cores():
    options["xla_cpu_multi_thread_eigen"] = False
  return {name: value for name, value in options.items() if _known_to_xla({name: value})}


def _known_to_xla(option: dict[str, Any]) -> bool:
  try:
    jax.jit(lambda x: x, compiler_options=option).lower(0.0).compile()
  except jax.errors.JaxRuntimeError:
    return False
  return True


def replicate(tree: Any, mesh: Mesh) -> Any:
  """Copies a pytree to every device; of what is `Sharded` each gets a part."""
  layout = jax.tree.map(lambda spec: NamedSharding(mesh, spec), sharding.specs(tree))
  return jax.device_put(tree, layout)


def spread(tree: Any, mesh: Mesh) -> Any:
  """Splits the leading axis `[E, ...]` of every leaf over the devices."""
  return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(mesh.axis_names)))


class Programs(NamedTuple):
  """The compiled programs of a run; states are batches `[E, P, ...]` of episodes × variants."""

  prepare: Callable[..., Any]  # (params, episodes, weights) -> (prepared, state)
  evaluate: Callable[..., Any]  # (params, prepared, state) -> Evaluation
  run: dict[bool, Callable[..., Any]]  # [clean] (params, prepared, state, start, stop) -> state


def make_programs(adaptation: Adaptation, mesh: Mesh) -> Programs:
  """Maps the three functions of one episode over variants, and those over episodes."""
  prepare, evaluate, run = over_variants(adaptation)
  mapped = (False, True, True, False, False)
  return Programs(
    prepare=over_episodes(prepare, mesh, (False, True, False)),
    evaluate=over_episodes(evaluate, mesh, mapped[:3]),
    run={
      clean: over_episodes(functools.partial(run, clean=clean), mesh, mapped, donate=(2,))
      for clean in (False, True)
    },
  )


def over_variants(adaptation: Adaptation):
  """`prepare`, `evaluate` and `run` of one episode under `P` settings of the terms' weights.

  The variants share the episode's data, views, draws and everything below the first adapted
  block, so that they are compared on equal terms and in one program. `prepare` takes the
  weights `{term: [P]}` as a third argument.
  """

  def prepare(params, episode, weights):
    prepared, state = adaptation.prepare(params, episode)
    vary = lambda weight: state._replace(opt_state=chain.with_weights(state.opt_state, weight))
    return prepared, jax.vmap(vary)(weights)

  evaluate = jax.vmap(adaptation.evaluate, in_axes=(None, None, 0))

  def run(params, prepared, state, start, stop, *, clean):
    one = functools.partial(adaptation.run, clean=clean)
    return jax.vmap(one, in_axes=(None, None, 0, None, None))(params, prepared, state, start, stop)

  return prepare, evaluate, run


class Placement(NamedTuple):
  """Where episodes are adapted."""

  mesh: Mesh
  each: int  # episodes at once on each of its devices


def place(
  adaptation: Adaptation,
  params: Any,
  episode: Episode,
  weights: Any,
  *,
  clean: bool,
  most: int,
  shards: int = 1,
  each: int = 0,
  devices: Sequence[jax.Device] | None = None,
  memory: int | None = None,
) -> Placement:
  """How many devices should adapt how many episodes at once.

  On CPU cores, where larger batches gain nothing, that is a fixed number of token rows on as
  many cores as the memory they share allows; a large encoder has all cores to itself. Elsewhere
  it is what fits: the programs are compiled for one episode a device, and what the compiler's
  own memory analysis says beyond the weights is what each one needs.

  Args:
    adaptation: what runs.
    params: of the model, whole (`jax.ShapeDtypeStruct` leaves will do, as in `episode`).
    episode: one episode.
    weights: `{term: [P]}`, of the variants.
    clean: whether the schedule has a clean pass.
    most: the number of episodes to run.
    shards: between how many devices the weights are split.
    each: episodes on a device, where the user says it; memory is then not looked at.
    devices: to choose from; this process's when `None`.
    memory: in bytes, of each device as if it were an accelerator, instead of asking.

  Raises:
    MemoryError: not even one episode fits.
    ValueError: the devices are no multiple of `shards`.
  """
  devices = list(jax.local_devices() if devices is None else devices)
  if len(devices) % shards:
    raise ValueError(
      f"config.weight_shards={shards}: must divide the number of devices of a "
      f"process, {len(devices)}."
    )
  prepared, _ = jax.eval_shape(adaptation.prepare, params, episode)
  cores = devices[0].platform == "cpu" and memory is None
  if cores and prepared.tokens.size >= LARGE:
    devices = devices[:shards]  # one episode keeps all cores busy, in a part of the memory
  devices = devices[: -(-most // shards) * shards]
  most = -(-most // len(devices))
  if each:
    return Placement(episode_mesh(devices, shards), min(each, most))
  variants = len(jax.tree.leaves(weights)[0])
  rows = variants * (prepared.tokens.shape[0] + clean * prepared.batch.clean_labels.shape[0])
  limit = memory_limit(devices[0]) if memory is None else int(MEMORY_SHARE * memory)
  if cores:
    each = max(1, min(most, CPU_ROWS // (rows * prepared.tokens.shape[1])))
    activations = (
      prepared.tokens.dtype.itemsize
      * adaptation.model.image.depth
      * (rows * prepared.tokens.shape[1] * prepared.tokens.shape[2])
    )
    own = size_in_bytes(params) + CPU_COPIES * each * activations
    if len(devices) * own <= limit:
      return Placement(episode_mesh(devices, shards), each)  # sure to fit: no need to compile
  one, shared = _bytes_needed(
    adaptation,
    adaptation.needed(params, shards),
    episode,
    weights,
    clean,
    episode_mesh(devices[:shards], shards),
  )
  if cores:  # they share the memory
    one *= shards
  if one > limit:
    raise MemoryError(
      f"one episode needs {one / 2**30:.2f} GiB and {devices[0]} may use "
      f"{limit / 2**30:.2f} GiB: set --config.adapt.chunk, or use fewer views or shots, "
      "a smaller model, bfloat16, or --config.weight_shards."
    )
  if cores:
    each, devices = 1, devices[: limit // one * shards]
  else:
    each = max(1, min(most, 1 + (limit - one) // max(one - shared, 1)))
  return Placement(episode_mesh(devices, shards), each)


def _bytes_needed(adaptation, params, episode, weights, clean, mesh: Mesh) -> tuple[int, int]:
  """Peak memory of a device with one episode, and the weights' part of it.

  Both are by the compiler's analysis, of the programs for a batch of one episode a device.
  """

  def laid_out(tree, spec):
    layout = NamedSharding(mesh, spec)
    return jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout), tree
    )

  batches = PartitionSpec(mesh.axis_names)
  params = jax.tree.map(lambda spec, leaf: laid_out(leaf, spec), sharding.specs(params), params)
  episodes = laid_out(
    jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((mesh.size, *leaf.shape), leaf.dtype), episode),
    batches,
  )
  programs = make_programs(adaptation, mesh)
  prepared, state = laid_out(jax.eval_shape(programs.prepare, params, episodes, weights), batches)
  step = jax.ShapeDtypeStruct((), jnp.int32)
  lowered = (
    programs.prepare.lower(params, episodes, weights),
    programs.evaluate.lower(params, prepared, state),
    programs.run[clean].lower(params, prepared, state, step, step),
  )
  analyses = [program.compile().memory_analysis() for program in lowered]
  shard = lambda leaf: math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
  return max(
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    + memory.temp_size_in_bytes
    - memory.alias_size_in_bytes
    for memory in analyses
  ), sum(map(shard, jax.tree.leaves(params)))


def size_in_bytes(tree: Any) -> int:
  """Bytes of all leaves, arrays or `jax.ShapeDtypeStruct`."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def memory_limit(device: jax.Device) -> int:
  """Bytes that may be filled on a device; on a CPU, where it does not say, of the host's."""
  host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  host = min(host, *_container_limit("memory.max") or (host,))
  return int(MEMORY_SHARE * ((device.memory_stats() or {}).get("bytes_limit") or host))


def peak_memory() -> int:
  """Largest memory so far, in bytes: a device's where it counts, else this process's."""
  stats = jax.local_devices()[0].memory_stats() or {}
  resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  return int(stats.get("peak_bytes_in_use", resident))
