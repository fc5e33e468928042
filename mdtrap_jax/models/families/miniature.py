"""The miniature: CLIP's architecture at 48×48 pixels, pretrained on the generated world."""

from __future__ import annotations

from pathlib import Path

from mdtrap_jax.models.families.specification import Specification
from mdtrap_jax.models.image_stem import ImageConfig
from mdtrap_jax.models.text_stem import TextConfig
from mdtrap_jax.models.word_tokenizer import WordTokenizer
from mdtrap_jax.world.captions import CONTEXT_LENGTH, VOCABULARY
from mdtrap_jax.world.render import SIZE

# The packaged weights, which `checkpoints.load("miniature")` reads.
WEIGHTS = Path(__file__).parents[2] / "weights" / "miniature"


def specification(
  *,
  width: int = 128,
  image_depth: int = 4,
  text_depth: int = 3,
  heads: int = 4,
  mlp_width: int = 512,
  embed_dim: int = 128,
  patch_size: int = 8,
  activation: str = "quick_gelu",
) -> Specification:
  """A size of the miniature; the defaults are those of the packaged weights.

  Both encoders share their widths. With patches of 8 pixels an image is 37 tokens.
  """
  blocks = dict(
    width=width, heads=heads, mlp_width=mlp_width, embed_dim=embed_dim, activation=activation
  )
  return Specification(
    "clip",
    ImageConfig(image_size=SIZE, patch_size=patch_size, depth=image_depth, **blocks),
    TextConfig(
      context_length=CONTEXT_LENGTH, vocabulary_size=len(VOCABULARY), depth=text_depth, **blocks
    ),
  )


def tokenizer() -> WordTokenizer:
  """The world's words; any other word is `<unk>`."""
  return WordTokenizer(VOCABULARY, CONTEXT_LENGTH)


MINIATURE_MODELS = {"miniature": specification()}
