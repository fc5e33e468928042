"""The eleven data sets of few-shot classification: `--config=configs/fsl.py:METHOD,DATASET[,coop]`.

    python main.py --config=configs/fsl.py:svl_ra,oxford_pets --config.data.path=oxford_pets

`--config.data.path=` is the official release, unpacked, with CoOp's split beside the images
(`mdtrap prepare fsl/oxford_pets` says where to get what). The prompt is the paper's for all of
them; a third word, `coop`, takes CoOp's own for the data set.
"""

from . import default

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


def get_config(row="svl_ra,oxford_pets"):
  method, _, rest = row.partition(",")
  dataset, _, prompt = rest.partition(",")
  if dataset not in COOP_PROMPTS or prompt not in ("", "coop"):
    raise ValueError(
      f"--config=configs/fsl.py:{row}: give METHOD,DATASET or METHOD,DATASET,coop with a data set "
      f"of {sorted(COOP_PROMPTS)}."
    )
  config = default.get_config(method)
  config.data.name = "fsl"
  config.data.domain = dataset
  config.data.template = COOP_PROMPTS[dataset] if prompt else PROMPT
  return config
