"""Frozen networks as feature extractors: the ResNet-18 and every image tower of the library."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mdtrap_jax import checkpoints, files, models
from mdtrap_jax.checkpoints.layouts.resnet import find_resnet18, load_resnet18
from mdtrap_jax.data.feature_set import FeatureSet
from mdtrap_jax.data.features import Extractor
from mdtrap_jax.data.views import normalize
from mdtrap_jax.models.resnet import ResNet18


class Backbone(NamedTuple):
  """A model with its weights."""

  model: Any  # ResNet18 or VisionLanguageModel
  params: Any


def check_backbone(config: Any) -> None:
  """Refuses a `config.model` without weights.

  Raises:
    ValueError: says what to set.
  """
  if config.name == "resnet18" and not (config.checkpoint or config.random_weights):
    raise ValueError(
      "--config.model.name=resnet18 needs weights: set --config.model.checkpoint= to URL's "
      "model_best.pth.tar, or --config.model.random_weights=true to try things out."
    )


def weights_of(config: Any) -> str | None:
  """Hex digest of the files of `config.model`; `None` where its weights follow from the config.

  Raises:
    ValueError, OSError: no such model or checkpoint.
  """
  check_backbone(config)
  if config.random_weights:
    return None
  if config.name == "resnet18":
    return files.digest(find_resnet18(config.checkpoint))
  return checkpoints.fingerprint(config.name)


def load_backbone(config: Any, seed: int) -> Backbone:
  """The model of `config.model`.

  Args:
    config: has `name` (`resnet18`, or any that `checkpoints.load` takes), `checkpoint` (of the
      ResNet-18) and `random_weights`.
    seed: of random weights.

  Raises:
    ValueError, FileNotFoundError: no such model or checkpoint.
  """
  check_backbone(config)
  if config.random_weights:
    logging.warning("%s has random weights: its accuracy means little.", config.name)
    model = ResNet18() if config.name == "resnet18" else models.build(config.name)
    return Backbone(model, models.random_weights(model, jax.random.key(seed)))
  if config.name == "resnet18":
    return Backbone(*load_resnet18(config.checkpoint))
  return Backbone(*checkpoints.load(config.name))


def make_extractor(name: str, backbone: Backbone, kind: str) -> Extractor:
  """An extractor of one kind of features.

  Args:
    name: of the model, for messages and folders.
    backbone: the model.
    kind: `pooled` `[D]`, `unprojected` `[width]` (before a vision-language model's projection),
      `map` `[h, w, D]` (ResNet-18 alone) or `image`, the resized pixels.

  Raises:
    ValueError: the model has no features of this kind.
  """
  model, params = backbone
  resnet = isinstance(model, ResNet18)
  if kind == "unprojected":
    model = unprojected(model, name)
  elif kind != "pooled" and not resnet:
    raise ValueError(
      f"{name} gives one feature vector an image; this method needs the "
      "ResNet-18: set --config.model.name=resnet18."
    )
  size = model.image_size if resnet else model.image.image_size
  if kind == "image":
    # The adapters take bytes as they are, and floats as the network's normalized input.
    as_input = lambda pixels: (
      pixels
      if pixels.dtype == np.uint8
      else np.asarray(normalize(pixels, model.image_mean, model.image_std))
    )
    settings = f"resized to {size}, {model.image_mean}, {model.image_std}"
    return Extractor(f"pixels-{size}", settings, size, as_input, align_corners=True)
  encode = {("pooled", True): ResNet18.features, ("map", True): ResNet18.feature_maps}.get(
    (kind, resnet)
  ) or type(model).encode_image

  return Extractor(
    f"{name}-{kind}",
    fingerprint(backbone),
    size,
    lambda pixels: np.asarray(_encode(encode, model, params, pixels)),
    align_corners=resnet,
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(encode, model, weights, pixels):
  rows = normalize(pixels, model.image_mean, model.image_std)
  return encode(model, weights, rows).astype(jnp.float32)


def unprojected(model: Any, name: str) -> Any:
  """A vision-language model whose image encoder ends before its projection; same weights.

  Raises:
    ValueError: the model has no projection.
  """
  if isinstance(model, ResNet18) or not model.image.projection:
    raise ValueError(
      f"{name} has no projection behind its image encoder, which this method tunes; use a CLIP or "
      "the miniature, or taskres, which tunes the texts."
    )
  image = dataclasses.replace(model.image, projection=False, embed_dim=model.image.width)
  return dataclasses.replace(model, image=image)


def check_kind(found: FeatureSet, kind: str) -> None:
  """Refuses stored features that are not of the kind a method needs.

  Raises:
    ValueError: names the shape that was found and the one that is needed.
  """
  shape = {"map": "[n, h, w, D]"}.get(kind, "[n, D]")
  if found.features.ndim != shape.count(",") + 1 or found.features.dtype == np.uint8:
    raise ValueError(
      f"{found.name}: the stored features are {found.features.dtype} "
      f"{list(found.features.shape)}; this method needs floats {shape}."
    )


def fingerprint(backbone: Backbone) -> str:
  """Hex digest of all that a model's features depend on: its weights and its settings."""
  model, params = backbone
  digest = hashlib.sha256()
  settings = [model.image_mean, model.image_std, getattr(model, "image", None)]
  digest.update(repr(settings).encode())
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    array = np.asarray(leaf)
    digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).view(np.uint8))
  return digest.hexdigest()
