"""What the registry knows of a method before it is made, and its published numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from mdtrap_jax.methods.method import Method
from mdtrap_jax.models.resnet import LAYERS, ResNet18

# The training sets of the backbones that URL publishes: of all eight, and of ImageNet alone.
SEEN = {
  "mdl": frozenset(
    {
      "ilsvrc_2012",
      "omniglot",
      "aircraft",
      "cu_birds",
      "dtd",
      "quickdraw",
      "fungi",
      "vgg_flower",
    }
  ),
  "sdl": frozenset({"ilsvrc_2012"}),
}


class Settings(NamedTuple):
  """The numbers of a method; a field that it has no use for is ignored."""

  steps: int  # T; 0 for a closed form
  learning_rate: float = 0.0  # of the head
  l2: float = 0.0  # added to the gradient, times the parameter; ridge's and the like's own weight
  adapter_ratio: float = 1.0  # learning rate of the adapters, times the head's
  layers: tuple[str, ...] = LAYERS  # of the backbone, that get adapters
  prototypes: str = "mean"  # how a class's images make its prototype, of `ncc.POOLS`
  distance: str = "cosine"  # between images and prototypes, of `ncc.DISTANCES`
  logit_scale: float = 100.0  # of cosines to texts; the model's own, CLIP's if it has none
  alpha: float = 1.0  # how much is added to what the frozen model says
  beta: float = 1.0  # how sharp a similarity between images is
  neighbors: int = 1  # images that are looked at
  batch_size: int = 0  # of a probe: rows of a step, where a task has more; 0: all
  per_epoch: int = 1  # steps that go once through the support set


class Domain(NamedTuple):
  """What the published settings follow from."""

  name: str = ""  # of the data set, without `meta/`
  seen: bool = False  # whether the backbone was trained on it
  one_shot: bool = False  # whether its tasks are 5-way 1-shot
  shots: int = 5  # images of a class, in the mean


class Definition(NamedTuple):
  """A method before its settings are known."""

  # What its tasks hold: features "pooled", "unprojected" or as a "map", or "image"s.
  needs: str
  settings: Callable[[Domain], Settings]
  make: Callable[[Settings, int, ResNet18 | None], Method]  # settings, ways, backbone
  text: bool = False  # whether it needs embeddings of the classes' names
  transductive: bool = False  # whether all queries of a task are classified together
  weights: Callable[[Any], Any] | None = None  # those of the frozen model that it trains
  batch: int = 0  # its authors' batches of all classes of a data set; 0: all images at once
  other_classes: bool = False  # whether it tells classes apart that it never saw, by their texts
