"""The study of the trap: what a search on validation worlds chose, measured once on test worlds.

`docs/study.md` is the protocol, written before anything ran. In order, each resumable:

  python -m benchmarks.trap search WORK
  python -m benchmarks.trap test WORK --isic=DIR --cropdisease=DIR [--until=HH:MM] \
    [--worlds=A,B] [--block=20] [--at-once=0] [--dtype=float32]
  python -m benchmarks.trap table WORK --out=docs
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from absl import logging

from configs import comparison as small
from configs import default
from mdtrap_jax import config as configs
from mdtrap_jax import files
from mdtrap_jax.experiments import finetune, study
from mdtrap_jax.report import comparison, tables
from mdtrap_jax.report.figures import plot_study
from mdtrap_jax.run import devices, loop
from mdtrap_jax.run.lines import read_episodes
from mdtrap_jax.statistics import accuracy_of, mean_and_ci

VALIDATION, TEST = 0, 1  # seeds of the episodes
SEARCH_EPISODES = 24  # of each trial in each validation world
LEARNING_RATES = (1e-3, 3e-3)
STEPS = (20, 30, 40, 50)  # of which the longest runs; the others are its marks
DIVERGENCES = {"cosine": (0.3, 3.0), "softmax": (3.0, 30.0)}  # and the weights of RA
SVL_WEIGHTS = (0.1, 0.3)


class Choice(NamedTuple):
  """What a search settles."""

  learning_rate: float
  steps: int
  divergence: str = "cosine"
  svl: float = 0.1
  ra: float = 3.0


class Cell(NamedTuple):
  """A world of the test, and how it is asked."""

  world: str
  shots: int
  steps: int = 0  # other than the chosen ones
  methods: tuple[str, ...] = ()  # of `METHODS`; () is all


MIDDLE = (1, 4)  # a window of the study's that is left out here
METHODS = {window: methods for window, methods in study.METHODS.items() if window != MIDDLE}
TWO = ("vlm", "svl_ra")
WORLDS = ("satellite", "dermoscopy", "digits", "isic", "cropdisease")
# Rounds of the test: until which number of episodes, and where. The clock ends it anywhere.
ROUNDS: tuple[tuple[int, tuple[Cell, ...]], ...] = (
  (40, tuple(Cell(world, 1) for world in WORLDS)),
  (20, tuple(Cell(world, 5, methods=TWO) for world in ("satellite", "digits"))),
  (80, tuple(Cell(world, 1) for world in WORLDS)),
  (40, (Cell("satellite", 1, 50, TWO),)),
  (400, tuple(Cell(world, 1) for world in WORLDS)),
)


def data_of(world: str, folders: Mapping[str, str]) -> dict[str, Any]:
  """The fields of `data` that make a world."""
  if world in small.FOLDERS:
    names = small.FOLDERS[world]
    path = folders.get(world) or f"give --{world}="
    return {"name": "folder", "path": path, "class_names": names, "small_classes": "drop"}
  if world == "digits":
    return {"name": "digits"}
  return {"name": "world", "domain": world, "severity": 0.75}


def make_config(
  data: Mapping[str, Any],
  choice: Choice,
  variants: Mapping[str, Mapping[str, float]],
  **fields: Any,
) -> ml_collections.ConfigDict:
  """A fine-tuning config of the study; `fields` are dotted names with `__` for dots."""
  config = default.get_config()
  settings = {
    "model.name": "miniature",
    # By cost: what lies below the upper half is computed once an episode.
    "lora.position": "half-up",
    "data.queries": 30,
    "adapt.steps": choice.steps,
    "adapt.diagnose": True,
    "optimizer.learning_rate": choice.learning_rate,
    "objective.ra.divergence": choice.divergence,
    "objective.ra.weight": choice.ra,
    "objective.svl.weight": choice.svl,
    **{f"data.{name}": value for name, value in data.items()},
    **{name.replace("__", "."): value for name, value in fields.items()},
    "variants": ml_collections.ConfigDict(variants),
  }
  for name, value in settings.items():
    configs.put(config, name, value)
  return config


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
  """One run, or as many as it has variants; those that adapt alike share what is compiled."""
  loop.run(finetune.experiment(config), workdir)


def baseline_trials() -> Iterator[tuple[str, Choice]]:
  """Cross-entropy alone: a run for each rate; its marks are the numbers of steps."""
  for rate in LEARNING_RATES:
    yield f"vlm-{rate:g}", Choice(rate, max(STEPS))


def search(work: Path, folders: Mapping[str, str]) -> None:
  """Runs all trials on the validation worlds and writes `search.csv` and `choice.json`."""
  common = dict(seed=VALIDATION, episodes=SEARCH_EPISODES, data__cache_dir=str(work / "cache"))
  worlds = ("radiograph", "closeup")
  rows = []
  for name, choice in baseline_trials():
    for world in worlds:
      place = work / "search" / world / name
      off = dict(objective__svl__weight=0.0, objective__ra__weight=0.0)
      run(make_config(data_of(world, folders), choice, {}, **common, **off), place)
      rows += [
        (world, "vlm", choice.learning_rate, steps, "", "", "", *_at(place, steps))
        for steps in STEPS
      ]
  best = _best(rows, lambda row: row[2:4])
  rate, steps = best
  for divergence, weights in DIVERGENCES.items():
    variants = {
      f"svl-{svl:g}-ra-{ra:g}".replace(".", "_"): {"svl": svl, "ra": ra}
      for svl in SVL_WEIGHTS
      for ra in weights
    }
    choice = Choice(rate, steps, divergence)
    for world in worlds:
      place = work / "search" / world / f"svl_ra-{divergence}"
      config = make_config(
        data_of(world, folders), choice, variants, **common, adapt__evaluate_at=(5,)
      )
      run(config, place)
      rows += [
        (world, "svl_ra", rate, steps, divergence, own["svl"], own["ra"], *_at(place / name, steps))
        for name, own in variants.items()
      ]
  found = [row for row in rows if row[1] == "svl_ra"]
  choice = Choice(rate, steps, *_best(found, lambda row: row[4:7]))
  header = ("world", "method", "learning_rate", "steps", "divergence", "svl", "ra")
  header += ("episodes", "zero_shot_mean", "accuracy_mean", "accuracy_ci95")
  files.write(work / "search.csv", tables.csv(header, rows))
  files.write(work / "choice.json", json.dumps(choice._asdict(), indent=2) + "\n")
  print(tables.text(header, rows), choice, sep="\n")


def _at(place: Path, steps: int) -> tuple[int, float, float, float]:
  """Episodes, zero-shot accuracy, and accuracy with its interval after some steps of a run."""
  lines = [line for line in read_episodes(place) if line["status"] == "ok"]
  found = mean_and_ci([line["accuracy_at"][str(steps)] for line in lines])
  return len(lines), accuracy_of(lines, "zero_shot_accuracy").mean, *found[:2]


def _best(rows, setting):
  """The setting whose accuracy, averaged over the worlds, is highest; the first of equals."""
  means: dict[Any, list[float]] = {}
  for row in rows:
    means.setdefault(setting(row), []).append(row[-2])
  return max(means, key=lambda key: float(np.mean(means[key])))


def programs(cell: Cell) -> Iterator[tuple[tuple[int, int], dict[str, dict[str, float]]]]:
  """Windows of a cell's programs, and the variants of each."""
  for window, methods in METHODS.items():
    chosen = {
      name: dict.fromkeys(off, 0.0)
      for name, off in methods.items()
      if not cell.methods or name in cell.methods
    }
    if chosen:
      yield window, chosen


