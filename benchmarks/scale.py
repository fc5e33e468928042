"""How long the paper's tables take on machines of which one kind has been measured.

`python -m benchmarks.scale` prints the table of `docs/devices.md` for CLIP ViT-B/16: SVL + RA on
the four targets, 800 episodes at 1 shot and 400 at 5. It follows from operations, the chips' peaks
and the share of them that a step reaches: on TPUs by their compiler's estimate
(`benchmarks.accelerator`), on GPUs as measured on an H200
(docs/on_gpu_h200.json). An episode takes as long however many run at once, for one fills a chip;
compiling, loading and preparing are left out.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from benchmarks.accelerator import CHIPS
from benchmarks.throughput import encoder_flops
from mdtrap_jax import models
from mdtrap_jax.objectives.chain import mark

MODEL, WAYS, VIEWS, QUERIES = "clip-vit-b16", 5, 5, 15
EPISODES = {1: 800, 5: 400}  # of each target, by shots
STEPS_PER_SHOT = (250, 250, 250, 125)  # ISIC, EuroSAT, CropDisease, ChestX
EVALUATIONS = 6  # zero-shot, and after every fifth of the steps
# Of one episode, 1 shot, bfloat16 on a v5e: BENCHMARKS.md, the kernels' convention included.
STEP_CYCLES, EVALUATE_CYCLES, STEP_BYTES = 29.0e6, 29.0e6, 1.35 * 2**30
# Of a v5e's shares those that other chips reach, by their compilers: in a step of two blocks, and
# in classifying before the last changes.
REACHED = {"v5e": (1.0, 1.0), "v5p": (0.89, 0.91), "v6e": (0.53, 0.51)}
WEIGHT_BYTES = 0.16 * 2**30  # of the image tower, which all episodes share
# Of one of 49 episodes at once on an H200: a step with the clean images, and classifying.
H200_STEP, H200_EVALUATE, H200_BYTES = 8.42e-3, 6.56e-3, 1.21 * 2**30
H200_PEAK = 989e12  # and an H100's
MEMORY_SHARE = 0.9  # that episodes may fill, as `run.devices` has it
LOADED = 133 / 2  # images a second by one thread: BENCHMARKS.md, 600×450 JPEG files


class Machine(NamedTuple):
  """Chips of one kind, and which share of their peak the programs reach."""

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


def operations(images: int, backward: bool) -> float:
  """FLOP of the encoder's blocks for so many images; backward goes to the activations alone."""
  return (2 if backward else 1) * encoder_flops(models.build(MODEL), images)


def machines() -> dict[str, Machine]:
  """The table's rows. v5p-8 has eight cores, which are four chips."""
  v5e = CHIPS["v5e"]
  share = lambda flop, cycles: flop / (cycles / v5e.hertz * v5e.flop_per_second)
  shares = (
    share(operations(WAYS * (VIEWS + 1), True), STEP_CYCLES),
    share(operations(WAYS * QUERIES, False), EVALUATE_CYCLES),
  )
  on_a_card = lambda flop, seconds: flop / (seconds * H200_PEAK)
  card_shares = (
    on_a_card(operations(WAYS * (VIEWS + 1), True), H200_STEP),
    on_a_card(operations(WAYS * QUERIES, False), H200_EVALUATE),
  )
  own = STEP_BYTES - WEIGHT_BYTES
  tpu = lambda kind, chips, memory: Machine(
    chips,
    CHIPS[kind].flop_per_second,
    memory,
    own,
    *(share * part for share, part in zip(shares, REACHED[kind], strict=True)),
  )
  return {
    "v5e-1": tpu("v5e", 1, 16e9),
    "v5e-16": tpu("v5e", 16, 16e9),
    "v5e-256": tpu("v5e", 256, 16e9),
    "v6e-8": tpu("v6e", 8, 32e9),
    "v5p-8": tpu("v5p", 4, 95e9),
    "H100": Machine(1, H200_PEAK, 80e9, H200_BYTES, *card_shares),
    "H200": Machine(1, H200_PEAK, 141e9, H200_BYTES, *card_shares),
  }


def episode_seconds(machine: Machine, shots: int, steps: int) -> float:
  """Of one episode on one chip, SVL + RA."""
  clean_rows = WAYS * shots
  seconds = lambda images, backward, share: operations(images, backward) / (machine.peak * share)
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
  """All machines and shots, as Markdown."""
  heads = ("machine", "chips", "shots", "at once", "episodes/s", "hours", "chip-hours")
  heads = (*heads, "images/s", "loading cores")
  lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
  for name, machine in machines().items():
    for shots in EPISODES:
      found = estimate(machine, shots)
      lines.append(
        f"| {name} | {machine.chips} | {shots} | {found.at_once} | "
        f"{found.episodes_per_second:.3f} | {found.hours:.2f} | {found.chip_hours:.2f} | "
        f"{found.images_per_second:.1f} | {found.images_per_second / LOADED:.1f} |"
      )
  return "\n".join(lines)


if __name__ == "__main__":
  print(table())
