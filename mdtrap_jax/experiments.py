"""The kinds of experiment that a config can name, and the table each ends with."""

from __future__ import annotations

from pathlib import Path

import ml_collections

from mdtrap_jax.report import comparison, study
from mdtrap_jax.report import heads as table
from mdtrap_jax.report.summary import format_summary
from mdtrap_jax.run import finetune as runner
from mdtrap_jax.run import heads as heads_run


def finetune(config: ml_collections.ConfigDict, workdir: Path) -> str:
  """Adapts a vision-language model; with variants, compares them on the same episodes."""
  summaries = runner.run(config, workdir)
  if list(summaries) == [""]:
    return format_summary(summaries[""])
  return comparison.format_text(comparison.compare([workdir / name for name in summaries]))


def few_shot_heads(config: ml_collections.ConfigDict, workdir: Path) -> str:
  """Fine-tunes light heads on frozen features: NCC, URL, CoPA."""
  return table.format_table(heads_run.run(config, workdir))


EXPERIMENTS = {"finetune": finetune, "heads": few_shot_heads, "study": study.run}


def run(config: ml_collections.ConfigDict, workdir: str | Path) -> str:
  """Runs `config.experiment` in `workdir`; returns a table for the terminal.

  Raises:
    ValueError: no such experiment, or what the experiment itself raises.
  """
  if config.experiment not in EXPERIMENTS:
    raise ValueError(
      f"config.experiment={config.experiment!r}: choose one of {sorted(EXPERIMENTS)}."
    )
  return EXPERIMENTS[config.experiment](config, Path(workdir))
