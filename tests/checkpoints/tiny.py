"""The smallest CLIP, made without compiling anything, and its tokenizer's files."""

import json

import numpy as np
from flax import traverse_util

from mdtrap_jax.checkpoints.convert import parameter_shapes
from mdtrap_jax.models import Specification, build
from mdtrap_jax.models.image_stem import ImageConfig
from mdtrap_jax.models.text_stem import TextConfig

_BLOCKS = dict(width=8, depth=2, heads=2, mlp_width=16, embed_dim=4)
MERGES = [("p", "h"), ("ph", "o"), ("pho", "t"), ("phot", "o</w>")]


def make_model(tokenize=None, **text):
  specification = Specification(
    "clip",
    ImageConfig(image_size=8, patch_size=4, **_BLOCKS),
    TextConfig(**{"context_length": 12, "vocabulary_size": 518, **_BLOCKS, **text}),
  )
  model = build(specification)
  if tokenize is not None:
    object.__setattr__(model, "tokenize", tokenize)
  return model


def make_params(model, seed=0):
  generator = np.random.default_rng(seed)
  flat = {
    path: generator.standard_normal(shape).astype(np.float32)
    for path, shape in parameter_shapes(model).items()
  }
  return traverse_util.unflatten_dict(flat, sep="/")


def byte_level_vocabulary(*special):
  from tokenizers.pre_tokenizers import ByteLevel

  letters = sorted(ByteLevel.alphabet())
  ends = [letter + "</w>" for letter in letters]
  tokens = [*letters, *ends, "ph", "pho", "phot", "photo</w>", *special]
  return {token: i for i, token in enumerate(tokens)}


def write_tokenizer(folder):
  """CLIP's two files; 518 tokens, the end token last."""
  vocabulary = byte_level_vocabulary("<|startoftext|>", "<|endoftext|>")
  (folder / "vocab.json").write_text(json.dumps(vocabulary))
  lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES)]
  (folder / "merges.txt").write_text("\n".join(lines) + "\n")


def make_siglip(tokenize=None):
  """The smallest SigLIP."""
  specification = Specification(
    "siglip",
    ImageConfig(
      image_size=8, patch_size=4, **{**_BLOCKS, "embed_dim": 8}, activation="gelu_tanh",
      epsilon=1e-6, patch_bias=True, class_token=False, pre_norm=False, pool="attention",
      pool_heads=2, pool_mlp_width=16, projection=False,
    ),
    TextConfig(
      context_length=12, vocabulary_size=40, **{**_BLOCKS, "embed_dim": 8}, activation="gelu_tanh",
      epsilon=1e-6, causal=False, pool="last", projection_bias=True,
    ),
  )  # fmt: skip
  model = build(specification)
  if tokenize is not None:
    object.__setattr__(model, "tokenize", tokenize)
  return model


def write_siglip_tokenizer(folder, words=("a", "photo", "of", "crow", "gull", "jay", "bird")):
  """Whole words and SigLIP's end token, in one file."""
  from tokenizers import Tokenizer, models, pre_tokenizers

  vocabulary = {word: i for i, word in enumerate(("<pad>", "</s>", "<unk>", *words))}
  tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
  tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  tokenizer.save(str(folder / "tokenizer.json"))
