"""Published weights into our models, and our weights into a published layout."""

from mdtrap_jax.checkpoints.load import family_of, from_arrays, from_openai, load
from mdtrap_jax.checkpoints.save import save
from mdtrap_jax.checkpoints.source import fingerprint

__all__ = ["family_of", "fingerprint", "from_arrays", "from_openai", "load", "save"]
