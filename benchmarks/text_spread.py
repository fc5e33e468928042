"""What relation alignment does, by how far apart the texts of the classes are.

The `cosine` divergence `mean exp(t) (t - r)` is linear in the relation `r`: its gradient,
`-exp(t) / NM`, does not vanish at `r = t` and raises every cosine, that of two classes by
`exp(cos of their texts)` where that of one class is raised by `e`. Here the texts of the
miniature's classes are drawn together or moved apart about their mean, `unit(m + a (u - m))`, and
the same episodes are adapted by cross-entropy alone and with RA, for each `a`. `softmax`, whose
gradient vanishes at `r = t`, is run beside it.

  python -m benchmarks.text_spread [--episodes=16] [--steps=20] [--weight=3] --out=docs
"""

from __future__ import annotations

import argparse
import functools
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from benchmarks.trap import Choice, data_of, make_config
from mdtrap_jax import config as configs
from mdtrap_jax import files
from mdtrap_jax.analysis.measures import unit
from mdtrap_jax.experiments import finetune
from mdtrap_jax.report.figures import COLORS, save
from mdtrap_jax.run import devices, programs
from mdtrap_jax.statistics import Accuracy, mean_and_ci

SPREADS = (0.25, 0.5, 1.0, 2.0, 4.0)
DIVERGENCES = ("cosine", "softmax")
PROMPTS = ("satellite", "dermoscopy", "radiograph", "closeup", "digits")


def spread_texts(text: np.ndarray, factor: float) -> np.ndarray:
  """Unit texts `[..., C, D]` moved from their mean by a factor, and scaled to unit length."""
  rows = unit(text)
  mean = rows.mean(-2, keepdims=True)
  return unit(mean + factor * (rows - mean)).astype(np.float32)


def other_cosine(rows: np.ndarray, labels: np.ndarray | None = None) -> tuple[float, float]:
  """Mean cosines of two rows of one class (NaN without labels) and of two classes.

  Args:
    rows: `[n, D]`.
    labels: `[n]`; `None` where each row is a class.
  """
  cosines = unit(rows) @ unit(rows).T
  labels = np.arange(len(rows)) if labels is None else labels
  same, off = labels[:, None] == labels, ~np.eye(len(rows), dtype=bool)
  own = float(cosines[same & off].mean()) if (same & off).any() else float("nan")
  return own, float(cosines[~same].mean())


def measure(divergence: str, options: argparse.Namespace) -> dict[float, dict[str, list[float]]]:
  """By spread: per episode the differences of RA from cross-entropy alone."""
  choice = Choice(options.rate, options.steps, divergence, 0.0, options.weight)
  config = make_config(
    data_of("satellite", {}),
    choice,
    {"vlm": {"ra": 0.0}, "ra": {}},
    seed=2,
    episodes=options.episodes,
    adapt__evaluate_at=(5,),
  )
  config = finetune.settled(config)
  runs = configs.variants(config)
  load = functools.cache(functools.partial(finetune.load_model, config))
  group = finetune.make_group("episodes", config, runs, finetune.load_source(config), load)
  ready = group.prepare()
  method, mesh = ready.method, programs.task_mesh()
  compiled = programs.make_programs(method, mesh, True)
  over_variants = jax.vmap(method.embeddings, in_axes=(None, None, 0))
  embed = programs.over_tasks(over_variants, mesh, (False, True, True))
  params = programs.replicate(method.needed(ready.params), mesh)
  names = list(runs)
  found: dict[float, dict[str, list[float]]] = {
    spread: {"text": [], "same": [], "other": [], "accuracy": []} for spread in SPREADS
  }
  for batch in ready.batches(group.tasks, mesh.size):
    for spread, own in found.items():
      tasks = batch.tasks._replace(text=spread_texts(batch.tasks.text, spread))
      prepared, state = compiled.prepare(params, programs.spread(tasks, mesh), ready.weights)
      for phase in method.phases:
        state = compiled.run[phase.clean](params, prepared, state, phase.start, phase.stop)
      accuracy = np.asarray(compiled.evaluate(params, prepared, state).accuracy)
      after = jax.device_get(embed(params, prepared, state))
      ra, vlm = names.index("ra"), names.index("vlm")
      for e in range(mesh.size):
        parts = [other_cosine(after.query[e, v], after.query_labels[e, v]) for v in (ra, vlm)]
        own["text"].append(other_cosine(tasks.text[e])[1])
        own["same"].append(parts[0][0] - parts[1][0])
        own["other"].append(parts[0][1] - parts[1][1])
        own["accuracy"].append(float(accuracy[e, ra] - accuracy[e, vlm]))
    print(f"{divergence}: episode {batch.ids[-1].episode + 1} of {options.episodes}", flush=True)
  return found


