"""The methods by name, and the published settings of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from mdtrap_jax.methods import copa, tsa, url
from mdtrap_jax.methods.copa_transformer import two_transformers
from mdtrap_jax.methods.head import Head, HeadMethod, make_chain
from mdtrap_jax.models.resnet import LAYERS, ResNet18
from mdtrap_jax.objectives.terms import add_symmetric_cross_entropy

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

# Data sets on which CoPA's reference departs from its own defaults.
DIGITS_AND_SIGNS = frozenset({"traffic_sign", "mnist"})
TINY_IMAGES = DIGITS_AND_SIGNS | {"cifar10", "cifar100"}


class Settings(NamedTuple):
  """The numbers of a method; a field that it has no use for is ignored."""

  steps: int  # T
  learning_rate: float  # of the head
  l2: float = 0.0  # added to the gradient, times the parameter
  adapter_ratio: float = 1.0  # learning rate of the adapters, times the head's
  layers: tuple[str, ...] = LAYERS  # of the backbone, that get adapters


class Domain(NamedTuple):
  """What the published settings follow from."""

  name: str = ""  # of the data set, without `meta/`
  seen: bool = False  # whether the backbone was trained on it
  one_shot: bool = False  # whether its tasks are 5-way 1-shot


class Definition(NamedTuple):
  """A method before its settings are known."""

  needs: str  # what its tasks hold: features "pooled", as a "map", or "image"s
  settings: Callable[[Domain], Settings]
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
    head = tsa.with_adapters(head, model, settings.layers)
    optimizer = tsa.adadelta(settings.learning_rate, settings.adapter_ratio)
  chain = make_chain(
    url.add_prototype_cross_entropy, optimizer, steps=settings.steps, logit_scale=url.LOGIT_SCALE
  )
  return HeadMethod(head, chain, settings.steps, ways)


def make_copa(settings: Settings, ways: int, model: ResNet18 | None = None) -> HeadMethod:
  """CoPA with linear heads, with adapters where a backbone is given."""
  head, optimizer = copa.two_linear(), copa.adam_with_l2(settings.learning_rate, settings.l2)
  if model is not None:
    head = tsa.with_adapters(head, model, settings.layers)
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


def _url_settings(domain: Domain) -> Settings:
  return Settings(40, 0.1 if domain.seen else 1.0)


def _url_tsa_settings(domain: Domain) -> Settings:
  return _url_settings(domain)._replace(adapter_ratio=0.5)


def _copa_settings(rate: float, special: float) -> Callable[[Domain], Settings]:
  return lambda domain: (
    Settings(50, special, 0.0) if domain.name in DIGITS_AND_SIGNS else Settings(50, rate, 0.1)
  )


def _copa_tsa_settings(domain: Domain) -> Settings:
  rate, ratio = (5e-3, 0.5) if domain.name in TINY_IMAGES else (1e-3, 0.1)
  l2 = 0.0 if domain.name in DIGITS_AND_SIGNS else 0.1
  return Settings(40, rate * (0.1 if domain.one_shot else 1.0), l2, ratio, ("layer2", "layer3"))


METHODS: dict[str, Definition] = {
  "ncc": Definition("pooled", lambda domain: Settings(0, 0.0), make_ncc),
  "url": Definition("pooled", _url_settings, make_url),
  "copa": Definition("pooled", _copa_settings(1e-3, 5e-3), make_copa),
  "copa_transformer": Definition("map", _copa_settings(1e-4, 1e-3), make_copa_transformer),
  "url_tsa": Definition("image", _url_tsa_settings, make_url),
  "copa_tsa": Definition("image", _copa_tsa_settings, make_copa),
}


def make_method(
  name: str,
  *,
  ways: int,
  domain: str = "",
  seen: bool = False,
  one_shot: bool = False,
  model: ResNet18 | None = None,
  **overrides: float | tuple[str, ...] | None,
) -> HeadMethod:
  """A method with the published settings of a data set, some of them replaced.

  Args:
    name: of `METHODS`.
    ways: `C`, the most classes of a task.
    domain: name of the data set; CoPA has settings of its own for a few.
    seen: whether the backbone was trained on it, see `seen_domains`; URL then learns ten times
      slower, with and without adapters.
    one_shot: whether tasks are 5-way 1-shot, where CoPA + TSA learns ten times slower.
    model: the backbone, for the methods that tune adapters in it.
    **overrides: fields of `Settings`; `None` keeps the published value.

  Raises:
    ValueError: no such method, no backbone for one that needs it, or no such layer in it.
  """
  if name not in METHODS:
    raise ValueError(f"method={name!r}: choose one of {sorted(METHODS)}.")
  definition = METHODS[name]
  if definition.needs == "image" and model is None:
    raise ValueError(
      f"{name} tunes adapters inside the ResNet-18 and cannot run on stored "
      "features; set --config.model.name=resnet18 and its checkpoint."
    )
  settings = definition.settings(Domain(domain, seen, one_shot))
  settings = settings._replace(**{k: v for k, v in overrides.items() if v is not None})
  return definition.make(settings, ways, model if definition.needs == "image" else None)


def seen_domains(seen: str, domains: Mapping[str, str]) -> frozenset[str]:
  """Names of the domains that the backbone was trained on.

  Args:
    seen: names of sets in `SEEN` and of single domains, separated by commas; may be empty.
    domains: entries of `config.domains` by their name. Images of one's own, `NAME=FOLDER`, are
      in no set of `SEEN` under any name; they are seen where `seen` names them.

  Raises:
    ValueError: a name is neither a set of `SEEN`, nor a training set of Meta-Dataset, nor one
      of `domains`.
  """
  given = {name.strip() for name in seen.split(",")} - {""}
  if unknown := given - SEEN.keys() - SEEN["mdl"] - domains.keys():
    raise ValueError(
      f"config.seen={seen!r}: no domain is called {min(unknown)!r}; choose mdl, sdl, '', or some "
      f"of {sorted(domains)}, separated by commas."
    )
  published = frozenset().union(*(SEEN[name] for name in given & SEEN.keys()))
  return frozenset(
    name
    for name, entry in domains.items()
    if name in given or (name in published and "=" not in entry)
  )