def folder_of(work: Path, cell: Cell, window: tuple[int, int]) -> Path:
  """Where the runs of a program are."""
  steps = f"-{cell.steps}-steps" if cell.steps else ""
  return (
    work / "test" / f"{cell.world}{steps}" / f"{cell.shots}-shot" / "window-{}-{}".format(*window)
  )


def test(
  work: Path,
  folders: Mapping[str, str],
  until: datetime.datetime | None,
  worlds: Sequence[str],
  block: int,
  at_once: int,
  dtype: str,
) -> None:
  """Measures what `search` chose; ends by the clock, never by a result.

  Args:
    work: folder of the study.
    folders: of real images, `{world: path}`.
    until: when no block starts any more.
    worlds: those of `WORLDS` to measure here; processes can share them out.
    block: episodes between two looks at the clock.
    at_once: episodes on a device; 0 is as its memory allows.
    dtype: of the model.
  """
  choice = Choice(**json.loads((work / "choice.json").read_text(encoding="utf-8")))
  done: dict[Cell, int] = {}
  for most, cells in ROUNDS:
    for count in (*range(block, most, block), most):
      for cell in cells:
        if cell.world not in worlds or done.get(cell, 0) >= count:
          continue
        if until and datetime.datetime.now() > until:
          return
        own = choice._replace(steps=cell.steps or choice.steps)
        for window, variants in programs(cell):
          config = make_config(
            data_of(cell.world, folders), own, variants,
            seed=TEST, episodes=count, adapt__evaluate_at=(5,), data__shots=cell.shots,
            data__cache_dir=str(work / "cache"), objective__visual__weight=choice.svl,
            model__dtype=dtype, episodes_per_device=at_once,
            **{f"objective__{term}__window": window for term in ("visual", "svl", "ra")},
          )  # fmt: skip
          run(config, folder_of(work, cell, window))
        done[cell] = count


