"""The embedded default: the shipped miniature on a generated target, offline, in minutes.

Cross-entropy alone and SVL + RA adapt the same 5-way 1-shot episodes of images that look like
radiographs. The learning rate suits the short schedule; it was chosen for cross-entropy alone.
"""

from ml_collections import ConfigDict

from configs import default


def get_config():
  config = default.get_config()
  config.episodes = 100
  config.data.name = "world"
  config.data.domain = "radiograph"
  config.data.severity = 1.0
  config.model.name = "miniature"
  config.adapt.steps = 25
  config.optimizer.learning_rate = 2e-3
  config.variants = ConfigDict({"baseline": {"svl": 0.0, "ra": 0.0}, "svl_ra": {}})
  return config
