"""The paper's rows of other backbones: `--config=configs/backbones.py:BACKBONE,TARGET[,METHOD]`.

    5-way 1-shot (%)         ISIC   EuroSAT  CropDisease  ChestX
    pe_core,…,baseline       40.89  84.49    91.75        22.02
    pe_core,…,svl_ra         45.01  86.83    93.03        23.66

`METHOD,TUNE` picks what is trained too. The sizes are those beside CLIP ViT-B/16, at 224 pixels;
`--config.model.name=` takes any other.
"""

import importlib

from . import default

BACKBONES = {
  "clip": "clip-vit-b16",
  "siglip": "siglip-b16-224",
  "siglip2": "siglip2-b16-224",
  "pe_core": "pe-core-b16-224",
}
TARGETS = ("isic", "eurosat", "cropdisease", "chestx", "folder")


def get_config(row="pe_core,isic,svl_ra"):
  backbone, _, rest = row.partition(",")
  target, *method = rest.split(",")
  extra = len(method) > 2 or not set(method[1:]) <= set(default.TUNES)
  if backbone not in BACKBONES or target not in TARGETS or extra:
    raise ValueError(
      f"--config=configs/backbones.py:{row}: give BACKBONE,TARGET[,METHOD][,TUNE] "
      f"with a backbone of {sorted(BACKBONES)} and a target of {sorted(TARGETS)}."
    )
  module = importlib.import_module(f".{target}", __package__)
  config = module.get_config(*filter(None, [",".join(method)]))
  config.model.name = BACKBONES[backbone]
  return config
