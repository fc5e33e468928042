"""ISIC 2018 task 3: 7 skin lesions. Paper: 38.12 % (5-way 1-shot, SVL + RA)."""

from . import default


def get_config(method="svl_ra"):
  config = default.get_config(method)
  config.data.name = "isic"
  return config
