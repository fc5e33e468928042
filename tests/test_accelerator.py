"""What a TPU's compiler says of the programs; needs `pip install 'jax[tpu]'`, but no TPU."""

import importlib.util

import pytest

from benchmarks import accelerator, attention
from mdtrap_jax.run.needs import peak_bytes

COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
LOOPS = """
%body (x: f32[8]) -> f32[8] {
  %dot = f32[8] fusion(%x), backend_config={"estimated_cycles":"7"}
}

%condition (x: f32[8]) -> pred[] {
  %turns = s32[]{:T(128)} constant(12)
}

%steps (x: f32[8]) -> pred[] {
  %stop = s32[]{:T(128)} parameter(1)
}

%outer (x: f32[8]) -> f32[8] {
  %blocks = f32[8] while(%x), condition=%condition, body=%body
  %add = f32[8] fusion(%x), backend_config={"estimated_cycles":"5"}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %loop = f32[8] while(%x), condition=%steps, body=%outer
  %kernel = bf16[64,4] custom-call(bf16[64,12] %x), custom_call_target="tpu_custom_call", \
backend_config={"custom_call_config":{"cost_estimate":{"flops":"800","transcendentals":"1",\
"bytes_accessed":"30"}}}
}
"""


def test_loops_count_as_often_as_they_turn_and_kernels_by_convention():
  chip = accelerator.Chip(flop_per_second=100.0, bytes_per_second=2.0, hertz=4.0)
  kernel = 2 * 15 * 4  # twice the 15 seconds that its bytes take, more than its operations
  assert accelerator.estimated_cycles(LOOPS, chip) == 12 * 7 + 5 + kernel


def test_a_unit_is_busy_as_far_as_its_slots_are_used():
  text = "== CAPACITY:\nMXU, XLU\n    4     2\n== UTILIZATION:\n2 0\n4 1\n2 0\n0 1\n"
  assert attention.busy(text) == {"MXU": 0.5, "XLU": 0.25}


@pytest.fixture(scope="module")
def compiled():
  if importlib.util.find_spec("libtpu") is None:
    pytest.skip("libtpu is missing: the programs for a TPU are NOT checked; pip install 'jax[tpu]'")
  accelerator.offline()
  arguments = accelerator.parse_arguments(["--model=miniature", "--topology=v5e:2x2"])
  return {name: lowered.compile() for name, lowered in accelerator.lower(arguments).items()}


def test_programs_fit_a_chip(compiled):
  assert set(compiled) == {"prepare", "step", "step_plain", "evaluate"}
  for name, program in compiled.items():
    assert peak_bytes(program) < 2**28, name


def test_episodes_do_not_communicate(compiled):
  for name in ("step", "step_plain", "evaluate"):
    hlo = compiled[name].as_text()
    assert accelerator.estimated_cycles(hlo, accelerator.CHIPS["v5e"]) > 0
    assert not [word for word in COLLECTIVES if word in hlo], name


def test_a_part_is_compiled_alone(compiled):
  """Two of four blocks cost their share of the operations, and only what is asked for is made."""
  options = ["--model=miniature", "--blocks=2", "--only", "evaluate"]
  arguments = accelerator.parse_arguments(options)
  (part,) = accelerator.measure(arguments)["programs"].values()
  whole = accelerator.model_flops(accelerator.parse_arguments(options[:1]))["evaluate"]
  assert part["model_flop"] == whole / 2
  cycles = accelerator.estimated_cycles(compiled["evaluate"].as_text(), accelerator.CHIPS["v5e"])
  assert part["estimated_cycles"] < cycles


@pytest.mark.parametrize("given", [["--topology=v1:2x2"], ["--chips=6", "--shards=4"]])
def test_chips_that_cannot_be_had_are_refused(given):
  with pytest.raises(ValueError, match=f"{given[0]}: give"):
    accelerator.measure(accelerator.parse_arguments(given))
