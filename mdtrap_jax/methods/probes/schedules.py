"""Learning rates as the libraries of these papers schedule them; one step is one epoch.

The papers' epochs are one batch where the support set fits into it (256 images, CLIP-Adapter's 32),
as few-shot tasks do. Here the whole support set always is one batch.
"""

from __future__ import annotations

import jax.numpy as jnp
import optax

WARM_UP = 1e-5  # CoOp's first epoch


def cosine(learning_rate: float, steps: int) -> optax.Schedule:
  """From `learning_rate` down to 0 in `T` steps."""
  return optax.cosine_decay_schedule(learning_rate, max(1, steps))


def warm_cosine(learning_rate: float, steps: int) -> optax.Schedule:
  """CoOp's: one step at `WARM_UP`, then the cosine, whose last step is not reached."""
  decay = cosine(learning_rate, steps)
  return lambda count: jnp.where(count == 0, WARM_UP, decay(count - 1))


def papers_epochs(shots: int) -> int:
  """CoOp's: 50 for one image a class, 100 for up to four, 200 for more."""
  return 50 if shots <= 1 else 100 if shots <= 4 else 200
