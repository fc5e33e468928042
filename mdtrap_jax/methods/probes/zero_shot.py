"""The frozen vision-language model itself: the nearest text, whatever the support set shows.

Radford et al., ICML 2021. No few-shot method, but what those with texts start from.
"""

from __future__ import annotations

from mdtrap_jax.methods.probe import Probe
from mdtrap_jax.methods.probes import texts
from mdtrap_jax.methods.settings import Settings

SETTINGS = Settings(0)


def probe(settings: Settings) -> Probe:
  """`s · cos(x, t)`."""
  return Probe(
    init=lambda support: {},
    logits=lambda params, memory, rows: texts.zero_shot(rows, memory["text"], settings.logit_scale),
    memory=lambda support: {"text": support.text},
  )
