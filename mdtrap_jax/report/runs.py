"""The report of an episodic run, from the predictions that it kept."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mdtrap_jax import buckets
from mdtrap_jax.files import check_name
from mdtrap_jax.methods import url
from mdtrap_jax.report import assessment, classification
from mdtrap_jax.report.assessment import Assessment
from mdtrap_jax.report.classification import Interval, Outcomes, Scores, softmax
from mdtrap_jax.report.comparison import find_runs
from mdtrap_jax.run import claim, predictions
from mdtrap_jax.run.lines import read_episodes, read_object
from mdtrap_jax.run.predictions import Record
from mdtrap_jax.statistics import accuracy_of, mean_and_ci


def assess(path: str | Path) -> dict[str, Assessment]:
  """What a run's predictions come to, by domain (`""` where there is one).

  Args:
    path: the run's directory; finished, or under way.

  Raises:
    FileNotFoundError: it kept no predictions; says how to make them.
    ValueError, OSError: a file is damaged, or no episode has both a line and predictions.
  """
  folder = Path(path)
  if not predictions.kept(folder):
    raise FileNotFoundError(
      f"{folder} kept no predictions; run it again with --config.predictions=true in another "
      "--workdir."
    )
  config = read_object(folder / "config.json") if (folder / "config.json").exists() else {}
  records = predictions.gather(folder)
  lines = {line["episode"]: line for line in read_episodes(folder)}
  fine = [r for n, r in sorted(records.items()) if lines.get(n, {}).get("status") == "ok"]
  if not fine:
    raise ValueError(f"{folder}: no finished episode has predictions yet.")
  found = {}
  for domain in dict.fromkeys(record.domain for record in fine):
    own = [record for record in fine if record.domain == domain]
    rest = [line for line in lines.values() if line.get("domain", "") == domain]
    found[domain] = _assess(folder, config, own, [lines[r.episode] for r in own], len(rest))
  return found


def write(paths: Sequence[str], out: str | None = None, force: bool = False) -> Iterator[str]:
  """Writes the reports of runs that kept predictions.

  Args:
    paths: of runs, or directories that hold some.
    out: where; `report` in each run's own directory, which later ones replace, if `None`.
    force: write into an `out` that is not empty.

  Yields:
    what to print of each.

  Raises:
    FileNotFoundError, FileExistsError, ValueError, OSError: as `assess` and `assessment.write`.
  """
  if out is None and any(map(buckets.is_bucket, paths)):
    raise ValueError("--out is missing: of a run in a bucket, say where its report goes.")
  runs = find_runs(paths)
  chosen = [run for run in runs if predictions.kept(run)] or runs[:1]  # which says what lacks
  for run in chosen:
    for domain, found in assess(run).items():
      folder = run / "report" if out is None else out
      if out is None:
        claim.mark(folder)
      elif len(chosen) > 1:
        folder = os.path.join(folder, os.path.relpath(run, os.path.commonpath(chosen)))
      if domain:
        folder = os.path.join(folder, check_name(domain.replace("/", "-"), "domain"))
      assessment.write(found, folder, overwrite=out is None or force)
      yield f"{run}{f', {domain}' if domain else ''}\n{classification.format_text(found.own)}\n"
      yield f"written to {folder}; open {os.path.join(folder, classification.PAGE)} in a browser"


def _assess(
  folder: Path,
  config: Mapping[str, Any],
  records: Sequence[Record],
  lines: Sequence[Mapping[str, Any]],
  every: int,
) -> Assessment:
  """Of one domain; `every` counts its lines, those without predictions or failed included."""
  names = sorted({name for record in records for name in record.class_names})
  place = {name: number for number, name in enumerate(names)}
  files: dict[str, int] = {}
  rows = [files.setdefault(name, len(files)) for record in records for name in record.files]
  heads = "method" in config
  after = _outcomes(records, place, "after")
  before = _outcomes(records, place, "before", url.LOGIT_SCALE if heads else None)
  # A source may give two images one name: its indices tell them apart.
  images = len({image for record in records for image in record.images})
  scores = {
    str(config["method"]) if heads else "adapted": classification.tally(names, after, images),
    "nearest centroids" if heads else "zero-shot": classification.tally(names, before, images),
  }
  closeness = [r.after[np.arange(len(r.labels)), r.labels] for r in records]
  items = list(files) if all(map(os.path.isfile, files)) else ()
  mean, ways = accuracy_of(lines), [len(record.class_names) for record in records]
  fewer = "" if len(records) == every else f" ({every - len(records)} failed or kept none)"
  facts = {
    "run": str(folder),
    "accuracy, mean over episodes": f"{mean.points()} %",
    "before adapting": f"{accuracy_of(lines, 'zero_shot_accuracy').points()} %",
    **_facts(config, records[0].domain),
  }
  return Assessment(
    title=f"What did {folder.name} get right?",
    how=f"Every query image of {len(records)} episodes{fewer} was predicted by the model adapted "
    "to that episode's support. Images come up in many episodes; shares are over all predictions, "
    f"and intervals are those of the {images} images. A class is told apart from the others of an "
    "episode alone.",
    names=names,
    files=list(files),
    items=items,
    rows=np.array(rows),
    outcomes=after,
    closeness=np.concatenate(closeness),
    anchor=("prototype" if records[0].scale != 1.0 else "") if heads else "text",
    scores=scores,
    curves={"mean over episodes": _curve(lines)},
    facts=facts,
    command=shlex.join(["mdtrap", "report", str(folder)]),
    notes=_notes(records, scores),
    guess=float(np.mean(1 / np.array(ways))),
  )


def _outcomes(
  records: Sequence[Record], place: Mapping[str, int], when: str, scale: float | None = None
) -> Outcomes:
  """What was said, with classes as places among all; by the records' scale if none is given."""
  parts = []
  for record in records:
    chances = softmax((scale or record.scale) * getattr(record, when).astype(np.float64))
    own = np.array([place[name] for name in record.class_names])
    said = classification.outcomes(np.array(record.labels), chances)
    parts.append(said._replace(labels=own[said.labels], predicted=own[said.predicted]))
  return Outcomes(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _curve(lines: Sequence[Mapping[str, Any]]) -> dict[int, Interval]:
  """Accuracy by step, with the interval over episodes."""
  by_step: dict[int, list[float]] = {}
  for line in lines:
    if line.get("zero_shot_accuracy") is not None:
      by_step.setdefault(0, []).append(line["zero_shot_accuracy"])
    for step, accuracy in line.get("accuracy_at", {}).items():
      if accuracy is not None:
        by_step.setdefault(int(step), []).append(accuracy)
  curve = {}
  for step, values in sorted(by_step.items()):
    mean, half, _ = mean_and_ci(values)
    half = 0.0 if np.isnan(half) else half
    curve[step] = Interval(mean, max(mean - half, 0.0), min(mean + half, 1.0))
  return curve


def _facts(config: Mapping[str, Any], domain: str) -> dict[str, str]:
  """What the config says, in words."""
  data, model = config.get("data", {}), config.get("model", {})
  terms = {k: v["weight"] for k, v in config.get("objective", {}).items() if v.get("weight")}
  known = {
    "images": domain or data.get("path") or data.get("name"),
    "model": model.get("name"),
    "tasks": "{ways}-way {shots}-shot, {queries} queries of each class".format_map(data)
    if {"ways", "shots", "queries"} <= data.keys() and data.get("protocol", "fixed") == "fixed"
    else data.get("protocol"),
    "objective": " + ".join(f"{weight:g} {term}" for term, weight in terms.items()),
    "steps": config.get("adapt", {}).get("steps"),
    "seed": config.get("seed"),
    "prompt": data.get("template"),
  }
  return {name: str(value) for name, value in known.items() if value not in (None, "")}


def _notes(records: Sequence[Record], scores: Mapping[str, Scores]) -> list[str]:
  """The temperature that would make the probabilities right, as they were never calibrated."""
  ways = max(len(record.class_names) for record in records)
  logits = np.concatenate([
    np.pad(
      r.scale * r.after.astype(np.float64),
      ((0, 0), (0, ways - len(r.class_names))),
      constant_values=-np.inf,
    )
    for r in records
  ])  # fmt: skip
  labels = np.concatenate([record.labels for record in records])
  best = classification.fit_temperature(logits, labels)
  said = classification.outcomes(labels, softmax(logits / best))
  before, after = next(iter(scores.values())).ece, classification.calibration_error(said)
  return [
    f"probabilities are the model's own; divided by a temperature of {best:.3g}, fitted to these "
    f"very predictions, their calibration error would be {after:.3f} instead of {before:.3f}"
  ]
