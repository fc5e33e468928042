"""Task-specific adapters (TSA): residual 1×1 maps in the ResNet-18, tuned with a head."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from mdtrap_jax.data.views import normalize
from mdtrap_jax.methods import url
from mdtrap_jax.methods.head import Head
from mdtrap_jax.models.resnet import LAYERS, ResNet18, init_adapters


def with_adapters(head: Head, model: ResNet18, layers: Sequence[str] = LAYERS) -> Head:
  """`head` on features that the task's own adapters take part in making.

  Its parameters are `{"head": …, "adapters": …}`; tasks hold images, uint8 or normalized, and
  the backbone's weights are the model's. Prototypes are new in every step, and the gradient
  flows through them to the adapters.

  Args:
    head: on pooled features.
    model: the backbone.
    layers: of the backbone, whose convolutions get adapters.
  """

  def init(key, row):
    dtype = jnp.float32 if row.dtype == jnp.uint8 else row.dtype
    features = jax.ShapeDtypeStruct((model.width,), dtype)
    adapters = init_adapters(dtype, model.widths, layers)
    return {"head": head.init(key, features), "adapters": adapters}

  def features(params, backbone, images):
    if images.dtype == jnp.uint8:
      images = normalize(images, model.image_mean, model.image_std)
    return model.features(backbone, images, params["adapters"])

  return Head(
    init=init,
    images=lambda params, rows: head.images(params["head"], rows),
    prototypes=lambda params, rows: head.prototypes(params["head"], rows),
    features=features,
  )


def adam_with_l2(
  learning_rate: float, adapter_ratio: float, l2: float
) -> optax.GradientTransformation:
  """Adam with L2 in the gradient; the adapters learn at `adapter_ratio · learning_rate`."""
  by_part = {"head": 1.0, "adapters": adapter_ratio}
  return optax.chain(
    optax.add_decayed_weights(l2),
    optax.scale_by_adam(),
    _scale_by_part({part: -learning_rate * ratio for part, ratio in by_part.items()}),
  )


def adadelta(learning_rate: float, adapter_ratio: float) -> optax.GradientTransformation:
  """URL's Adadelta; the adapters learn at `adapter_ratio · learning_rate`."""
  return optax.chain(
    optax.scale_by_adadelta(rho=url.RHO, eps=url.EPSILON),
    _scale_by_part({"head": -learning_rate, "adapters": -learning_rate * adapter_ratio}),
  )


def _scale_by_part(factors: dict[str, float]) -> optax.GradientTransformation:
  """Multiplies the updates of each top-level part by its own factor."""
  return optax.stateless(
    lambda updates, params: {
      part: jax.tree.map(lambda u: factors[part] * u, tree)  # noqa: B023 (called at once)
      for part, tree in updates.items()
    }
  )
