"""How many tasks run at once, on which devices; what does not fit."""

import functools
import types

import jax
import numpy as np
import pytest

from mdtrap_jax.methods import finetune
from mdtrap_jax.methods.heads import make_method
from mdtrap_jax.methods.method import Work
from mdtrap_jax.run import memory as in_memory
from mdtrap_jax.run import needs
from mdtrap_jax.run import place as placing
from mdtrap_jax.run import programs as batching
from mdtrap_jax.run.needs import Need
from tests.episodes import row
from tests.methods.test_finetune import setup
from tests.methods.test_heads import make_task


def test_memory_decides_how_many_episodes_run_at_once(monkeypatch):
  adaptation, params, _, episodes, weights = setup()
  place = functools.partial(placing.place, adaptation, params, row(episodes, 0), weights)
  one = jax.devices()[:1]
  assert place(most=10**6, devices=one, memory=2**31).each > 100
  with pytest.raises(MemoryError, match="one task needs .* GiB"):
    place(most=4, devices=one, memory=2**16, fixed=True)
  _, mesh, each, _ = place(most=8, devices=jax.devices()[:4])  # cores: by the number of rows
  assert (mesh.size, each) == (4, 2)
  assert place(most=3).mesh.size == 3  # no core adapts what nobody asked for
  with monkeypatch.context() as patch:
    patch.setattr(finetune, "LARGE", 1)
    assert place(most=3).mesh.size == 1  # a large encoder's products use all cores
  needed, _ = needs.bytes_needed(
    adaptation, params, row(episodes, 0), weights, batching.task_mesh(one)
  )
  monkeypatch.setattr(placing, "memory_limit", lambda device: 3 * needed)
  assert place(most=100).mesh.size == 3  # cores share the memory
  monkeypatch.setattr(placing, "memory_limit", lambda device: needed - 1)
  assert place(most=100).method.chunk is not None  # rows are encoded in parts, which fits
  with pytest.raises(MemoryError, match="one task needs .* GiB"):
    place(most=100, fixed=True)


class Compiler:
  """One that counts, for tasks of 60 bytes beside weights of 30 and `fixed` bytes more."""

  def __init__(self, fixed=0, capacity=1000, says=True):
    self.fixed, self.capacity, self.says, self.calls = fixed, capacity, says, []

  def __call__(self, method, params, task, weights, mesh, each=1):
    """As `bytes_needed`; beyond its capacity it refuses, with or without a number."""
    self.calls.append((getattr(method, "chunk", None), each))
    own = 60 if getattr(method, "chunk", None) is None else 60 * method.chunk / 32
    peak = 30 + self.fixed + int(own * each)
    return Need(peak if peak <= self.capacity or self.says else None, 30)


class Stub(types.SimpleNamespace):
  """A method that guesses what a task needs, and can encode 16, 8, … of its 32 rows at a time."""

  def work(self, params, task, variants):
    return Work(1, None, False, self.likely)

  def smaller(self, task):
    chunk = (self.chunk or 32) // 2
    return Stub(likely=self.likely, chunk=chunk) if chunk else None


def stubbed(monkeypatch, compiler=None, likely=None, **options):
  """`place` by a compiler of one's own."""
  compiler = compiler or Compiler(capacity=10**6)
  monkeypatch.setattr(placing, "bytes_needed", compiler)
  params = jax.ShapeDtypeStruct((30,), "int8")
  return placing.place(Stub(likely=likely, chunk=None), params, None, {}, **options)


def tried(monkeypatch, compiler, likely, memory, most=10**6):
  """How many tasks were found to fit, and what was compiled to know that."""
  placed = stubbed(
    monkeypatch, compiler, likely, most=most, memory=memory, devices=jax.devices()[:1]
  )
  return placed.each, [each for _, each in compiler.calls]


@pytest.mark.parametrize(("likely", "each"), [(60, 14), (80, 10), (100, 8)])
def test_a_good_guess_is_compiled_once_and_runs(monkeypatch, likely, each):
  assert tried(monkeypatch, Compiler(), likely, 1000) == (each, [each])


