"""The published sizes of SigLIP and SigLIP 2 (fixed resolution)."""

from __future__ import annotations

from mdtrap_jax.models.families.specification import Specification
from mdtrap_jax.models.image_stem import ImageConfig
from mdtrap_jax.models.text_stem import TextConfig

_SIZES = {  # width, depth, heads, MLP width
  "base": (768, 12, 12, 3072),
  "large": (1024, 24, 16, 4096),
  "so400m": (1152, 27, 16, 4304),
  "giant-opt": (1536, 40, 16, 6144),
}


def image_config(
  image_size: int,
  patch_size: int,
  width: int,
  depth: int,
  heads: int,
  mlp_width: int,
  activation: str = "gelu_tanh",
  epsilon: float = 1e-6,
) -> ImageConfig:
  """An image encoder of the family."""
  return ImageConfig(
    image_size=image_size,
    patch_size=patch_size,
    width=width,
    depth=depth,
    heads=heads,
    mlp_width=mlp_width,
    embed_dim=width,
    activation=activation,
    epsilon=epsilon,
    patch_bias=True,
    class_token=False,
    pre_norm=False,
    pool="attention",
    pool_heads=heads,
    pool_mlp_width=mlp_width,
    projection=False,
  )


def text_config(
  context_length: int,
  vocabulary_size: int,
  width: int,
  depth: int,
  heads: int,
  mlp_width: int,
  embed_dim: int,
  activation: str = "gelu_tanh",
  epsilon: float = 1e-6,
) -> TextConfig:
  """A text encoder of the family."""
  return TextConfig(
    context_length=context_length,
    vocabulary_size=vocabulary_size,
    width=width,
    depth=depth,
    heads=heads,
    mlp_width=mlp_width,
    embed_dim=embed_dim,
    activation=activation,
    epsilon=epsilon,
    causal=False,
    pool="last",
    projection_bias=True,
  )


def _entry(
  family: str,
  size: str,
  patch_size: int,
  image_size: int,
  total: int | None,
  vocabulary_size: int,
  context_length: int = 64,
  suffix: str = "",
) -> Specification:
  hub = f"google/{family}-{size}-patch{patch_size}-{image_size}{suffix}"
  # The giant image encoder has the text encoder of so400m beside it.
  beside = _SIZES["so400m" if size == "giant-opt" else size]
  return Specification(
    family,
    image_config(image_size, patch_size, *_SIZES[size]),
    text_config(context_length, vocabulary_size, *beside, embed_dim=_SIZES[size][0]),
    hub,
    published_total=total,
  )


def _siglip(*args, vocabulary_size: int = 32_000, **kwargs) -> Specification:
  return _entry("siglip", *args, vocabulary_size=vocabulary_size, **kwargs)


def _siglip2(*args) -> Specification:
  return _entry("siglip2", *args, vocabulary_size=256_000)


# The last number is the count of parameters that the published checkpoint holds, as KerasHub's
# presets list it (they add the position ids). For siglip2-b16-384 that list repeats the count of
# siglip2-b32-256, so its number here is derived, from the counts at 256 and 512 pixels.
SIGLIP_MODELS = {
  "siglip-b16-224": _siglip("base", 16, 224, 203_155_970),
  "siglip-b16-256": _siglip("base", 16, 256, 203_202_050),
  "siglip-b16-384": _siglip("base", 16, 384, 203_447_810),
  "siglip-b16-512": _siglip("base", 16, 512, 203_791_874),
  "siglip-b16-256-i18n": _siglip(
    "base", 16, 256, 370_626_050, vocabulary_size=250_000, suffix="-multilingual"
  ),
  "siglip-l16-256": _siglip("large", 16, 256, 652_150_786),
  "siglip-l16-384": _siglip("large", 16, 384, 652_478_466),
  "siglip-so400m14-224": _siglip("so400m", 14, 224, 877_360_306, context_length=16),
  "siglip-so400m14-384": _siglip("so400m", 14, 384, 877_960_498),
  "siglip-so400m16-256-i18n": _siglip(
    "so400m", 16, 256, 1_128_758_962, vocabulary_size=250_000, suffix="-i18n"
  ),
  "siglip2-b32-256": _siglip2("base", 32, 256, 376_856_066),
  "siglip2-b16-224": _siglip2("base", 16, 224, 375_187_970),
  "siglip2-b16-256": _siglip2("base", 16, 256, 375_234_050),
  "siglip2-b16-384": _siglip2("base", 16, 384, 375_479_810),
  "siglip2-b16-512": _siglip2("base", 16, 512, 375_823_874),
  "siglip2-l16-256": _siglip2("large", 16, 256, 881_526_786),
  "siglip2-l16-384": _siglip2("large", 16, 384, 881_854_466),
  "siglip2-l16-512": _siglip2("large", 16, 512, 882_313_218),
  "siglip2-so400m14-224": _siglip2("so400m", 14, 224, 1_135_463_602),
  "siglip2-so400m14-384": _siglip2("so400m", 14, 384, 1_136_008_498),
  "siglip2-so400m16-256": _siglip2("so400m", 16, 256, 1_135_670_962),
  "siglip2-so400m16-384": _siglip2("so400m", 16, 384, 1_136_039_602),
  "siglip2-so400m16-512": _siglip2("so400m", 16, 512, 1_136_555_698),
  "siglip2-g16-256": _siglip2("giant-opt", 16, 256, 1_871_393_906),
  "siglip2-g16-384": _siglip2("giant-opt", 16, 384, 1_871_885_426),
}
