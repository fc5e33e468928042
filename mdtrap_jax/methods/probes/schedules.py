"""Learning rates as the libraries of these papers schedule them.

The papers' epochs are one batch where the support set fits into it (256 images, CLIP-Adapter's 32).
In episodes the whole support set always is one batch, and one step is one epoch; on all classes of
a data set an epoch has as many steps as batches.
"""

from __future__ import annotations

import jax.numpy as jnp
import optax

from mdtrap_jax.methods.settings import Settings

WARM_UP = 1e-5  # CoOp's first epoch


def cosine(learning_rate: float, steps: int) -> optax.Schedule:
  """From `learning_rate` down to 0 in `T` steps."""
  return optax.cosine_decay_schedule(learning_rate, max(1, steps))


def warm_cosine(settings: Settings) -> optax.Schedule:
  """CoOp's, epoch by epoch: one at `WARM_UP`, then the cosine, whose last step is not reached."""
  decay = cosine(settings.learning_rate, settings.steps // settings.per_epoch)

  def schedule(count):
    epoch = count // settings.per_epoch
    return jnp.where(epoch == 0, WARM_UP, decay(epoch - 1))

  return schedule


def papers_epochs(shots: int) -> int:
  """CoOp's: 50 for one image a class, 100 for up to four, 200 for more."""
  return 50 if shots <= 1 else 100 if shots <= 4 else 200