def test_a_low_guess_costs_one_more_compilation(monkeypatch):
  each, compiled = tried(monkeypatch, Compiler(), 400, 1000)
  assert (each, compiled) == (13, [2, 13])


@pytest.mark.parametrize("fixed", [0, 100, 400])
@pytest.mark.parametrize("likely", [1, 10, 30])
def test_a_high_guess_costs_at_most_two_more(monkeypatch, likely, fixed):
  each, compiled = tried(monkeypatch, Compiler(fixed), likely, 1000)
  assert 30 + fixed + 60 * each <= 900 < 30 + fixed + 60 * (each + 2)
  assert each == compiled[-1]
  assert len(compiled) <= (2 if not fixed else 3)


def test_a_compiler_that_names_no_numbers(monkeypatch):
  each, compiled = tried(monkeypatch, Compiler(says=False), 10, 1000)
  assert (each, compiled) == (13, [87, 1, 13])


def test_only_one_fits_though_more_were_hoped_for(monkeypatch):
  assert tried(monkeypatch, Compiler(fixed=100, capacity=200), 10, 220) == (1, [16, 2, 1])


@pytest.mark.parametrize(
  ("memory", "fixed", "chunk", "compiled"), [(84, 0, 16, 2), (50, 0, 8, 2), (47, 6, 2, 3)]
)
def test_chunks_where_not_even_one_fits(monkeypatch, memory, fixed, chunk, compiled):
  """Each refusal says how much less is needed: what is far too large is not compiled."""
  compiler = Compiler(fixed, capacity=memory)
  placed = stubbed(monkeypatch, compiler, 60, most=9, memory=memory, devices=jax.devices()[:1])
  assert (placed.method.chunk, placed.each) == (chunk, 1)
  assert len(compiler.calls) == compiled
  assert placed.why


def test_weights_that_do_not_fit_are_compiled_once(monkeypatch):
  compiler = Compiler(capacity=30)
  with pytest.raises(MemoryError, match="one task needs 0.00 GiB"):
    stubbed(monkeypatch, compiler, 60, most=9, memory=30, devices=jax.devices()[:1])
  assert compiler.calls == [(None, 1)]


@pytest.mark.parametrize(
  ("memory", "each", "compiled"),
  [(1000, 7, [7]), (280, 1, [1]), (190, 1, [1]), (100, 1, [1])],
)
def test_several_tasks_fill_half_of_a_gpu_and_one_all_of_it(monkeypatch, memory, each, compiled):
  """The largest program's memory is one piece there, between whatever else there is."""
  monkeypatch.setattr(placing, "PIECE", 0.5)
  monkeypatch.setattr(placing, "task_mesh", lambda devices, shards: None)
  compiler, gpu = Compiler(), types.SimpleNamespace(platform="gpu")
  placed = stubbed(monkeypatch, compiler, 60, most=10**6, memory=memory, devices=[gpu])
  assert (placed.each, placed.method.chunk) == (each, None)
  assert [count for _, count in compiler.calls] == compiled


def exhausted(what="RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12.27GiB\nmore"):
  return jax.errors.JaxRuntimeError(what)


def test_half_of_what_did_not_fit(caplog):
  placement = placing.Placement(None, None, 7)
  assert placing.halved(placement, exhausted()).each == 3
  assert "7 tasks at once" in caplog.text
  assert "12.27GiB" in caplog.text
  with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
    placing.halved(placement, exhausted("INTERNAL: a fault of another kind"))
  with pytest.raises(jax.errors.JaxRuntimeError, match="Out of memory"):
    placing.halved(placement._replace(each=1), exhausted())


