"""The eleven data sets, all classes, at 1 to 16 shots: `mdtrap sweep sweep_fsl[:TABLE[,FOLDER]]`.

TABLE is tuned, heads, all or base_to_new; FOLDER holds the releases, each in a folder of its name
below, as `mdtrap prepare fsl/NAME` checks them. docs/all-way.md has the commands.
"""

from ml_collections import ConfigDict

TARGETS = (
  "imagenet", "sun397", "fgvc_aircraft", "eurosat", "stanford_cars", "food101", "oxford_pets",
  "oxford_flowers", "caltech101", "dtd", "ucf101",
)  # fmt: skip
# The CVPR 2026 paper's three ways of fine-tuning, each without and with SVL + RA.
TUNED = ("vlm,lora", "svl_ra,lora", "vlm,coop", "svl_ra,coop", "vlm,maple", "svl_ra,maple")
HEADS = (
  "zero_shot", "ncc", "url", "copa", "knn", "ridge", "logistic", "mahalanobis", "tip_adapter",
  "tip_adapter_f", "clip_adapter", "taskres", "lp_plus_plus", "clap", "prolip",
)  # fmt: skip
ALONE = TUNED[::2]  # without; what the others are compared with
TABLES = {
  "tuned": {"sweep.methods": TUNED, "sweep.references": ALONE},
  "heads": {"sweep.methods": HEADS},
  "all": {"sweep.methods": HEADS + TUNED, "sweep.references": ("zero_shot", *ALONE)},
  # What goes by the texts of any classes, and the shots that such tables have.
  "base_to_new": {
    "sweep.methods": ("zero_shot", "clip_adapter", "prolip", *TUNED),
    "sweep.references": ("zero_shot", *ALONE),
    "sweep.shots": (16,),
  },
}


def get_config(table="all"):
  name, _, folder = table.partition(",")
  if name not in TABLES:
    raise ValueError(f"sweep_fsl:{table}: give TABLE or TABLE,FOLDER; {sorted(TABLES)}.")
  folder = (folder or "fsl").replace("{", "{{").replace("}", "}}")
  config = ConfigDict()
  config.experiment = "sweep"
  config.sweep = sweep = ConfigDict()
  sweep.config = "fsl:{method},{target}"  # a cell
  # Three draws of the images are one run, adapted together where the memory allows.
  sweep.fields = (
    f"data.path={folder}/{{target}}", "data.shots={shots}", "seed={seed}", "seeds=3",
    "model.name={backbone}", f"base_to_new={name == 'base_to_new'}",
  )  # of each cell  # fmt: skip
  sweep.backbones = ("clip-vit-b16",)  # blocks of rows
  sweep.targets = TARGETS  # columns
  sweep.methods = ()  # rows: METHOD, or METHOD,TUNE
  sweep.references = ()  # which rows the others are compared with; (): the first
  sweep.shots = (1, 2, 4, 8, 16)  # images of each class; a table for each
  sweep.seeds = (1,)  # the first of a run's three; for six draws (1, 4)
  config.update_from_flattened_dict(TABLES[name])
  return config
