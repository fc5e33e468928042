"""Directories of runs as a sweep leaves them, without running anything."""

import json

from mdtrap_jax import config as settings

# A sweep of heads, whose features a test makes, or never needs.
HEADS = """
from configs import sweep_paper
def get_config():
  config = sweep_paper.get_config()
  config.sweep.config = "copa:{method}"
  config.sweep.fields = (
    "data.shots={shots}", "seed={seed}", "seeds=1", "domains=('{target}',)", "data.ways=3",
    "data.queries=5",
    "data.features=FEATURES",
  )
  config.sweep.backbones = ("toy",)
  config.sweep.targets = ("leaves",)
  config.sweep.methods = ("ncc", "copa")
  config.sweep.shots = (2,)
  return config
"""


def heads_sweep(folder, features="features.npz"):
  """The path of that config."""
  path = folder / "sweep_heads.py"
  path.write_text(HEADS.replace("FEATURES", str(features)))
  return path


def fabricate(workdir, cell, accuracies, complete=True, variant="", tests=()):
  """Files of one run of a cell, with these accuracies in %; episode i of all runs is the same.

  `tests` are those of lines on all classes.
  """
  folder = workdir / cell.name / variant
  folder.mkdir(parents=True)
  config = json.loads(settings.to_json(cell.resolve()))
  content = {"class_names": ["a"], "content": {"a": [9, cell.target]}}
  config["source"] = {"weights": None, "domains": {cell.target: content}}
  (folder / "config.json").write_text(json.dumps(config))
  lines = [
    {
      "episode": i, "seed": cell.seed, "task": i, "status": "ok", "accuracy": accuracy / 100,
      "zero_shot_accuracy": 0.2, "class_names": ["a"], "support": [i], "query": [i],
    }
    for i, accuracy in enumerate(accuracies)
  ]  # fmt: skip
  for line, own in zip(lines, tests, strict=False):
    line["tests"] = own
  (folder / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  if complete:
    (folder / "summary.json").write_text("{}")
