"""URL's published ResNet-18, under torchvision's names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from mdtrap_jax import files
from mdtrap_jax.checkpoints.convert import convert, parameter_shapes
from mdtrap_jax.checkpoints.formats.arrays import Arrays, in_memory, normalized
from mdtrap_jax.checkpoints.formats.safetensors_file import open_safetensors
from mdtrap_jax.checkpoints.formats.torch_file import open_torch
from mdtrap_jax.checkpoints.rules import Arrangement, Module, Shape, same, slots
from mdtrap_jax.models.resnet import BLOCKS, WIDTHS, ResNet18

# The classifier of pre-training, URL's alignment heads beside the backbone, and counters.
IGNORED = (r"(cls_fn|fc|beta)\..*", r".*num_batches_tracked")


def kernel(shape: Shape) -> Arrangement:
  """Torch's `[out, in, h, w]`; ours is `[h, w, in, out]`."""
  height, width, channels, out = shape
  stored = (out, channels, height, width)
  return Arrangement(stored, stored, (2, 3, 1, 0))


DIALECT = {
  "convolution": ((".weight", "/conv/kernel", kernel),),
  "batch_norm": (
    (".weight", "/scale", same),
    (".bias", "/bias", same),
    (".running_mean", "/mean", same),
    (".running_var", "/var", same),
  ),
}


def _block(layer: int, block: int) -> tuple[Module, ...]:
  there, ours = f"layer{layer}.{block}", f"layer{layer}_block{block}"
  return (
    Module("convolution", f"{there}.conv1", f"{ours}/conv1"),
    Module("batch_norm", f"{there}.bn1", f"{ours}/norm1"),
    Module("convolution", f"{there}.conv2", f"{ours}/conv2"),
    Module("batch_norm", f"{there}.bn2", f"{ours}/norm2"),
    # Only where the shape changes; `slots` leaves out what the model does not have.
    Module("convolution", f"{there}.downsample.0", f"{ours}/down"),
    Module("batch_norm", f"{there}.downsample.1", f"{ours}/down_norm"),
  )


TABLE = (
  Module("convolution", "conv1", "stem"),
  Module("batch_norm", "bn1", "stem_norm"),
  *(
    module
    for layer in range(1, len(WIDTHS) + 1)
    for block in range(BLOCKS)
    for module in _block(layer, block)
  ),
)

_FIRST = {module.name.partition(".")[0] for module in TABLE}


def load_resnet18(source: str | Path, *, dtype: Any = jnp.float32) -> tuple[ResNet18, Any]:
  """The backbone of a checkpoint file.

  Args:
    source: a file that torch saved (`.pt`, `.pth`, `.pth.tar`) or a `.safetensors` file.
    dtype: of the weights.

  Returns:
    The model and its parameters.

  Raises:
    FileNotFoundError: no such file.
    ValueError: the file cannot be read, or its arrays do not fit; all are named.
  """
  path = find_resnet18(source)
  if path.suffix == ".safetensors":
    return from_torchvision(open_safetensors(path), dtype=dtype, source=str(path))
  return from_torchvision(open_torch(path).arrays, dtype=dtype, source=str(path))


def find_resnet18(source: str | Path) -> Path:
  """The checkpoint file.

  Raises:
    FileNotFoundError: there is none.
  """
  path = Path(files.local(source))
  if not path.is_file():
    raise FileNotFoundError(
      f"{path}: no such file. Give the ResNet-18 checkpoint of the URL repository "
      "(its weights/…/model_best.pth.tar)."
    )
  return path


def from_torchvision(
  arrays: Arrays | Mapping[str, np.ndarray],
  *,
  dtype: Any = jnp.float32,
  source: str = "state dict",
) -> tuple[ResNet18, Any]:
  """The backbone from arrays under torchvision's names, in memory or stored."""
  if any(isinstance(array, np.ndarray) for array in arrays.values()):
    arrays = in_memory(arrays)
  # A model with adapters or heads beside it holds the backbone under a name of its own.
  arrays = normalized(arrays, _FIRST)
  arrays = {name.removeprefix("backbone."): array for name, array in arrays.items()}
  model = ResNet18()
  shapes = parameter_shapes(model)
  params = convert(
    arrays,
    slots(TABLE, DIALECT, shapes),
    shapes,
    dtype=dtype,
    ignored=IGNORED,
    source=f"{source} (ResNet-18)",
  )
  return model, params
