"""A cell of the comparison of all methods: `--config=comparison:METHOD,TARGET[,IMAGES]`.

METHOD is a head of `configs/copa.py`, or of `TUNED` below: what is trained, under cross-entropy
alone and with SVL + RA beside it, on the same episodes. TARGET is satellite, dermoscopy, digits,
isic or cropdisease; the last two are folders of class folders in IMAGES. The model is the
miniature, and no numbers were searched for here: those of the study (docs/study.md) for whatever
adapts weights, the papers' own for prompts and heads. `sweep_comparison` runs all cells.
"""

from ml_collections import ConfigDict

from . import copa, default

# What the folders' classes look like, in words that the miniature knows; sorted by folder.
ISIC = (
  "speckled red circle", "plain pink circle", "speckled brown circle", "small brown circle",
  "speckled black circle", "plain brown circle", "plain purple circle",
)  # fmt: skip
CROPDISEASE = (
  "speckled white leaf", "plain green leaf", "dotted yellow leaf", "small green leaf",
  "dotted brown leaf", "plain black leaf", "large green leaf", "dotted black leaf",
  "speckled yellow leaf", "speckled brown leaf", "striped green leaf",
)  # fmt: skip
FOLDERS = {"isic": ISIC, "cropdisease": CROPDISEASE}
# CropDisease's classes with images enough: cherry (mildew, healthy) and potato (early and late
# blight, healthy).
LARGE = ("speckled white leaf", "plain green leaf", "dotted brown leaf", "plain black leaf",
         "large green leaf")  # fmt: skip
WORLDS = ("satellite", "dermoscopy")
TARGETS = (*WORLDS, "digits", *FOLDERS)

# By cost: what lies below the upper half is computed once an episode.
_ADAPTERS = {"lora.position": "half-up", "optimizer.learning_rate": 1e-3, "adapt.steps": 20}
_STEPS = {"adapt.steps": 20}
# What is trained in the miniature: a row of `default.TUNES`, and what differs from it here.
TUNED = {
  "lora": ("lora", _ADAPTERS),
  "lora_mlp": ("lora", {**_ADAPTERS, "lora.projections": ("q", "k", "v", "out", "fc1", "fc2")}),
  "dora": ("dora", _ADAPTERS),
  "pissa": ("pissa", _ADAPTERS),
  "layernorm": ("layernorm", _STEPS),
  "bias": ("bias", _STEPS),
  # 16 tokens, CoOp's default, are all that its text encoder reads; 4 is their other setting.
  "coop": ("coop", {"coop.tokens": 4}),
  # The text encoder has three blocks. A step sees all images, so that 50 are 50 epochs whatever
  # the shots, as CoOp has at one shot; MaPLe's own 5 were of more classes in batches of 4.
  "maple": ("maple", {"maple.depth": 3, "adapt.steps": 50}),
}


def get_config(cell="zero_shot,digits"):
  method, _, rest = cell.partition(",")
  target, _, images = rest.partition(",")
  if target not in TARGETS:
    raise ValueError(f"comparison:{cell}: give METHOD,TARGET[,IMAGES], TARGET one of {TARGETS}.")
  folder = f"{images or 'images'}/{target}"
  config = _tuned(method, target, folder) if method in TUNED else _head(method, target, folder)
  config.seed, config.seeds, config.episodes = 1, 1, 100  # the same for all methods
  config.model.name, config.model.dtype = "miniature", "float32"
  config.data.queries = 30
  config.data.severity = 0.75
  config.data.class_names = FOLDERS.get(target, ())
  config.data.classes = LARGE if target == "cropdisease" else ()
  return config


def _tuned(method, target, folder):
  tune, fields = TUNED[method]
  config = default.get_config(tune)
  config.update_from_flattened_dict(fields)
  if target in FOLDERS:
    config.data.name, config.data.path = "folder", folder
  elif target in WORLDS:
    config.data.name, config.data.domain = "world", target
  else:
    config.data.name = target
  config.objective.ra.divergence = "softmax"
  config.adapt.evaluate_at = (5,)
  config.variants = ConfigDict({"vlm": {"svl": 0.0, "ra": 0.0}, "svl_ra": {}})
  return config


def _head(method, target, folder):
  config = copa.get_config(method)
  name = f"world/{target}" if target in WORLDS else target
  config.domains = (f"{target}={folder}",) if target in FOLDERS else (name,)
  return config
