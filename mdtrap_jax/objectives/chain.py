"""The whole objective of an episode: named terms, one pull-back, one optimizer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from mdtrap_jax.objectives.loss_scaling import scale_loss
from mdtrap_jax.objectives.pull_back import pull_back
from mdtrap_jax.objectives.term import Context, TermState
from mdtrap_jax.objectives.terms import TERMS

OPTIMIZERS = ("adamw", "sgd")


class Phase(NamedTuple):
  """Steps `start … stop-1` that run as one compiled program."""

  start: int
  stop: int
  clean: bool  # whether the clean pass runs


def mark(fifths: int, steps: int) -> int:
  """The step at which so many fifths of `T = steps` are done: `S = T // 5` each, the last `T`."""
  return steps if fifths == 5 else fifths * (steps // 5)


def evaluation_marks(steps: int, fifths: Sequence[int] = (1, 2, 3, 4, 5)) -> tuple[int, ...]:
  """The steps after which accuracy is logged: `S, 2S, 3S, 4S, T`, or some of them.

  Args:
    steps: `T`.
    fifths: which of the five.

  Raises:
    ValueError: fewer than five steps.
  """
  if steps < 5:
    raise ValueError(f"steps={steps}: an episode needs at least 5 fine-tuning steps.")
  return tuple(mark(fifth, steps) for fifth in fifths)


def enabled_terms(config: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
  """The terms with a weight other than zero, in the order of `TERMS`.

  Args:
    config: `{term: {"weight": …, "window": (first fifth, last fifth), …}}`.

  Raises:
    ValueError: an unknown term, or a window that is not within `(0, 5)`.
  """
  for name, options in config.items():
    if name not in TERMS:
      raise ValueError(
        f"objective.{name}: no such term; choose from {sorted(TERMS)}, or "
        "make yours known by mdtrap_jax.register_term."
      )
    window = tuple(options["window"])
    if (
      len(window) != 2
      or not 0 <= window[0] < window[1] <= 5
      or any(not isinstance(fifth, int) for fifth in window)
    ):
      raise ValueError(
        f"objective.{name}.window={window}: give the first and last fifth of "
        "the steps, for example (0, 3)."
      )
  return {
    name: dict(config[name]) for name in TERMS if name in config and config[name]["weight"] != 0
  }


def make_phases(config: Mapping[str, Mapping[str, Any]], steps: int) -> tuple[Phase, ...]:
  """Splits `0 … T-1` where the clean pass starts or stops being needed."""
  windows = [terms["window"] for name, terms in enabled_terms(config).items() if TERMS[name].clean]
  spans = [(mark(start, steps), mark(stop, steps)) for start, stop in windows]
  cuts = sorted({0, steps, *(edge for span in spans for edge in span)})
  return tuple(
    Phase(start, stop, any(a <= start < b for a, b in spans))
    for start, stop in zip(cuts, cuts[1:], strict=False)
  )


def needs_patches(config: Mapping[str, Mapping[str, Any]]) -> bool:
  """Whether any term that is on asks for patch tokens."""
  return any(TERMS[name].patches for name in enabled_terms(config))


def make_terms(
  config: Mapping[str, Mapping[str, Any]],
  *,
  steps: int,
  logit_scale: float,
  num_views: int,
  num_clean: int,
  batch_size: int | None = None,
  width: int = 0,
) -> dict[str, optax.GradientTransformationExtraArgs]:
  """The enabled terms by name, each a transform that adds its own cotangent.

  Args:
    config: `{term: {"weight": …, "window": …, **options of the term's factory}}`.
    steps: `T`.
    logit_scale: `s`.
    num_views: `N`.
    num_clean: `M`.
    batch_size: views per step, or `None` for all of them.
    width: `D`, where steps see minibatches of a large support (`methods.all_way`); terms that
      need all views then have another form, or are refused.

  Raises:
    ValueError: no term is on, or a term that needs all views is on beside a batch size.
  """
  enabled = enabled_terms(config)
  if not enabled:
    raise ValueError("every term of the objective has weight 0: nothing would be learned.")
  make = {name: (width and TERMS[name].minibatch) or TERMS[name].make for name in enabled}
  whole = [n for n in enabled if TERMS[n].all_views and make[n] is TERMS[n].make]
  if batch_size is not None and whole:
    raise ValueError(
      f"adapt.batch_size={batch_size}: {', '.join(whole)} compares all views "
      "in every step; set adapt.batch_size=0 or switch the term off."
    )
  terms = {}
  for name, options in enabled.items():
    first, last = options.pop("window")
    context = Context(
      logit_scale=logit_scale,
      num_views=num_views,
      num_clean=num_clean,
      start=mark(first, steps),
      stop=mark(last, steps),
      fade=int((last - first) / 5 * steps),
      width=width,
    )
    terms[name] = make[name](context, **options)
  return terms


def make_objective(
  config: Mapping[str, Mapping[str, Any]],
  optimizer: optax.GradientTransformation,
  *,
  loss_scaling: bool = False,
  **sizes: Any,
) -> optax.GradientTransformationExtraArgs:
  """Chains the enabled terms, the pull-back and the optimizer under their names.

  Args:
    config: of the terms, see `make_terms`.
    optimizer: applied to the parameters' gradient.
    loss_scaling: whether cotangents are scaled on their way back, for an encoder in float16.
    **sizes: the other arguments of `make_terms`.

  Returns:
    A transform from zero cotangents to parameter updates. `update` takes the keyword
    arguments `features`, `batch`, `key`, `step` and `features_vjp`; its state is addressed by
    term: `state["svl"].value`.

  Raises:
    ValueError: what `make_terms` raises.
  """
  terms = make_terms(config, **sizes)
  behind = (("encoder", pull_back()), ("optimizer", optimizer))
  if loss_scaling:
    behind = (("scaled", scale_loss(optax.named_chain(*behind))),)
  return optax.named_chain(*terms.items(), *behind)


def make_optimizer(
  learning_rate: float,
  steps: int,
  *,
  name: str = "adamw",
  weight_decay: float = 1e-2,
  floor: float = 1e-6,
  periods: float = 8.0,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  momentum: float = 0.9,
  warmup_steps: int = 0,
  warmup_rate: float = 1e-5,
) -> optax.GradientTransformation:
  """AdamW or SGD with a cosine schedule, whose half wave lasts `periods · T` steps.

  `lr_t = floor + (lr - floor) (1 + cos(π t / (periods · T))) / 2`; with the CVPR 2026 reference's 8
  periods it hardly moves. Before it come `warmup_steps` at `warmup_rate`. SGD adds the decay to
  the gradient and keeps a sum of past ones, `m_t = momentum · m_{t-1} + g_t`, as PyTorch's does.
  """
  schedule = optax.cosine_decay_schedule(
    learning_rate, int(periods * steps), alpha=floor / learning_rate
  )
  if warmup_steps:
    constant = optax.constant_schedule(warmup_rate)
    schedule = optax.join_schedules([constant, schedule], [warmup_steps])
  if name == "sgd":
    decay = optax.add_decayed_weights(weight_decay)
    return optax.chain(decay, optax.sgd(schedule, momentum=momentum))
  return optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)


def with_weights(state: Mapping[str, Any], weights: Mapping[str, Any]) -> dict[str, Any]:
  """A chain's state with other term weights, `{term: []}`; the program stays the same."""
  changed = {
    name: state[name]._replace(weight=jnp.asarray(weight, state[name].weight.dtype))
    for name, weight in weights.items()
  }
  return OrderedDict(state) | changed  # `named_chain` keeps its stages in this type


def term_states(opt_state: Mapping[str, Any]) -> dict[str, TermState]:
  """The states of the terms in a chain's state, by name."""
  return {name: state for name, state in opt_state.items() if isinstance(state, TermState)}
