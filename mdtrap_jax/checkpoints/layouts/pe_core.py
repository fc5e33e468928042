"""PE-Core's published layouts: Meta's, and the one of timm and open_clip."""

from __future__ import annotations

from mdtrap_jax.checkpoints.layouts.clip import OPENAI_IMAGE, describe_packed_text, packed_text
from mdtrap_jax.checkpoints.layouts.layout import Checkpoint, Description, Layout, count_blocks
from mdtrap_jax.checkpoints.rules import TORCH, Module
from mdtrap_jax.models.families.pe_core import PE_CORE_MODELS, POOL_HEADS
from mdtrap_jax.models.image_stem import ImageConfig

_POOL = "image/stem/attention_pool"

META = (
  *OPENAI_IMAGE,
  Module("leading", "visual.attn_pool.probe", f"{_POOL}/probe"),
  Module("packed pool", "visual.attn_pool.attn.in_proj", f"{_POOL}/qkv"),
  Module("dense", "visual.attn_pool.attn.out_proj", f"{_POOL}/out"),
  Module("norm", "visual.attn_pool.layernorm", f"{_POOL}/norm"),
  Module("dense", "visual.attn_pool.mlp.c_fc", f"{_POOL}/mlp/fc1"),
  Module("dense", "visual.attn_pool.mlp.c_proj", f"{_POOL}/mlp/fc2"),
  *packed_text(""),
)
TIMM = (
  Module("convolution", "visual.trunk.patch_embed.proj", "image/stem/patch"),
  Module("leading2", "visual.trunk.cls_token", "image/stem/class_token"),
  Module("leading", "visual.trunk.pos_embed", "image/stem/position"),
  Module("norm", "visual.trunk.norm_pre", "image/stem/pre_norm"),
  Module("norm", "visual.trunk.blocks.{}.norm1", "image/blocks/norm1"),
  Module("packed dense", "visual.trunk.blocks.{}.attn.qkv", "image/blocks/attention/qkv"),
  Module("dense", "visual.trunk.blocks.{}.attn.proj", "image/blocks/attention/out"),
  Module("norm", "visual.trunk.blocks.{}.norm2", "image/blocks/norm2"),
  Module("dense", "visual.trunk.blocks.{}.mlp.fc1", "image/blocks/mlp/fc1"),
  Module("dense", "visual.trunk.blocks.{}.mlp.fc2", "image/blocks/mlp/fc2"),
  Module("norm", "visual.trunk.norm", "image/stem/post_norm"),
  Module("leading", "visual.trunk.attn_pool.latent", f"{_POOL}/probe"),
  Module("dense pool", "visual.trunk.attn_pool.q", f"{_POOL}/qkv", 0),
  Module("packed pool dense", "visual.trunk.attn_pool.kv", f"{_POOL}/qkv", (1, 3)),
  Module("dense", "visual.trunk.attn_pool.proj", f"{_POOL}/out"),
  Module("norm", "visual.trunk.attn_pool.norm", f"{_POOL}/norm"),
  Module("dense", "visual.trunk.attn_pool.mlp.fc1", f"{_POOL}/mlp/fc1"),
  Module("dense", "visual.trunk.attn_pool.mlp.fc2", f"{_POOL}/mlp/fc2"),
  Module("dense", "visual.trunk.head", "image/stem/projection"),
  *packed_text("text."),
)


def describe_meta(checkpoint: Checkpoint) -> Description:
  """The model of Meta's names, from the shapes of its arrays and the published sizes."""
  shape = checkpoint.shape
  width, _, patch, _ = shape("visual.conv1.weight")
  image = _image_config(
    checkpoint,
    width,
    patch,
    shape("visual.positional_embedding")[0],
    "visual.class_embedding" in checkpoint.arrays,
    "visual.transformer.resblocks.{}.",
    shape("visual.transformer.resblocks.0.mlp.c_fc.bias")[0],
    shape("visual.attn_pool.mlp.c_fc.bias")[0],
    shape("visual.proj")[1],
    False,
  )
  return Description("pe-core", image, describe_packed_text(checkpoint, "", "gelu"))


def describe_timm(checkpoint: Checkpoint) -> Description:
  """The model of timm's names, likewise."""
  shape = checkpoint.shape
  width, _, patch, _ = shape("visual.trunk.patch_embed.proj.weight")
  image = _image_config(
    checkpoint,
    width,
    patch,
    shape("visual.trunk.pos_embed")[1],
    "visual.trunk.cls_token" in checkpoint.arrays,
    "visual.trunk.blocks.{}.",
    shape("visual.trunk.blocks.0.mlp.fc1.bias")[0],
    shape("visual.trunk.attn_pool.mlp.fc1.bias")[0],
    shape("visual.trunk.head.weight")[0],
    "visual.trunk.head.bias" in checkpoint.arrays,
  )
  return Description("pe-core", image, describe_packed_text(checkpoint, "text.", "gelu"))


def _image_config(
  checkpoint: Checkpoint,
  width: int,
  patch: int,
  tokens: int,
  class_token: bool,
  blocks: str,
  mlp_width: int,
  pool_mlp_width: int,
  embed_dim: int,
  projection_bias: bool,
) -> ImageConfig:
  published = (m.image.heads for m in PE_CORE_MODELS.values() if m.image.width == width)
  heads = checkpoint.choices.image_heads or next(published, max(width // 64, 1))
  return ImageConfig(
    image_size=round((tokens - class_token) ** 0.5) * patch,
    patch_size=patch,
    width=width,
    depth=count_blocks(checkpoint.arrays, blocks),
    heads=heads,
    mlp_width=mlp_width,
    embed_dim=embed_dim,
    activation="gelu",
    class_token=class_token,
    pool="attention",
    pool_heads=checkpoint.choices.pool_heads or POOL_HEADS,
    pool_mlp_width=pool_mlp_width,
    projection_bias=projection_bias,
    rope=True,
  )


LAYOUTS = (
  Layout("pe-core-meta", META, TORCH, describe_meta, ("attn_mask",), "bilinear"),
  # timm itself would resample with its own filter; Meta's is taken for both.
  Layout("pe-core-timm", TIMM, TORCH, describe_timm, (r"text\.attn_mask",), "bilinear"),
)
