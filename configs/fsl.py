"""All classes of the eleven data sets: `--config=configs/fsl.py:METHOD[,TUNE],DATASET[,coop]`.

    python main.py --config=configs/fsl.py:svl_ra,oxford_pets --config.data.path=oxford_pets \\
      --config.data.shots=4 --config.seeds=3

A model is adapted once for each seed to `shots` images of every class, and classifies the whole
test split. `METHOD` is one of fine-tuning, where `TUNE` says what is trained, or a head on frozen
features (docs/heads.md). `DATASET` may also be `world` or `folder`, whose classes are split in half
by image.
`--config.data.path=` is the official release, unpacked, with CoOp's split beside the images
(`mdtrap prepare fsl/oxford_pets` says where to get what). The prompt is the paper's for all of
them; a last word, `coop`, takes CoOp's own for the data set. `sweep_fsl` runs whole tables.
"""

from ml_collections.config_dict import placeholder

from . import default

OWN = ("world", "folder")  # classes without a published split
PROMPT = "a photo of a {}."  # of the CVPR 2026 paper's code

# CoOp's `CUSTOM_TEMPLATES` (Zhou et al., IJCV 2022), by data set.
COOP_PROMPTS = {
  "imagenet": PROMPT,
  "caltech101": PROMPT,
  "oxford_pets": "a photo of a {}, a type of pet.",
  "stanford_cars": PROMPT,
  "oxford_flowers": "a photo of a {}, a type of flower.",
  "food101": "a photo of {}, a type of food.",
  "fgvc_aircraft": "a photo of a {}, a type of aircraft.",
  "sun397": PROMPT,
  "dtd": "{} texture.",
  "eurosat": "a centered satellite photo of {}.",
  "ucf101": "a photo of a person doing {}.",
}


# Loops of what is trained: CoOp's code has batches of 32 and epochs by shots (50 on ImageNet
# whatever these), MaPLe's 5 epochs of batches of 4. All others take LoRA's.
LOOPS = {
  "coop": {"adapt.steps": None, "adapt.epochs": ((1, 50), (2, 100), (5, 200))},
  "maple": {"adapt.steps": None, "adapt.epochs": 5, "adapt.batch_size": 4},
}


def _head(method):
  """A config of a method on frozen features; it waits for the registry, as other rows need not."""
  from mdtrap_jax.methods.heads import METHODS as HEADS

  if method not in HEADS:
    raise ValueError(
      f"--config=configs/fsl.py:{method},…: no such method; give one of {sorted(default.METHODS)} "
      f"or {sorted(default.TUNES)}, or METHOD,TUNE, for fine-tuning, or one of {sorted(HEADS)} on "
      "frozen features."
    )
  config = default.common()
  config.experiment = "all_way_heads"
  config.data = default.get_config().data
  default.add_head(config, method)
  # None: the authors' own, as 256 of Tip-Adapter-F; steps are then so many epochs
  config.head.batch_size = placeholder(int)  # images of a step; 0: all
  return config


def get_config(row="svl_ra,oxford_pets"):
  prompt = row.endswith(",coop")
  *words, dataset = row.removesuffix(",coop").split(",")
  if not words or dataset not in (*COOP_PROMPTS, *OWN) or (prompt and dataset in OWN):
    raise ValueError(
      f"--config=configs/fsl.py:{row}: give METHOD[,TUNE],DATASET or METHOD[,TUNE],DATASET,coop "
      f"with a data set of {sorted(COOP_PROMPTS)}, or world or folder."
    )
  method, tuned = ",".join(words), words[0] in {**default.METHODS, **default.TUNES}
  config = default.get_config(method) if tuned else _head(method)
  config.episodes = 1  # draws of the support set for each seed
  del config.data.ways, config.data.queries
  if dataset in OWN:
    config.data.name = dataset
  else:
    config.data.name, config.data.domain = "fsl", dataset
    config.data.template = COOP_PROMPTS[dataset] if prompt else PROMPT
  config.base_to_new = False  # adapt to the first half of the classes, test on both
  config.transfer = ()  # other data sets to test on, as ("dtd=DIR",)
  if not tuned:
    return config
  config.experiment = "all_way"
  # CLIP-LoRA (Zanella and Ben Ayed, CVPR 2024 workshops), whose loop the reference's is: batches of
  # 32 images, 500 steps for each shot, a random crop and flip of each image in each step.
  config.adapt.batch_size = 32
  config.adapt.steps_per_shot = 500
  config.adapt.augmentation = "crops"  # or "views": the episodes' fixed five
  # In place of steps_per_shot, which then means nothing; optimizer.warmup_steps are then epochs
  # too. Or pairs of shots from which they hold and epochs. None: steps_per_shot
  config.adapt.epochs = placeholder(object)  # passes over the images
  for tune in LOOPS.keys() & set(words):
    config.update_from_flattened_dict(LOOPS[tune])
    if tune == "coop" and dataset == "imagenet":
      config.adapt.epochs = 50
  return config
