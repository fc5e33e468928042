"""The ResNet-18 once more, with torch's functions, and narrow weights to compare it with."""

import jax
import numpy as np
import torch
from torch.nn import functional as F

from mdtrap_jax.models.resnet import ResNet18

NARROW = ResNet18(image_size=16, widths=(4, 5, 6, 8))


def random_params(model=NARROW, seed=0):
  """Weights with batch norms that are no identity, float32."""
  rng = np.random.default_rng(seed)

  def draw(path, shape):
    g = rng.standard_normal(shape.shape)
    kind = path[-1].key
    if kind == "kernel":
      g *= np.sqrt(2 / (shape.shape[0] * shape.shape[1] * shape.shape[3]))
    elif kind == "var":
      g = 1 + 0.3 * np.abs(g)
    else:
      g = 0.3 * g + (kind == "scale")
    return g.astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0)))


def feature_maps(params, images, adapters=None, dtype=torch.float32):
  """`[B, D, h, w]` of normalized images `[B, H, W, 3]`; adapters are tensors `[in, out]`."""
  tensor = lambda array: torch.tensor(np.asarray(array), dtype=dtype)
  adapters = adapters or {}

  def conv(x, own, stride, padding, adapter=None):
    y = F.conv2d(x, tensor(own["conv"]["kernel"]).permute(3, 2, 0, 1), None, stride, padding)
    return y if adapter is None else y + F.conv2d(x, adapter.T[:, :, None, None], None, stride)

  def norm(x, own):
    mean, var, scale, bias = (tensor(own[name]) for name in ("mean", "var", "scale", "bias"))
    return F.batch_norm(x, mean, var, scale, bias, eps=1e-5)

  x = tensor(images).permute(0, 3, 1, 2)
  x = F.relu(norm(conv(x, params["stem"], 2, 1), params["stem_norm"]))
  for layer in (1, 2, 3, 4):
    for block in (0, 1):
      name = f"layer{layer}_block{block}"
      own, stride = params[name], 2 if layer > 1 and block == 0 else 1
      short = norm(conv(x, own["down"], stride, 0), own["down_norm"]) if "down" in own else x
      x = conv(x, own["conv1"], stride, 1, adapters.get(f"{name}_conv1"))
      x = F.relu(norm(x, own["norm1"]))
      x = conv(x, own["conv2"], 1, 1, adapters.get(f"{name}_conv2"))
      x = F.relu(norm(x, own["norm2"]) + short)
  return x
