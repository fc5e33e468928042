"""How long adapting a task will take on this machine."""

from __future__ import annotations

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mdtrap_jax.classifier.choices import ZERO_SHOT
from mdtrap_jax.classifier.task import Setting


class Forecast(NamedTuple):
  """Seconds on this machine."""

  adapting: float
  encoding: float  # of the images once: what methods on frozen features take


def forecast(setting: Setting, rows: int, flops: float) -> Forecast:
  """Of adapting a task of `rows` images, roughly: six FLOP for each weight, token and view.

  Args:
    setting: whose method adapts.
    rows: `N`.
    flops: that this machine does in a second.
  """
  weights = {
    name: sum(leaf.size for leaf in jax.tree.leaves(setting.params[name]["blocks"]))
    for name in ("image", "text")
  }
  encoding = 2.0 * weights["image"] * setting.model.image.tokens * rows / flops
  if setting.head or setting.method_name == ZERO_SHOT:
    return Forecast(encoding, encoding)
  method = setting.method(rows, 2)
  views = rows * method.views if method.batch_size is None else method.batch_size
  clean = sum(phase.stop - phase.start for phase in method.phases if phase.clean)
  tokens = {"image": (views * method.steps + rows * clean) * setting.model.image.tokens}  # of all
  if "text" in method.parameterization.encoders:
    tokens["text"] = method.steps * setting.prompts.token_ids.size
  trained = 6.0 * sum(weights[name] * count for name, count in tokens.items())
  return Forecast(trained / flops + (1 + len(method.marks)) * encoding, encoding)


def measured_flops() -> float:
  """What this machine does in a second, by the products of an encoder; takes a fraction of one."""
  a, b = jnp.ones((1024, 768)), jnp.ones((768, 3072))
  product = jax.jit(jnp.matmul)
  product(a, b).block_until_ready()
  start = time.perf_counter()
  for _ in range(4):
    product(a, b).block_until_ready()
  return 4 * 2.0 * a.shape[0] * a.shape[1] * b.shape[1] / (time.perf_counter() - start)
