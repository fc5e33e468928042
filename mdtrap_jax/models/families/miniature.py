"""The miniature: CLIP's architecture at 48×48 pixels, pretrained on the generated world."""

from __future__ import annotations

from pathlib import Path

from mdtrap_jax.models.families.specification import Specification
from mdtrap_jax.models.image_stem import ImageConfig
from mdtrap_jax.models.text_stem import TextConfig
from mdtrap_jax.models.word_tokenizer import WordTokenizer

IMAGE_SIZE = 48  # pixels of a side, of the generated world too
CONTEXT_LENGTH = 16  # tokens of a text
# The words of the world's captions; an id is a word's index. <end> has the largest, since the
# text encoder pools where the id is largest.
VOCABULARY = (
  "<pad>", "<start>", "<unk>",
  "a", "photo", "of", "picture", "object", "digit", "on", "background", "small", "large",
  "plain", "striped", "dotted", "checkered", "speckled", "zigzag",
  "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "gray", "black",
  "circle", "square", "triangle", "star", "cross", "heart", "ring", "crescent", "hexagon",
  "diamond", "arrow", "drop", "flower", "lightning", "house", "leaf",
  "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
  "wooden", "grassy", "sandy", "brick", "watery", "cloudy", "tiled",
  "<end>",
)  # fmt: skip
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
    ImageConfig(image_size=IMAGE_SIZE, patch_size=patch_size, depth=image_depth, **blocks),
    TextConfig(
      context_length=CONTEXT_LENGTH, vocabulary_size=len(VOCABULARY), depth=text_depth, **blocks
    ),
  )


def tokenizer() -> WordTokenizer:
  """The world's words; any other word is `<unk>`."""
  return WordTokenizer(VOCABULARY, CONTEXT_LENGTH)


MINIATURE_MODELS = {"miniature": specification()}
