"""Replays a recording of the CVPR 2026 reference through the library's own chain and step."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mdtrap_jax.checkpoints import from_openai
from mdtrap_jax.methods.finetune import FineTuning
from mdtrap_jax.methods.tuning.lora import Lora
from mdtrap_jax.models.lora import LoraConfig, LoraFactors
from mdtrap_jax.objectives import chain
from tests.replay.check import Check

TOLERANCE = 1e-8
LOGIT_SCALE = 100.0  # the reference's constant; its checkpoint's own value plays no part
HEADS = 2
PREFIXES = {"image": "visual.transformer", "text": "transformer"}


def replay(path: Path) -> list[Check]:
  """Compares every recorded number of a `mind_*` file; needs `jax_enable_x64`."""
  recorded = dict(np.load(path))
  adaptation, params, phases = _adaptation(recorded)
  views, query = _images(
    recorded["images_8x8"], int(recorded["cfg/shot"]), adaptation.model.image.image_size
  )
  ways, shots = recorded["images_8x8"].shape[1], int(recorded["cfg/shot"])
  token_ids = jnp.asarray(recorded["token_ids"])
  text = jax.jit(adaptation.model.encode_text)(params, token_ids)
  prepared, _ = jax.jit(adaptation.prepare_images)(
    params,
    views,
    query,
    key=jax.random.key(0),
    labels=jnp.repeat(jnp.arange(ways), shots),
    query_labels=jnp.repeat(jnp.arange(ways), query.shape[0] // ways),
    token_ids=token_ids,
    text=text,
  )
  evaluate = jax.jit(adaptation.evaluate)
  logits = jax.jit(functools.partial(_logits, adaptation))
  state = adaptation.init(_factors(recorded, "lora_init", adaptation.parameterization.encoders))

  steps = phases[-1].stop
  losses = {name: np.full(steps, np.nan) for name in ("vlm", "svl", "ra")}
  terms = chain.term_states(state.opt_state)  # an ablation may have left some out
  relations, targets, accuracies, checks = [], [], [], []
  for phase in phases:
    run = jax.jit(functools.partial(adaptation.run, clean=phase.clean))
    for t in range(phase.start, phase.stop):
      if t == 0:
        checks.append(_logits_check(logits(params, prepared, state), recorded, "step0"))
      if t == steps - 1:
        checks.append(_logits_check(logits(params, prepared, state), recorded, "last"))
      state = run(params, prepared, state, t, t + 1)
      for name in terms:
        term = state.opt_state[name]
        losses[name][t] = term.value if term.norm > 0 else np.nan
      if phase.clean and t > phase.start:
        relations.append(np.asarray(state.opt_state["ra"].memory.relation))
        targets.append(np.asarray(state.opt_state["ra"].memory.target))
      if t == 0:
        checks.append(_factor_check(state.params, recorded, "lora_step1"))
      if t + 1 in chain.evaluation_marks(steps):
        accuracies.append(evaluate(params, prepared, state))

  for ours, theirs in (("vlm", "loss_vlm"), ("svl", "loss_ad"), ("ra", "loss_ra")):
    checks.append(_loss_check(theirs, losses[ours], recorded[theirs]))
  if relations:
    checks += [
      Check("ra_relation", _absolute(np.stack(relations), recorded["ra_relation"]), TOLERANCE),
      Check("ra_target", _absolute(np.stack(targets), recorded["ra_target"]), TOLERANCE),
    ]
  checks += [
    _factor_check(state.params, recorded, "lora_final"),
    Check(
      "query_cosine_final",
      _absolute(accuracies[-1].cosines, recorded["query_cosine_final"]),
      TOLERANCE,
    ),
    Check(
      "query_accuracy (percent)",
      _absolute([100 * a.accuracy for a in accuracies], recorded["query_accuracy"]),
      1e-4,
    ),
  ]
  return checks


def _adaptation(recorded):
  """The library's adaptation with the recording's settings and random draws."""
  weights = {
    name.removeprefix("model/"): value
    for name, value in recorded.items()
    if name.startswith("model/")
  }
  ids, rows = recorded["token_embedding/used_ids"], recorded["token_embedding/rows"]
  table = np.zeros((max(int(recorded["token_ids"].max()) + 1, 49408), rows.shape[1]))
  table[ids] = rows
  weights["token_embedding.weight"] = table
  model, params = from_openai(weights, dtype=jnp.float64, image_heads=HEADS, text_heads=HEADS)

  shots = int(recorded["cfg/shot"])
  steps = int(recorded["cfg/epochs"]) * shots
  lora = LoraConfig(
    rank=int(recorded["cfg/r"]),
    alpha=float(recorded["cfg/alpha"]),
    dropout=0.0,
    encoder=str(recorded["cfg/encoder"]),
  )
  config = {
    "vlm": {"weight": 1.0, "window": (0, 5)},
    "svl": {"weight": float(recorded["cfg/beta"]), "window": (0, 3)},
    "ra": {"weight": float(recorded["cfg/gamma"]), "window": (0, 3)},
  }
  views, ways = recorded["images_8x8"].shape[:2]
  draws = jnp.asarray(recorded["random_prototype_index"])
  # The one thing replaced: which features SVL draws.
  config["svl"]["draw"] = lambda key, step, num_views, ways: draws[step]
  tx = chain.make_objective(
    config,
    chain.make_optimizer(float(recorded["cfg/lr"]), steps),
    steps=steps,
    logit_scale=LOGIT_SCALE,
    num_views=views * ways * shots,
    num_clean=ways * shots,
  )
  phases = chain.make_phases(config, steps)
  method = FineTuning(model, Lora(lora), tx, steps=steps, phases=phases, views=views)
  return method, params, phases


def _images(small, shots, size):
  """Support views `[V, C·K, S, S, 3]` and clean queries `[C·Q, S, S, 3]` from 8×8 pixels."""
  large = small.repeat(size // small.shape[-1], -1).repeat(size // small.shape[-1], -2)
  large = np.moveaxis(large, 3, -1).astype(np.float64)
  views = large[:, :, :shots].reshape(large.shape[0], -1, *large.shape[3:])
  query = large[0, :, shots:].reshape(-1, *large.shape[3:])
  return jnp.asarray(views), jnp.asarray(query)


def _factors(recorded, stage, encoders):
  """The recorded factors as our stacked `LoraFactors`."""
  factors = {}
  for encoder in encoders:
    prefix = f"{stage}/{PREFIXES[encoder]}.resblocks."
    depth = 1 + max(
      int(name.removeprefix(prefix).split(".")[0]) for name in recorded if name.startswith(prefix)
    )
    a, b = (
      jnp.asarray(
        np.stack(
          [
            np.stack([recorded[f"{prefix}{i}.attn.{p}_proj.w_lora_{letter}"].T for p in "qkv"])
            for i in range(depth)
          ]
        )
      )
      for letter in "AB"
    )
    factors[encoder] = LoraFactors(a, b)
  return factors


def _factor_check(factors, recorded, stage):
  """Distance between the factors, relative to the norm of the recorded ones."""
  theirs = jax.tree.leaves(_factors(recorded, stage, tuple(factors)))
  pairs = zip(jax.tree.leaves(factors), theirs, strict=True)
  errors = [float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)) for a, b in pairs]
  return Check(stage, max(errors), TOLERANCE)


def _logits(adaptation, params, prepared, state):
  """Of all views."""
  text = prepared.text
  if "text" in state.params:
    text = adaptation.texts(params, prepared.token_ids, state.params)
  return LOGIT_SCALE * adaptation.cosines(params, prepared.tokens, state.params, text)


def _logits_check(logits, recorded, when):
  """Before a step, relative to the largest."""
  name = f"vlm_logits_{when}"
  return Check(name, _absolute(logits, recorded[name]) / np.abs(recorded[name]).max(), TOLERANCE)


def _loss_check(name, ours, theirs):
  """Largest relative error; a term that is on where it should be off is an infinite one."""
  if not np.array_equal(np.isnan(ours), np.isnan(theirs)):
    return Check(name, np.inf, TOLERANCE)
  on = ~np.isnan(theirs)
  return Check(
    name, float(np.max(np.abs(ours - theirs)[on] / np.abs(theirs[on]), initial=0.0)), TOLERANCE
  )


def _absolute(ours, theirs):
  ours, theirs = np.asarray(ours), np.asarray(theirs)
  if ours.shape != theirs.shape:
    return np.inf
  return float(np.abs(ours - theirs).max())
