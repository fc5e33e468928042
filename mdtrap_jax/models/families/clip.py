"""The published sizes of CLIP."""

from __future__ import annotations

from mdtrap_jax.models.families.specification import Specification
from mdtrap_jax.models.image_stem import ImageConfig
from mdtrap_jax.models.text_stem import TextConfig

_TEXT_B = TextConfig()
_TEXT_L = TextConfig(width=768, heads=12, mlp_width=3072, embed_dim=768)
_LARGE = dict(width=1024, depth=24, heads=16, mlp_width=4096, embed_dim=768, patch_size=14)


def _openai(image: ImageConfig, text: TextConfig, hub: str, counts: tuple[int, int]):
  return Specification("clip", image, text, f"openai/{hub}", counts)


CLIP_MODELS = {
  "clip-vit-b32": _openai(
    ImageConfig(patch_size=32), _TEXT_B, "clip-vit-base-patch32", (87_849_216, 63_428_096)
  ),
  "clip-vit-b16": _openai(
    ImageConfig(), _TEXT_B, "clip-vit-base-patch16", (86_192_640, 63_428_096)
  ),
  "clip-vit-l14": _openai(
    ImageConfig(**_LARGE), _TEXT_L, "clip-vit-large-patch14", (303_966_208, 123_650_304)
  ),
  "clip-vit-l14-336": _openai(
    ImageConfig(**_LARGE, image_size=336),
    _TEXT_L,
    "clip-vit-large-patch14-336",
    (304_293_888, 123_650_304),
  ),
  # For tests and smoke runs: random weights only, nothing published.
  "clip-tiny": Specification(
    "clip",
    ImageConfig(image_size=64, width=64, depth=2, heads=2, mlp_width=128, embed_dim=32),
    TextConfig(vocabulary_size=512, width=64, depth=2, heads=2, mlp_width=128, embed_dim=32),
  ),
}
