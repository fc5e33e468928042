"""Published weights into our models, and our weights into a published layout."""

from mdtrap_jax.checkpoints.load import family_of, from_arrays, from_openai, load
from mdtrap_jax.checkpoints.save import save

__all__ = ["family_of", "from_arrays", "from_openai", "load", "save"]
