"""The methods by name, and the published settings of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from mdtrap_jax.methods import copa, tsa, url
from mdtrap_jax.methods.copa_transformer import two_transformers
from mdtrap_jax.methods.head import Head, HeadMethod, make_chain
from mdtrap_jax.models.resnet import ResNet18
from mdtrap_jax.objectives.terms import add_symmetric_cross_entropy

# Data sets on which CoPA's reference departs from its own defaults.
DIGITS_AND_SIGNS = frozenset({"traffic_sign", "mnist"})
TINY_IMAGES = DIGITS_AND_SIGNS | {"cifar10", "cifar100"}


class Settings(NamedTuple):
  """The numbers of a method; a field that it has no use for is ignored."""

  steps: int  # T
  learning_rate: float  # of the head
  l2: float = 0.0  # added to the gradient, times the parameter
  adapter_ratio: float = 1.0  # learning rate of the adapters, times the head's


class Definition(NamedTuple):
  """A method before its settings are known."""

  needs: str  # what its tasks hold: features "pooled", as a "map", or "image"s
  settings: Callable[[str, bool], Settings]  # domain, whether 5-way 1-shot
  make: Callable[[Settings, int, ResNet18 | None], HeadMethod]  # settings, ways, backbone


def _identity_head() -> Head:
  same = lambda params, rows: rows
  return Head(init=lambda key, row: {}, images=same, prototypes=same)


def make_ncc(settings: Settings, ways: int, model: ResNet18 | None = None) -> HeadMethod:
  """Nearest class centroid: nothing is trained."""
  del settings, model
  return HeadMethod(_identity_head(), None, 0, ways)


def make_url(settings: Settings, ways: int, model: ResNet18 | None = None) -> HeadMethod:
  """URL/PA, with adapters where a backbone is given."""
  head, optimizer = url.shared_linear(), url.adadelta(settings.learning_rate)
  if model is not None:
    head = tsa.with_adapters(head, model)
    optimizer = tsa.adadelta(settings.learning_rate, settings.adapter_ratio)
  chain = make_chain(
    url.add_prototype_cross_entropy, optimizer, steps=settings.steps, logit_scale=url.LOGIT_SCALE
  )
  return HeadMethod(head, chain, settings.steps, ways)


def make_copa(settings: Settings, ways: int, model: ResNet18 | None = None) -> HeadMethod:
  """CoPA with linear heads, with adapters where a backbone is given."""
  head, optimizer = copa.two_linear(), copa.adam_with_l2(settings.learning_rate, settings.l2)
  if model is not None:
    head = tsa.with_adapters(head, model)
    optimizer = tsa.adam_with_l2(settings.learning_rate, settings.adapter_ratio, settings.l2)
  return _symmetric(head, optimizer, settings, ways)


def make_copa_transformer(
  settings: Settings, ways: int, model: ResNet18 | None = None
) -> HeadMethod:
  """CoPA with transformer heads."""
  del model
  optimizer = copa.adam_with_l2(settings.learning_rate, settings.l2)
  return _symmetric(two_transformers(), optimizer, settings, ways)


def _symmetric(head, optimizer, settings, ways) -> HeadMethod:
  chain = make_chain(
    add_symmetric_cross_entropy, optimizer, steps=settings.steps, logit_scale=copa.LOGIT_SCALE
  )
  return HeadMethod(head, chain, settings.steps, ways)


def _copa_settings(rate: float, special: float) -> Callable[[str, bool], Settings]:
  return lambda domain, one_shot: (
    Settings(50, special, 0.0) if domain in DIGITS_AND_SIGNS else Settings(50, rate, 0.1)
  )


def _copa_tsa_settings(domain: str, one_shot: bool) -> Settings:
  rate, ratio = (5e-3, 0.5) if domain in TINY_IMAGES else (1e-3, 0.1)
  l2 = 0.0 if domain in DIGITS_AND_SIGNS else 0.1
  return Settings(40, rate * (0.1 if one_shot else 1.0), l2, ratio)


METHODS: dict[str, Definition] = {
  "ncc": Definition("pooled", lambda domain, one_shot: Settings(0, 0.0), make_ncc),
  "url": Definition("pooled", lambda domain, one_shot: Settings(40, 0.1), make_url),
  "copa": Definition("pooled", _copa_settings(1e-3, 5e-3), make_copa),
  "copa_transformer": Definition("map", _copa_settings(1e-4, 1e-3), make_copa_transformer),
  "url_tsa": Definition(
    "image", lambda domain, one_shot: Settings(40, 1.0, adapter_ratio=0.1), make_url
  ),
  "copa_tsa": Definition("image", _copa_tsa_settings, make_copa),
}


def make_method(
  name: str,
  *,
  ways: int,
  domain: str = "",
  one_shot: bool = False,
  model: ResNet18 | None = None,
  **overrides: float | None,
) -> HeadMethod:
  """A method with the published settings of a data set, some of them replaced.

  Args:
    name: of `METHODS`.
    ways: `C`, the most classes of a task.
    domain: name of the data set; a few have settings of their own.
    one_shot: whether tasks are 5-way 1-shot, where CoPA + TSA learns ten times slower.
    model: the backbone, for the methods that tune adapters in it.
    **overrides: fields of `Settings`; `None` keeps the published value.

  Raises:
    ValueError: no such method, or no backbone for one that needs it.
  """
  if name not in METHODS:
    raise ValueError(f"method={name!r}: choose one of {sorted(METHODS)}.")
  definition = METHODS[name]
  if definition.needs == "image" and model is None:
    raise ValueError(
      f"{name} tunes adapters inside the ResNet-18 and cannot run on stored "
      "features; set --config.features.model=resnet18 and its checkpoint."
    )
  settings = definition.settings(domain, one_shot)
  settings = settings._replace(**{k: v for k, v in overrides.items() if v is not None})
  return definition.make(settings, ways, model if definition.needs == "image" else None)
