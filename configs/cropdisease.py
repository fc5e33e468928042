"""CropDisease (PlantVillage): 38 plant diseases. Paper: 87.20 % (5-way 1-shot, SVL + RA)."""

from . import default


def get_config(method="svl_ra"):
  config = default.get_config(method)
  config.data.name = "cropdisease"
  return config
