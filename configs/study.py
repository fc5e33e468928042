"""The paper's study in miniature: all methods on all generated targets, by severity and shots.

Every cell adapts the same episodes under every method. The whole grid is for a GPU; on a CPU
take a part of it, as docs/study.md shows: `--config.study.domains="('radiograph',)"`.
"""

from ml_collections import ConfigDict

from . import default


def get_config():
  config = default.get_config()
  config.experiment = "study"
  config.episodes = 1000  # a cell
  config.data.name = "world"
  config.model.name = "miniature"
  config.adapt.steps_per_shot = 50
  config.optimizer.learning_rate = 1e-3
  config.objective.visual.weight = 0.1

  config.study = study = ConfigDict()
  # Domains of the generated world, and "digits" (scikit-learn's, real, without severity).
  study.domains = ("radiograph", "satellite", "dermoscopy", "closeup", "digits")
  study.severities = (0.5, 0.75, 1.0)  # of each generated domain
  study.shots = (1, 5)  # a cell for each
  return config