def tabulate(work: Path, out: Path) -> None:
  """Writes `trap.csv`, `trap.png` and a copy of the search's log from what there is."""
  cells = dict.fromkeys(cell for _, cells in ROUNDS for cell in cells)
  header = ("world", "shots", "steps", "method", "episodes", "zero_shot", "accuracy",
            "accuracy_ci95", "difference", "difference_ci95", "ncc_before", "ncc_after", "gap",
            "gap_shift", "gap_shift_ci95", "gap_shift_difference",
            "gap_shift_difference_ci95")  # fmt: skip
  choice = Choice(**json.loads((work / "choice.json").read_text(encoding="utf-8")))
  rows, drawn = [], {}
  for cell in cells:
    paths = [
      folder_of(work, cell, window) / name
      for window, variants in programs(cell)
      for name in variants
    ]
    if not all((path / "episodes.jsonl").exists() for path in paths):
      continue
    found = comparison.compare(paths)
    if not cell.methods:
      named = dict(zip((path.name for path in paths), found, strict=True))
      drawn[study.Cell(cell.world, None, cell.shots)] = named
    lines = [read_episodes(path) for path in paths]
    baseline = {line["episode"]: line.get("gap_shift_after") for line in lines[0]}
    for path, row, own in zip(paths, found, lines, strict=True):
      shift = accuracy_of(own, "gap_shift_after")
      moved = [
        line["gap_shift_after"] - baseline[line["episode"]]
        for line in own
        if line["status"] == "ok" and line["episode"] in baseline
      ]
      rows.append(
        (cell.world, cell.shots, cell.steps or choice.steps, path.name, row.episodes,
         row.zero_shot.mean, *row.accuracy[:2], *(row.difference or (0.0, 0.0))[:2],
         accuracy_of(own, "ncc_accuracy_before").mean, accuracy_of(own, "ncc_accuracy_after").mean,
         accuracy_of(own, "gap_after").mean, *shift[:2], *mean_and_ci(moved)[:2])
      )  # fmt: skip
  out.mkdir(parents=True, exist_ok=True)
  files.write(out / "trap.csv", tables.csv(header, rows))
  files.write(out / "trap_search.csv", (work / "search.csv").read_bytes())
  if drawn:
    plot_study(drawn, out / "trap.png")
  print(tables.text(header, rows))


def main() -> None:
  """Does one stage."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("stage", choices=("search", "test", "table"))
  parser.add_argument("work", type=Path)
  parser.add_argument("--isic", default="", help="folder of class folders")
  parser.add_argument("--cropdisease", default="", help="likewise")
  parser.add_argument("--until", help="HH:MM; no block of episodes starts after it")
  parser.add_argument("--worlds", default=",".join(WORLDS), help="only these")
  parser.add_argument("--block", type=int, default=20, help="episodes between looks at the clock")
  parser.add_argument("--at-once", type=int, default=0, help="episodes on a device; 0: automatic")
  parser.add_argument("--dtype", default="auto", help="of the model")
  parser.add_argument("--out", type=Path, default=Path("docs"), help="of `table`: a folder")
  options = parser.parse_args()
  logging.set_verbosity(logging.WARNING)
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    jax.config.update("jax_compilation_cache_dir", str(files.cache_directory() / "programs"))
  devices.use_cpu_cores()
  folders = {"isic": options.isic, "cropdisease": options.cropdisease}
  if options.stage == "search":
    search(options.work, folders)
  elif options.stage == "test":
    until = options.until and datetime.datetime.combine(
      datetime.date.today(), datetime.time.fromisoformat(options.until)
    )
    worlds = options.worlds.split(",")
    if unknown := set(worlds) - set(WORLDS):
      parser.error(f"--worlds={options.worlds}: no such world as {sorted(unknown)}; use {WORLDS}.")
    test(options.work, folders, until, worlds, options.block, options.at_once, options.dtype)
  else:
    tabulate(options.work, options.out)


if __name__ == "__main__":
  main()
