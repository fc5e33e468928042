"""Which published numbers some runs reproduce, by what their `config.json` says they computed."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mdtrap_jax import config as settings
from mdtrap_jax import models
from mdtrap_jax.checkpoints.load import describe
from mdtrap_jax.checkpoints.source import open_checkpoint
from mdtrap_jax.config import loading
from mdtrap_jax.report import published
from mdtrap_jax.report.published import ACCURACY, AVERAGE, Published
from mdtrap_jax.run.lines import read_episodes, read_object
from mdtrap_jax.statistics import Accuracy, accuracy_of

# Where a run may differ from the published config and still be it.
_FREE = {
  *settings.RUNTIME_FIELDS, "seed", "seeds", "model.name", "model.dtype", "data.data_dir",
  "data.files", "data.path", "data.domain", "data.severity", "data.images_per_class",
}  # fmt: skip


class Verdict(NamedTuple):
  """A run beside the number that it should reproduce."""

  run: str
  published: Published
  measured: Accuracy
  complete: bool  # whether it has as many episodes as the paper

  @property
  def agrees(self) -> bool | None:
    """`None` while episodes are missing."""
    return published.agrees(self.published, 100 * self.measured.mean) if self.complete else None


def verdicts(paths: Sequence[str | Path]) -> list[Verdict]:
  """Of those runs whose config is a published one; the others are passed over.

  Raises:
    ValueError, OSError: a file of a run cannot be read, or is damaged.
  """
  found = []
  for path in map(Path, paths):
    row = find(read_object(path / "config.json")) if (path / "config.json").exists() else None
    if row is not None:
      lines = read_episodes(path)
      complete = len(lines) >= _config(row)["episodes"]
      found.append(Verdict(str(path), row, accuracy_of(lines), complete))
  return found


def find(config: Mapping[str, Any]) -> Published | None:
  """The published accuracy that a run of this `config.json` measures."""
  given = dict(settings.flatten(config))
  if given.get("experiment") != "finetune" or given.get("model.random_weights"):
    return None
  for row in published.published():
    if row.measure == ACCURACY and row.target != AVERAGE:
      asked = dict(settings.flatten(_config(row)))
      same = all(
        asked[name] is None or asked[name] == given.get(name) for name in asked.keys() - _FREE
      )
      if same and _backbone(given.get("model.name")) == _backbone(asked["model.name"]):
        return row
  return None


@functools.cache
def _config(row: Published) -> Mapping[str, Any]:
  """Of what reproduces a number, as `config.json` has it."""
  config = settings.resolve(loading.load(row.config, row.fields))
  return json.loads(settings.to_json(config))


@functools.cache
def _backbone(name: str) -> Any:
  """What tells backbones apart, of a named size or of a checkpoint: family and image encoder."""
  for known, size in models.MODELS.items():
    if name in (known, size.hub):
      return size.family, size.image
  try:
    size = describe(open_checkpoint(name))[2]
  except (OSError, ValueError):  # it is gone, or of another machine
    return None
  return size.family, size.image


def table(paths: Sequence[str | Path], write: Callable[..., str]) -> str:
  """Runs beside published numbers as a table; empty where none of them measures one."""
  rows = [
    (
      verdict.run,
      verdict.measured.points(),
      f"{verdict.published.value:.2f}",
      f"± {verdict.published.tolerance:.1f}",
      {True: "yes", False: "no", None: "episodes are missing"}[verdict.agrees],
    )
    for verdict in verdicts(paths)
  ]
  return write(("run", "measured (%)", "paper (%)", "tolerance", "agrees"), rows) if rows else ""
