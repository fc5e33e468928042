"""All methods on five targets with the miniature: `mdtrap sweep sweep_comparison[:PART[,IMAGES]]`.

PART is heads, tuned or all; IMAGES is the folder that holds the class folders of isic and
cropdisease. docs/tables.md has the table.
"""

from ml_collections import ConfigDict

from . import comparison

# Zero-shot, which all are compared with, and the heads of configs/copa.py for pooled features.
HEADS = (
  "zero_shot", "ncc", "url", "copa", "knn", "ridge", "logistic", "mahalanobis", "tip_adapter",
  "tip_adapter_f", "clip_adapter", "taskres", "lp_plus_plus", "clap", "prolip", "tim", "tim_gd",
  "laplacian_shot",
)  # fmt: skip
TUNED = tuple(comparison.TUNED)
PARTS = {"all": HEADS + TUNED, "heads": HEADS, "tuned": TUNED}


def get_config(part="all"):
  name, _, images = part.partition(",")
  if name not in PARTS:
    raise ValueError(f"sweep_comparison:{part}: give PART or PART,IMAGES; {sorted(PARTS)}.")
  images = (images or "images").replace("{", "{{").replace("}", "}}")
  config = ConfigDict()
  config.experiment = "sweep"
  config.sweep = sweep = ConfigDict()
  sweep.config = f"comparison:{{method}},{{target}},{images}"  # a cell
  sweep.fields = ("data.shots={shots}", "seed={seed}")  # of each cell
  sweep.backbones = ("miniature",)  # blocks of rows
  sweep.targets = comparison.TARGETS  # columns
  sweep.methods = PARTS[name]  # rows
  # Which rows the others are compared with; (): the first.
  sweep.references = tuple(r for r in ("zero_shot", "lora/vlm") if r.split("/")[0] in PARTS[name])
  sweep.shots = (1, 5)  # images of each class
  sweep.seeds = (1,)  # of the episodes
  return config
