"""The kinds of experiment that a config can name: what each runs, and the table it ends with.

Of several processes, each says in its own directories what the run came to; the first alone makes
the tables and figures.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_collections

from mdtrap_jax import config as configs
from mdtrap_jax.experiments import all_way, all_way_heads, finetune, heads, study
from mdtrap_jax.methods.heads import METHODS
from mdtrap_jax.report import all_way as all_way_report
from mdtrap_jax.report import comparison, summary
from mdtrap_jax.report import heads as heads_report
from mdtrap_jax.run import hosts
from mdtrap_jax.run import store as stores
from mdtrap_jax.run.events import Track
from mdtrap_jax.run.loop import run as run_loop
from mdtrap_jax.run.store import Store


def run_finetune(
  config: ml_collections.ConfigDict, store: Store, track: Track | None = None
) -> str:
  """Adapts a vision-language model; with variants, compares them on the same episodes."""
  finished = run_loop(finetune.experiment(config), store, track=track)
  summaries = {
    name: summary.write(directory, finished.rate)
    for name, directory in finished.directories.items()
  }
  if hosts.index():
    return ""
  if list(summaries) == [""]:
    return summary.format_summary(summaries[""])
  paths = [directory.path for directory in finished.directories.values()]
  return comparison.format_text(comparison.compare(paths))


def run_all_way(config: ml_collections.ConfigDict, store: Store, track: Track | None = None) -> str:
  """Adapts to all classes of a data set, once a seed, and classifies its whole test split."""
  kind = all_way_heads if config.experiment == "all_way_heads" else all_way
  finished = run_loop(kind.experiment(config), store, track=track)
  directory = finished.directories[""]
  lines = [line for _, line in sorted(directory.finished.items())]
  found = summary.write(directory, finished.rate, lines, all_way_report.summarize(lines))
  return "" if hosts.index() else all_way_report.format_table(found)


def run_heads(config: ml_collections.ConfigDict, store: Store, track: Track | None = None) -> str:
  """Classifies by light heads on frozen features: NCC, URL, CoPA and the baselines."""
  config = configs.resolve(config)
  experiment, found = heads.experiment(config)
  finished = run_loop(experiment, store, track=track)
  directory = finished.directories[""]
  wanted = {task.episode for group in experiment.groups for task in group.tasks}
  lines = [line for number, line in sorted(directory.finished.items()) if number in wanted]
  extras = heads_report.summarize(
    lines, config.method, transductive=METHODS[config.method].transductive
  )
  if config.diagnosis.tasks and hosts.index() == 0:
    extras["diagnosis"] = heads.diagnoses(config, found, directory.folder("figures"))
  table = heads_report.format_table(summary.write(directory, finished.rate, lines, extras))
  return "" if hosts.index() else table


def run_study(config: ml_collections.ConfigDict, store: Store, track: Track | None = None) -> str:
  """The paper's study: many cells, in each all methods on the same episodes."""
  experiment = study.experiment(config)
  finished = run_loop(experiment, store, track=track)
  for directory in finished.directories.values():
    summary.write(directory, finished.rate)
  return "" if hosts.index() else study.tabulate(config, finished.directories, store.root)


def run_pretrain(
  config: ml_collections.ConfigDict, store: Store, track: Track | None = None
) -> str:
  """Pretrains the miniature; `checkpoints.load` reads what is then in `DIR/model`."""
  from mdtrap_jax.experiments import pretrain  # and the generated world, which few runs need

  finished = run_loop(pretrain.experiment(config, store.root), store, track=track)
  rate = summary.write(finished.directories[""], finished.rate)["episodes_per_second"]
  return pretrain.tabulate(config, store.root, rate) if hosts.index() == 0 else ""


EXPERIMENTS: dict[str, Callable[[ml_collections.ConfigDict, Store, Track | None], str]] = {
  "all_way": run_all_way,
  "all_way_heads": run_all_way,
  "finetune": run_finetune,
  "heads": run_heads,
  "pretrain": run_pretrain,
  "study": run_study,
}


def run(config: ml_collections.ConfigDict, workdir: str | Path, track: Track | None = None) -> str:
  """Runs `config.experiment` in `workdir`; returns a table for the terminal.

  Of several processes, the first alone returns one.

  Args:
    config: of any kind.
    workdir: made, or resumed; a directory, or a bucket's.
    track: told, batch by batch, of what TensorBoard gets (`run.events.Scalars`): for a tracker of
      experiments of your own. What it raises is a warning.

  Raises:
    ValueError, OSError: no such experiment, or what the experiment itself raises.
  """
  if config.experiment not in EXPERIMENTS:
    raise ValueError(
      f"config.experiment={config.experiment!r}: choose one of {sorted(EXPERIMENTS)}."
    )
  with stores.opened(workdir, hosts.index(), hosts.count()) as store:
    return EXPERIMENTS[config.experiment](config, store, track)
