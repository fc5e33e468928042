"""The methods by name, and the published settings of each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from mdtrap_jax.methods import copa, tsa, url
from mdtrap_jax.methods.copa_transformer import two_transformers
from mdtrap_jax.methods.head import Head, HeadMethod, make_chain
from mdtrap_jax.methods.probe import Probe, ProbeMethod
from mdtrap_jax.methods.probes import (
  clap,
  clip_adapter,
  knn,
  laplacian_shot,
  logistic,
  lp_plus_plus,
  mahalanobis,
  prolip,
  ridge,
  taskres,
  tim,
  tip_adapter,
  zero_shot,
)
from mdtrap_jax.methods.settings import SEEN, Definition, Domain, Settings
from mdtrap_jax.models.resnet import ResNet18
from mdtrap_jax.objectives.terms import add_symmetric_cross_entropy

# Data sets on which CoPA's reference departs from its own defaults.
DIGITS_AND_SIGNS = frozenset({"traffic_sign", "mnist"})
TINY_IMAGES = DIGITS_AND_SIGNS | {"cifar10", "cifar100"}


def _identity_head() -> Head:
  same = lambda params, rows: rows
  return Head(init=lambda key, row: {}, images=same, prototypes=same)


def make_ncc(settings: Settings, ways: int, model: ResNet18 | None = None) -> HeadMethod:
  """Nearest class centroid: nothing is trained."""
  del model
  return _head_method(_identity_head(), None, settings._replace(steps=0), ways, url.LOGIT_SCALE)


def make_url(settings: Settings, ways: int, model: ResNet18 | None = None) -> HeadMethod:
  """URL/PA, with adapters where a backbone is given."""
  head, optimizer = url.shared_linear(), url.adadelta(settings.learning_rate)
  if model is not None:
    head = tsa.with_adapters(head, model, settings.layers)
    optimizer = tsa.adadelta(settings.learning_rate, settings.adapter_ratio)
  chain = make_chain(
    functools.partial(url.add_prototype_cross_entropy, distance=settings.distance),
    optimizer,
    steps=settings.steps,
    logit_scale=url.LOGIT_SCALE,
  )
  return _head_method(head, chain, settings, ways, url.LOGIT_SCALE)


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


def _head_method(head, chain, settings: Settings, ways: int, logit_scale: float) -> HeadMethod:
  """With squared distances in place of cosines there is no scale, as in URL's code."""
  scale = logit_scale if settings.distance == "cosine" else 1.0
  return HeadMethod(
    head, chain, settings.steps, ways, settings.prototypes, settings.distance, scale
  )


def _symmetric(head, optimizer, settings, ways) -> HeadMethod:
  if settings.distance != "cosine":
    raise ValueError(
      f"config.head.distance={settings.distance!r}: CoPA's loss is one of cosines; leave it empty, "
      "or use ncc or url."
    )
  chain = make_chain(
    add_symmetric_cross_entropy, optimizer, steps=settings.steps, logit_scale=copa.LOGIT_SCALE
  )
  return _head_method(head, chain, settings, ways, copa.LOGIT_SCALE)


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


def _probe(
  make: Callable[[Settings], Probe],
  settings: Settings | Callable[[Domain], Settings],
  needs: str = "pooled",
  *,
  batch: int = 0,
  other_classes: bool = False,
  **about: Any,
) -> Definition:
  """The definition of a probe; `about` are fields of `Definition` that `ProbeMethod` has too."""

  def make_one(settings: Settings, ways: int, model: ResNet18 | None = None) -> ProbeMethod:
    del model
    probe = make(settings)
    steps = settings.steps if probe.train else 0
    return ProbeMethod(probe, steps, ways, batch_size=settings.batch_size, **about)

  published = settings if callable(settings) else lambda domain: settings
  return Definition(needs, published, make_one, batch=batch, other_classes=other_classes, **about)


METHODS: dict[str, Definition] = {
  "ncc": Definition("pooled", lambda domain: Settings(0), make_ncc),
  "url": Definition("pooled", _url_settings, make_url),
  "copa": Definition("pooled", _copa_settings(1e-3, 5e-3), make_copa),
  "copa_transformer": Definition("map", _copa_settings(1e-4, 1e-3), make_copa_transformer),
  "url_tsa": Definition("image", _url_tsa_settings, make_url),
  "copa_tsa": Definition("image", _copa_tsa_settings, make_copa),
  "zero_shot": _probe(zero_shot.probe, zero_shot.SETTINGS, text=True, other_classes=True),
  "knn": _probe(knn.probe, knn.SETTINGS),
  "ridge": _probe(ridge.probe, ridge.SETTINGS),
  "logistic": _probe(logistic.probe, logistic.SETTINGS),
  "mahalanobis": _probe(mahalanobis.probe, mahalanobis.SETTINGS),
  "tip_adapter": _probe(tip_adapter.probe, tip_adapter.SETTINGS, text=True),
  "tip_adapter_f": _probe(tip_adapter.tuned, tip_adapter.SETTINGS_F, text=True, batch=256),
  "clip_adapter": _probe(
    clip_adapter.probe, clip_adapter.settings_of, text=True, batch=32, other_classes=True
  ),
  "taskres": _probe(taskres.probe, taskres.settings_of, text=True, batch=256),
  "lp_plus_plus": _probe(lp_plus_plus.probe, lp_plus_plus.SETTINGS, text=True),
  "clap": _probe(clap.probe, clap.SETTINGS, text=True, batch=256),
  "prolip": _probe(
    prolip.probe,
    prolip.SETTINGS,
    "unprojected",
    text=True,
    weights=prolip.weights,
    other_classes=True,
  ),
  "tim": _probe(tim.alternating, tim.SETTINGS, transductive=True),
  "tim_gd": _probe(tim.descent, tim.SETTINGS_GD, transductive=True),
  "laplacian_shot": _probe(laplacian_shot.probe, laplacian_shot.SETTINGS, transductive=True),
}


def make_method(
  name: str,
  *,
  ways: int,
  domain: str = "",
  seen: bool = False,
  one_shot: bool = False,
  shots: int = 5,
  model: ResNet18 | None = None,
  **overrides: float | str | tuple[str, ...] | None,
) -> HeadMethod | ProbeMethod:
  """A method with the published settings of a data set, some of them replaced.

  Args:
    name: of `METHODS`.
    ways: `C`, the most classes of a task.
    domain: name of the data set; CoPA has settings of its own for a few.
    seen: whether the backbone was trained on it, see `seen_domains`; URL then learns ten times
      slower, with and without adapters.
    one_shot: whether tasks are 5-way 1-shot, where CoPA + TSA learns ten times slower.
    shots: images of a class, in the mean; some train longer on more.
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
  settings = definition.settings(Domain(domain, seen, one_shot, shots))
  settings = settings._replace(**{k: v for k, v in overrides.items() if v is not None})
  model = model if definition.needs == "image" else None
  return _make(definition.make, settings, ways, model, jnp.result_type(float))


@functools.lru_cache(maxsize=32)  # what is compiled for a method is shared by those that are alike
def _make(make, settings, ways, model, dtype):
  del dtype  # of what a method computes in, and of arrays that it may hold
  return make(settings, ways, model)


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