def prompt_cosines() -> dict[str, float]:
  """Mean cosine of two classes' texts among all classes of a world, as they are."""
  from configs.comparison import CROPDISEASE, ISIC
  from mdtrap_jax.data.sources import make_source

  config = finetune.settled(make_config(data_of("satellite", {}), Choice(1e-3, 5), {}))
  model, params = finetune.load_model(config)
  names = {"isic": ISIC, "cropdisease": CROPDISEASE}
  for world in PROMPTS:
    own = make_config(data_of(world, {}), Choice(1e-3, 5), {})
    names[world] = make_source(own.data).class_names
  template = config.data.template
  return {
    world: other_cosine(finetune.encode_prompts(model, params, own, template).text)[1]
    for world, own in names.items()
  }


def plot(path: Path, found: dict[str, dict[float, dict[str, Accuracy]]], title: str) -> None:
  """Differences of RA from cross-entropy alone, by the cosine between the classes' texts."""
  figure = Figure(figsize=(10, 3.4), layout="constrained")
  left, right = figure.subplots(1, 2)
  for d, (divergence, spreads) in enumerate(found.items()):
    x = [own["text"].mean for own in spreads.values()]
    lines = (("same", "-", "same class"), ("other", "--", "two classes"))
    for part, line, label in lines:
      _line(left, x, [own[part] for own in spreads.values()], COLORS[d], line,
            f"{divergence}, {label}", 1)  # fmt: skip
    _line(right, x, [own["accuracy"] for own in spreads.values()], COLORS[d], "-", divergence, 100)
  left.set_title("change of the cosine of two queries", loc="left", fontsize=9)
  right.set_title("change of accuracy (points)", loc="left", fontsize=9)
  for ax in (left, right):
    ax.axhline(0, color="black", linewidth=0.8)
    ax.set_xlabel("mean cosine of two classes' texts")
    ax.legend(frameon=False, fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
  figure.suptitle(title, fontsize=10)
  save(figure, path, dpi=130)


def _line(ax, x, values, color, line, label, factor):
  mean = factor * np.array([value.mean for value in values])
  ci95 = factor * np.array([value.ci95 for value in values])
  ax.errorbar(x, mean, yerr=ci95, color=color, linestyle=line, marker="o", markersize=4,
              capsize=2, label=label)  # fmt: skip


def main() -> None:
  """Measures, writes `text_spread.json` and `text_spread.png`."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--episodes", type=int, default=16)
  parser.add_argument("--steps", type=int, default=20)
  parser.add_argument("--rate", type=float, default=1e-3)
  parser.add_argument("--weight", type=float, default=3.0, help="of RA")
  parser.add_argument("--prompts", action="store_true", help="only the cosines of real prompts")
  parser.add_argument("--out", type=Path, required=True)
  options = parser.parse_args()
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    jax.config.update("jax_compilation_cache_dir", str(files.cache_directory() / "programs"))
  devices.use_cpu_cores()
  result: dict[str, Any] = {
    "world": "satellite, severity 0.75, 5-way 1-shot",
    **{name: getattr(options, name) for name in ("episodes", "steps", "rate", "weight")},
    "cosines_of_prompts": prompt_cosines(),
  }
  print(json.dumps(result["cosines_of_prompts"], indent=2), flush=True)
  if options.prompts:
    return
  options.out.mkdir(parents=True, exist_ok=True)  # now, and not after minutes of work
  means = {
    divergence: {
      spread: {name: mean_and_ci(values) for name, values in own.items()}
      for spread, own in measure(divergence, options).items()
    }
    for divergence in DIVERGENCES
  }
  result["by_divergence_and_spread"] = {
    divergence: {
      f"{spread:g}": {name: {"mean": v.mean, "ci95": v.ci95} for name, v in own.items()}
      for spread, own in spreads.items()
    }
    for divergence, spreads in means.items()
  }
  files.write(options.out / "text_spread.json", json.dumps(result, indent=2) + "\n")
  title = (
    f"RA (weight {options.weight:g}) against cross-entropy alone, satellite 0.75, 5-way 1-shot, "
    f"{options.episodes} episodes, {options.steps} steps, 95 % intervals"
  )
  plot(options.out / "text_spread.png", means, title)


if __name__ == "__main__":
  main()
