"""CLIP-Adapter: a bottleneck MLP beside the image features, mixed with them by a fixed ratio.

Gao et al., IJCV 2024 (arXiv 2110.04544), eq. 4-6. Their code: ratio 0.2, reduction 4, ReLU after
both layers, no bias; for training it refers to CoOp's commands, whose SGD at 0.002 and epochs by
the number of shots are taken here.
"""

from __future__ import annotations

import jax
import optax

from mdtrap_jax.methods.probe import Probe, cross_entropy, descend
from mdtrap_jax.methods.probes.schedules import papers_epochs, warm_cosine
from mdtrap_jax.methods.probes.texts import zero_shot
from mdtrap_jax.methods.settings import Domain, Settings

REDUCTION = 4
MOMENTUM = 0.9


def settings_of(domain: Domain) -> Settings:
  """CoOp's epochs by the number of shots; its L2 is the default of their library, Dassl."""
  return Settings(papers_epochs(domain.shots), 2e-3, 5e-4, alpha=0.2)


def probe(settings: Settings) -> Probe:
  """`s · cos(α relu(W₂ relu(W₁ x)) + (1 - α) x, t)`."""

  def init(support):
    width, dtype = support.features.shape[1], support.features.dtype
    shapes = {"down": (width, width // REDUCTION), "up": (width // REDUCTION, width)}
    keys = dict(zip(shapes, jax.random.split(support.key), strict=True))
    # As torch starts a linear layer: uniform, up to one over the root of its inputs.
    draw = lambda key, shape: jax.random.uniform(key, shape, dtype, -1, 1) * shape[0] ** -0.5
    return {name: draw(keys[name], shape) for name, shape in shapes.items()}

  def logits(params, memory, rows):
    added = jax.nn.relu(jax.nn.relu(rows @ params["down"]) @ params["up"])
    mixed = settings.alpha * added + (1 - settings.alpha) * rows
    return zero_shot(mixed, memory["text"], settings.logit_scale)

  def loss(params, memory, support):
    return cross_entropy(logits(params, memory, support.features), support)

  optimizer = optax.chain(
    optax.add_decayed_weights(settings.l2),
    optax.sgd(warm_cosine(settings), MOMENTUM),
  )
  return Probe(init, logits, lambda support: {"text": support.text}, descend(loss, optimizer))
