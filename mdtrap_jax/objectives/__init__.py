"""The losses of both papers, as terms of an optax chain over feature cotangents."""

from mdtrap_jax.objectives.chain import make_objective, make_optimizer, make_phases
from mdtrap_jax.objectives.pull_back import pull_back, zero_cotangents
from mdtrap_jax.objectives.term import Batch, Context, Features, make_term
from mdtrap_jax.objectives.terms import TERMS, register

__all__ = [
  "TERMS",
  "Batch",
  "Context",
  "Features",
  "make_objective",
  "make_optimizer",
  "make_phases",
  "make_term",
  "pull_back",
  "register",
  "zero_cotangents",
]
