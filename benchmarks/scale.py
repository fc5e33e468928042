"""How long the paper's tables take on machines of which one kind has been measured.

`python -m benchmarks.scale` prints the table of `docs/devices.md` for the paper's backbones: SVL +
RA on the four targets, 800 episodes at 1 shot and 400 at 5. It follows from operations, the chips'
peaks and the share of them that a step reaches: on TPUs by their compiler's estimate
(`benchmarks.accelerator`), on GPUs as measured on an H200 (docs/on_gpu_h200.json). An episode takes
as long however many run at once, for one fills a chip; compiling, loading and preparing are left
out.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from benchmarks.accelerator import CHIPS
from benchmarks.throughput import encoder_flops
from mdtrap_jax import models
from mdtrap_jax.objectives.chain import mark

WAYS, VIEWS, QUERIES = 5, 5, 15
EPISODES = {1: 800, 5: 400}  # of each target, by shots
STEPS_PER_SHOT = (250, 250, 250, 125)  # ISIC, EuroSAT, CropDisease, ChestX
EVALUATIONS = 6  # zero-shot, and after every fifth of the steps
# Of a v5e's shares those that other chips reach, by their compilers: in a step of two blocks, and
# in classifying before the last changes.
REACHED = {"v5e": (1.0, 1.0), "v5p": (0.89, 0.91), "v6e": (0.53, 0.51)}
WEIGHT_BYTES = 0.16 * 2**30  # of the image tower, which all episodes share
# Of one of 49 episodes at once on an H200: a step of CLIP with the clean images, and classifying.
H200_STEP, H200_EVALUATE, H200_BYTES = 8.42e-3, 6.56e-3, 1.21 * 2**30
H200_PEAK = 989e12  # and an H100's
MEMORY_SHARE = 0.9  # that episodes may fill, as `run.devices` has it
LOADED = 133 / 2  # images a second by one thread: BENCHMARKS.md, 600×450 JPEG files


class Backbone(NamedTuple):
  """One episode at 1 shot, bfloat16, on a v5e: BENCHMARKS.md, the kernels' convention included."""

  model: str  # a named size
  step: float  # cycles of a step with the clean images
  evaluate: float  # cycles of classifying the queries
  memory: float  # bytes that a step needs, weights included


CLIP = Backbone("clip-vit-b16", 29.0e6, 29.0e6, 1.35 * 2**30)
BACKBONES = (
  CLIP,
  Backbone("siglip2-b16-224", 31.4e6, 31.2e6, 1.42 * 2**30),
  Backbone("pe-core-b16-224", 31.4e6, 30.8e6, 1.39 * 2**30),
)


class Machine(NamedTuple):
  """Chips of one kind, and which share of their peak a backbone's programs reach."""

  model: str
  chips: int
  peak: float  # FLOP/s of a chip, bfloat16
  memory: float  # bytes of a chip
  episode: float  # bytes of an episode at 1 shot, beside the weights
  step: float  # share of the peak in a step
  evaluate: float  # share in classifying queries


class Estimate(NamedTuple):
  """What a machine does with the table of so many shots."""

  at_once: int  # episodes on all chips, as far as memory goes
  episodes_per_second: float  # of 250 steps a shot
  hours: float  # for the four targets
  chip_hours: float
  images_per_second: float  # that the loader has to give


def operations(model: str, images: int, backward: bool) -> float:
  """FLOP of the encoder's blocks for so many images; backward goes to the activations alone."""
  return (2 if backward else 1) * encoder_flops(models.build(model), images)


def machines(backbone: Backbone) -> dict[str, Machine]:
  """The table's rows. v5p-8 has eight cores, four chips; cards were measured with CLIP alone."""
  model, v5e = backbone.model, CHIPS["v5e"]
  train = operations(model, WAYS * (VIEWS + 1), True)
  classify = operations(model, WAYS * QUERIES, False)
  shares = lambda step, evaluate, peak: (train / (step * peak), classify / (evaluate * peak))
  on_v5e = shares(backbone.step / v5e.hertz, backbone.evaluate / v5e.hertz, v5e.flop_per_second)

  def tpu(kind: str, chips: int, memory: float) -> Machine:
    reached = (share * part for share, part in zip(on_v5e, REACHED[kind], strict=True))
    own = backbone.memory - WEIGHT_BYTES
    return Machine(model, chips, CHIPS[kind].flop_per_second, memory, own, *reached)

  found = {
    "v5e-1": tpu("v5e", 1, 16e9),
    "v5e-16": tpu("v5e", 16, 16e9),
    "v5e-256": tpu("v5e", 256, 16e9),
    "v6e-8": tpu("v6e", 8, 32e9),
    "v5p-8": tpu("v5p", 4, 95e9),
  }
  if backbone == CLIP:
    on_a_card = shares(H200_STEP, H200_EVALUATE, H200_PEAK)
    # Of the three quarters that JAX takes for itself, half: as `run.place.PIECE` has it.
    for name, memory in (("H100", 30e9), ("H200", 52.9e9)):
      found[name] = Machine(model, 1, H200_PEAK, memory, H200_BYTES, *on_a_card)
  return found


def episode_seconds(machine: Machine, shots: int, steps: int) -> float:
  """Of one episode on one chip, SVL + RA."""
  clean_rows = WAYS * shots
  seconds = lambda images, backward, share: (
    operations(machine.model, images, backward) / (machine.peak * share)
  )
  with_clean = mark(3, steps)
  return (
    with_clean * seconds((VIEWS + 1) * clean_rows, True, machine.step)
    + (steps - with_clean) * seconds(VIEWS * clean_rows, True, machine.step)
    + EVALUATIONS * seconds(WAYS * QUERIES, False, machine.evaluate)
  )


def estimate(machine: Machine, shots: int) -> Estimate:
  """The paper's table of so many shots on a machine."""
  room = MEMORY_SHARE * machine.memory - WEIGHT_BYTES
  at_once = machine.chips * math.floor(room / (shots * machine.episode))
  on_a_chip = math.ceil(EPISODES[shots] / machine.chips)  # of each target, one after the other
  hours = on_a_chip * sum(episode_seconds(machine, shots, shots * n) for n in STEPS_PER_SHOT) / 3600
  rate = machine.chips / episode_seconds(machine, shots, shots * STEPS_PER_SHOT[0])
  images = rate * WAYS * (shots + QUERIES)
  return Estimate(at_once, rate, hours, machine.chips * hours, images)


def table() -> str:
  """All backbones, machines and shots, as Markdown."""
  heads = ("backbone", "machine", "chips", "shots", "at once", "episodes/s", "hours", "chip-hours")
  heads = (*heads, "images/s", "loading cores")
  lines = ["| " + " | ".join(heads) + " |", "|---|---" + "|---:" * (len(heads) - 2) + "|"]
  for backbone in BACKBONES:
    for name, machine in machines(backbone).items():
      for shots in EPISODES:
        found = estimate(machine, shots)
        lines.append(
          f"| {backbone.model} | {name} | {machine.chips} | {shots} | {found.at_once} | "
          f"{found.episodes_per_second:.3f} | {found.hours:.2f} | {found.chip_hours:.2f} | "
          f"{found.images_per_second:.1f} | {found.images_per_second / LOADED:.1f} |"
        )
  return "\n".join(lines)


if __name__ == "__main__":
  print(table())
