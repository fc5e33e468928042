"""EuroSAT: 10 land uses seen from a satellite. Paper: 85.02 % (5-way 1-shot, SVL + RA)."""

from . import default


def get_config(method="svl_ra"):
  config = default.get_config(method)
  config.data.name = "eurosat"
  return config
