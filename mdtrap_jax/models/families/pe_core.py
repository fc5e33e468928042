"""The published sizes of Meta's Perception Encoder, PE-Core."""

from __future__ import annotations

from mdtrap_jax.models.families.specification import Specification
from mdtrap_jax.models.image_stem import ImageConfig
from mdtrap_jax.models.text_stem import TextConfig

POOL_HEADS = 8  # of every size


def _image(
  image_size: int,
  patch_size: int,
  width: int,
  depth: int,
  heads: int,
  mlp_width: int,
  embed_dim: int,
  class_token: bool = True,
) -> ImageConfig:
  return ImageConfig(
    image_size=image_size,
    patch_size=patch_size,
    width=width,
    depth=depth,
    heads=heads,
    mlp_width=mlp_width,
    embed_dim=embed_dim,
    activation="gelu",
    class_token=class_token,
    pool="attention",
    pool_heads=POOL_HEADS,
    pool_mlp_width=4 * width,
    rope=True,
  )


def _text(context_length: int, width: int, depth: int, heads: int) -> TextConfig:
  return TextConfig(
    context_length=context_length,
    width=width,
    depth=depth,
    heads=heads,
    mlp_width=4 * width,
    embed_dim=width,
    activation="gelu",
  )


_SMALL_TEXT, _LARGE_TEXT = _text(32, 512, 12, 8), _text(32, 1024, 24, 16)


def _entry(image: ImageConfig, text: TextConfig, hub: str) -> Specification:
  return Specification("pe-core", image, text, f"timm/{hub}")


# Meta publishes parameters of B, L and G in units of 10 million, without the text encoder's
# token table, and none of T and S; those follow from timm's and open_clip's configurations.
PE_CORE_MODELS = {
  "pe-core-t16-384": _entry(_image(384, 16, 192, 12, 3, 768, 512), _SMALL_TEXT, "PE-Core-T-16-384"),
  "pe-core-s16-384": _entry(
    _image(384, 16, 384, 12, 6, 1536, 512), _SMALL_TEXT, "PE-Core-S-16-384"
  ),
  "pe-core-b16-224": _entry(_image(224, 16, 768, 12, 12, 3072, 1024), _LARGE_TEXT, "PE-Core-B-16"),
  "pe-core-l14-336": _entry(
    _image(336, 14, 1024, 24, 16, 4096, 1024), _LARGE_TEXT, "PE-Core-L-14-336"
  ),
  "pe-core-g14-448": _entry(
    _image(448, 14, 1536, 50, 16, 8960, 1280, class_token=False),
    _text(72, 1280, 24, 20),
    "PE-Core-bigG-14-448",
  ),
}
