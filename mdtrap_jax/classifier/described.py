"""What a classifier is, in words for a report: settings, prompts, machine, and how to repeat it."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from mdtrap_jax.classifier.choices import ZERO_SHOT, has_text
from mdtrap_jax.classifier.estimator import FewShotClassifier
from mdtrap_jax.classifier.task import Setting
from mdtrap_jax.data.labeled import Labeled


def anchor(setting: Setting) -> str:
  """What a method compares images with by cosines; "" where it gives logits instead."""
  if not setting.head:
    return "text"
  return "" if setting.scale == 1.0 else "prototype"


def facts(
  classifier: FewShotClassifier, setting: Setting, data: Labeled, steps: int
) -> dict[str, str]:
  """What was done, by name."""
  found = {
    "images": f"{len(data.labels)} of {len(np.unique(data.labels))} classes, {data.name}",
    "model": classifier.model,
    "method": classifier.method,
    "steps": str(0 if classifier.method == ZERO_SHOT else steps),
    "seed": str(classifier.seed),
  }
  if has_text(classifier.method):
    template = setting.config.data.template
    found["prompts"] = template if isinstance(template, str) else "; ".join(template)
  return found


def short(data: str) -> str:
  """The last part of a path."""
  return os.path.basename(data.rstrip("/")) or data


def call(classifier: FewShotClassifier) -> str:
  """The expression that makes it."""
  default = FewShotClassifier().get_params()
  given = classifier.get_params()
  named = [f"{name}={given[name]!r}" for name in default if _differs(given[name], default[name])]
  return f"FewShotClassifier({', '.join(named)})"


def _differs(value: Any, default: Any) -> bool:
  return type(value) is not type(default) or value != default
