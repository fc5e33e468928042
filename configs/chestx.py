"""ChestX-ray14: 7 single-label X-ray findings. Paper: 22.68 % (5-way 1-shot, SVL + RA)."""

from . import default


def get_config(method="svl_ra"):
  config = default.get_config(method)
  config.data.name = "chestx"
  config.adapt.steps_per_shot = min(125, config.adapt.steps_per_shot)
  if "baseline" in method.split(","):
    config.adapt.steps = 125
  return config