def test_in_memory_batches_that_do_not_fit_are_halved(monkeypatch):
  """Three tasks, of which one device is asked to take two at once; the second time it cannot."""
  tasks = [make_task(seed=seed)._replace(number=seed) for seed in range(3)]
  tasks = jax.tree.map(lambda *rows: np.stack(rows), *tasks)
  adapt = functools.partial(in_memory.adapt, make_method("copa", ways=3, steps=4), None, tasks)
  placed = {"each": 2, "devices": jax.devices()[:1]}
  expected, reported, sizes = adapt(placing=placed), [], []
  one_batch = in_memory.adapt_batch

  def fitting(programs, method, params, prepared, state, lengths, **options):
    sizes.append(len(state.status))
    result = one_batch(programs, method, params, prepared, state, lengths, **options)
    if len(sizes) == 2:
      raise exhausted()
    return result

  monkeypatch.setattr(in_memory, "adapt_batch", fitting)
  found = adapt(placing=placed, report=reported.append)
  assert sizes == [2, 2, 1]
  assert reported == sorted(reported)
  assert reported[-1] == 1
  for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_batches_are_even(monkeypatch):
  """Of 15 tasks, of which 10 are likely to fit at once, no five are computed for nothing."""
  each, compiled = tried(monkeypatch, Compiler(), 80, 1000, most=15)
  assert (each, compiled) == (8, [8])


@pytest.mark.parametrize(
  ("most", "asked", "devices", "each"), [(10, 0, 4, 3), (2, 0, 2, 1), (10, 7, 4, 3), (10, 2, 4, 2)]
)
def test_devices_share_the_tasks(monkeypatch, most, asked, devices, each):
  _, mesh, found, _ = stubbed(
    monkeypatch, likely=60, most=most, memory=1000, each=asked, devices=jax.devices()[:4]
  )
  assert (mesh.size, found) == (devices, each)


def test_less_memory_than_one_task_needs(monkeypatch):
  with pytest.raises(MemoryError, match="one task needs 0.00 GiB"):
    stubbed(monkeypatch, most=1, memory=99, devices=jax.devices()[:1], fixed=True)


@pytest.mark.parametrize(
  ("message", "peak"),
  [
    ("RESOURCE_EXHAUSTED: Used 20.25G of 15.75G hbm. Exceeded by 4.50G.", int(20.25 * 2**30)),
    (
      "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
      "temporaries (512.5M) exceeds available HBM (15.75G).",
      int(512.5 * 2**20),
    ),
    ("RESOURCE_EXHAUSTED: no more", None),
  ],
)
def test_a_refusal_is_an_answer(message, peak):
  class Program:
    def compile(self):
      raise jax.errors.JaxRuntimeError(message)

  assert needs._peak(Program()) == peak


def test_what_was_found_to_fit_runs_and_is_not_compiled_again():
  adaptation, params, _, episodes, _ = setup()
  compiled = []

  def listen(name, seconds, **about):
    if name == "/jax/core/compile/backend_compile_duration" and "call" in about["fun_name"]:
      compiled.append(about["fun_name"])

  batching.make_programs.cache_clear()
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    in_memory.adapt(
      adaptation, params, episodes, placing={"devices": jax.devices()[:2], "memory": 2**31}
    )
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  # The views, the evaluation, before the first step too, and the steps: each once.
  assert adaptation.baseline is None
  assert len(compiled) == 2 + len({phase.clean for phase in adaptation.phases})


def test_split_weights_need_less_memory_and_devices_that_they_divide():
  adaptation, params, _, episodes, weights = setup()
  needed = lambda shards: needs.bytes_needed(
    adaptation,
    params,
    row(episodes, 0),
    weights,
    batching.task_mesh(jax.devices()[:shards], shards),
  )
  (one, shared), (one_split, shared_split) = needed(1), needed(4)
  assert shared_split < 0.6 * shared  # the stem stays whole
  assert one_split < one - (shared - shared_split) / 2
  place = functools.partial(placing.place, adaptation, params, row(episodes, 0), weights)
  _, mesh, each, _ = place(most=10, shards=4)
  assert (dict(mesh.shape), each) == ({"task": 2, "weights": 4}, 2)
  with pytest.raises(ValueError, match="weight_shards=3: must divide .* 8"):
    place(most=10, shards=3)
