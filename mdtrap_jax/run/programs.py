"""The only place where tasks are batched and spread over devices.

Everything else is written for one task. Here it is mapped over variants of the terms' weights and
over a leading axis `[E, ...]` of tasks, and that axis is split over all devices of a mesh. Tasks
never communicate.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mdtrap_jax.methods.method import Evaluation, Method
from mdtrap_jax.models import sharding
from mdtrap_jax.objectives import chain
from mdtrap_jax.run.devices import cpu_cores

AXIS = "task"


def task_mesh(devices: Sequence[jax.Device] | None = None, shards: int = 1) -> Mesh:
  """A mesh over this process's devices or those given, to which tasks are dealt out.

  Args:
    devices: as many as a multiple of `shards`.
    shards: with more than one, a second axis of devices that hold one copy of the weights
      between them; see `models.sharding`.
  """
  devices = np.asarray(jax.local_devices() if devices is None else devices)
  if shards == 1:
    return Mesh(devices, (AXIS,))
  return Mesh(devices.reshape(-1, shards), (AXIS, sharding.AXIS))


def over_tasks(
  fn: Callable[..., Any], mesh: Mesh, mapped: tuple[bool, ...], donate: tuple[int, ...] = ()
) -> Callable[..., Any]:
  """Compiles `fn`, written for one task, for a batch of them on all devices of `mesh`.

  Args:
    fn: pure function of one task.
    mesh: from `task_mesh`.
    mapped: for each positional argument, whether it has a leading task axis `[E, ...]`;
      the others are shared by all tasks. `E` is a multiple of the number of devices.
    donate: arguments whose memory the result may take over.
  """
  batched = jax.vmap(fn, in_axes=tuple(0 if m else None for m in mapped))
  tasks = PartitionSpec(mesh.axis_names)

  # `shard_map` and not sharding propagation: no collective can creep in between tasks.
  def call(*arguments):
    specs = tuple(
      tasks if m else sharding.specs(argument)
      for m, argument in zip(mapped, arguments, strict=True)
    )
    return jax.shard_map(batched, mesh=mesh, in_specs=specs, out_specs=tasks, check_vma=False)(
      *arguments
    )

  return jax.jit(  # unused weights are in the memory too: keep them in its analysis
    call, donate_argnums=donate, keep_unused=True, compiler_options=compiler_options(mesh)
  )


def compiler_options(mesh: Mesh) -> dict[str, Any]:
  """What makes XLA's programs for a CPU faster, where this XLA knows the options.

  Without the first, matrix products and what surrounds them are fused into YNNPACK kernels,
  which measured a fifth slower than Eigen's products and plain loops on the encoders' shapes.
  The second keeps a product on its own core, if every core has tasks of its own.

  Args:
    mesh: that a program runs on.
  """
  if mesh.devices.flat[0].platform != "cpu":
    return {}
  options: dict[str, Any] = {"xla_cpu_experimental_ynn_fusion_type": ""}
  if mesh.size >= cpu_cores():
    options["xla_cpu_multi_thread_eigen"] = False
  return {name: value for name, value in options.items() if _known_to_xla(name, value)}


@functools.cache
def _known_to_xla(name: str, value: Any) -> bool:
  cpu = jax.local_devices(backend="cpu")[0]
  with jax.default_device(cpu):
    try:
      jax.jit(lambda x: x, compiler_options={name: value}).lower(0.0).compile()
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
  """The compiled programs of a run; evaluations are batches `[E, P, ...]` of tasks × variants.

  States are so too, where variants of weights are compared; else `[E, ...]`.
  """

  prepare: Callable[..., Any]  # (params, tasks, weights) -> (prepared, state)
  baseline: Callable[..., Any]  # (params, prepared, state) -> Evaluation
  evaluate: Callable[..., Any]  # likewise
  run: dict[bool, Callable[..., Any]]  # [clean] (params, prepared, state, start, stop) -> state


@functools.lru_cache(maxsize=16)  # groups of one method and shape share what is compiled
def make_programs(method: Method, mesh: Mesh, varied: bool) -> Programs:
  """Maps the functions of a method over variants, and those over tasks.

  Args:
    method: whose tasks these are.
    mesh: from `task_mesh`.
    varied: whether the weights of `prepare` hold variants, `{term: [P]}`; else they are empty.
  """
  variants = over_variants(method) if varied else _single(method)
  mapped = (False, True, True, False, False)
  evaluate = over_tasks(variants.evaluate, mesh, mapped[:3])
  return Programs(
    prepare=over_tasks(variants.prepare, mesh, (False, True, False)),
    baseline=over_tasks(variants.baseline, mesh, mapped[:3]) if method.baseline else evaluate,
    evaluate=evaluate,
    run={clean: over_tasks(run, mesh, mapped, donate=(2,)) for clean, run in variants.run.items()},
  )


def _with_terms(evaluate: Callable[..., Evaluation]) -> Callable[..., Evaluation]:
  """An evaluation that says what the terms came to, too; their memories stay on the devices."""

  def call(params, prepared, state):
    terms = {
      name: term._replace(memory=()) for name, term in chain.term_states(state.opt_state).items()
    }
    return evaluate(params, prepared, state)._replace(terms=terms)

  return call


def announced(
  programs: Programs, busy: Callable[[str], contextlib.AbstractContextManager[None]]
) -> Programs:
  """The same programs, whose first calls, which compile them, are within `busy("compiling …")`."""

  def announce(name, program):
    called = []

    def call(*arguments):
      if called:
        return program(*arguments)
      called.append(True)
      with busy(f"compiling {name}"):
        return program(*arguments)

    return call

  return Programs(
    prepare=announce("the views", programs.prepare),
    baseline=announce("the baseline", programs.baseline),
    evaluate=announce("the evaluation", programs.evaluate),
    run={
      clean: announce("the step with clean images" if clean else "the step", run)
      for clean, run in programs.run.items()
    },
  )


def over_variants(method: Method) -> Programs:
  """A method's functions of one task under `P` settings of the terms' weights.

  The variants share the task's data, views, draws and everything below the first adapted
  block, so that they are compared on equal terms and in one program.
  """

  def prepare(params, task, weights):
    prepared, state = method.prepare(params, task)
    vary = lambda weight: state._replace(opt_state=chain.with_weights(state.opt_state, weight))
    return prepared, jax.vmap(vary)(weights)

  over = lambda fn: fn and jax.vmap(_with_terms(fn), in_axes=(None, None, 0))

  def run(params, prepared, state, start, stop, *, clean):
    one = functools.partial(method.run, clean=clean)
    return jax.vmap(one, in_axes=(None, None, 0, None, None))(params, prepared, state, start, stop)

  runs = {clean: functools.partial(run, clean=clean) for clean in (False, True)}
  return Programs(prepare, over(method.baseline), over(method.evaluate), runs)


def _single(method: Method) -> Programs:
  """A method's functions of one task; evaluations get an axis of one variant."""

  def lift(fn):
    return fn and (
      lambda *arguments: jax.tree.map(lambda leaf: leaf[None], _with_terms(fn)(*arguments))
    )

  prepare = lambda params, task, weights: method.prepare(params, task)
  runs = {clean: functools.partial(method.run, clean=clean) for clean in (False, True)}
  return Programs(prepare, lift(method.baseline), lift(method.evaluate), runs)
