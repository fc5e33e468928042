"""What runs on all classes of a data set came to: over seeds, and over test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mdtrap_jax.report import tables
from mdtrap_jax.report.classification import wilson
from mdtrap_jax.statistics import mean_and_ci


def examinations(config: Mapping[str, Any]) -> tuple[str, ...]:
  """What a run of a config is tested on, by name, in table order; nothing if it is of episodes."""
  if "base_to_new" not in config:
    return ()
  first = ("base", "new") if config["base_to_new"] else ("test",)
  return (*first, *(entry.partition("=")[0] for entry in config["transfer"]))


def examined(lines: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
  """What a run's lines were tested on, where that is more than one thing."""
  names = next((tuple(line["tests"]) for line in lines if "tests" in line), ())
  return names if len(names) > 1 else ()


def of_examination(lines: Sequence[Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
  """A run's lines with the accuracies of one of its examinations as theirs.

  Those that know nothing of it are left out; what failed did so in all.
  """
  return [
    {**line, **line.get("tests", {}).get(name, {})}
    for line in lines
    if line["status"] != "ok" or name in line.get("tests", {})
  ]


def harmonic_mean(base: float, new: float) -> float:
  """Of two accuracies; 0 if either is."""
  return 2 * base * new / (base + new) if base + new else 0.0


def summarize(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """`tests` of `summary.json`: over seeds, and the interval that so many images allow."""
  fine = [line["tests"] for line in lines if line["status"] == "ok"]
  tests = {}
  for name in fine[0] if fine else ():
    count = fine[0][name]["images"]
    over_seeds = mean_and_ci([line[name]["accuracy"] for line in fine], few=True)
    low, high = wilson(round(over_seeds.mean * count), count)[1:]
    tests[name] = {
      "images": count,
      "accuracy_mean": over_seeds.mean,
      "seeds_ci95": None if len(fine) < 2 else over_seeds.ci95,
      "images_ci95": [low, high],
      "zero_shot_accuracy": fine[0][name]["zero_shot_accuracy"],
    }
  if {"base", "new"} <= tests.keys():
    tests["harmonic_mean"] = harmonic_mean(*(tests[n]["accuracy_mean"] for n in ("base", "new")))
  return {"tests": tests}


def format_table(summary: Mapping[str, Any]) -> str:
  """The table that a run ends with."""
  tests = dict(summary["tests"])
  harmonic = tests.pop("harmonic_mean", None)
  rows = []
  for name, test in tests.items():
    over = test["seeds_ci95"]
    low, high = test["images_ci95"]
    rows.append((
      name,
      test["images"],
      f"{100 * test['zero_shot_accuracy']:.2f}",
      f"{100 * test['accuracy_mean']:.2f}" + ("" if over is None else f" ± {100 * over:.2f}"),
      f"{100 * low:.2f}–{100 * high:.2f}",
    ))  # fmt: skip
  if harmonic is not None:
    rows.append(("harmonic mean", "", "", f"{100 * harmonic:.2f}", ""))
  header = ("tested on", "images", "zero-shot (%)", "adapted (%)", "95 % of so many images")
  failed = f"\n{summary['failed']} seeds failed" if summary["failed"] else ""
  return tables.text(header, rows) + failed
