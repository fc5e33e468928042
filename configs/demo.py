"""The embedded default: the shipped miniature on a generated target, offline, in minutes.

Cross-entropy alone and SVL + RA adapt the same 5-way 1-shot episodes of scenes that look as if
seen by a satellite. Rate, steps, weights and divergence are those that the study's search chose on
other looks, with as many trials for the one as for the other (docs/study.md).
"""

from ml_collections import ConfigDict

from . import default


def get_config():
  config = default.get_config()
  config.episodes = 100
  config.data.name = "world"
  config.data.domain = "satellite"
  config.data.severity = 1.0
  config.model.name = "miniature"
  config.lora.position = "half-up"  # so that the lower half is computed once an episode
  config.adapt.steps = 20
  config.adapt.evaluate_at = (5,)
  config.adapt.diagnose = True  # so that the table has the nearest class mean, too
  config.objective.ra.divergence = "softmax"
  config.optimizer.learning_rate = 1e-3
  config.variants = ConfigDict({"baseline": {"svl": 0.0, "ra": 0.0}, "svl_ra": {}})
  return config
