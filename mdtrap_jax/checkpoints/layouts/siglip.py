"""SigLIP's and SigLIP 2's published layouts: Hugging Face's and big_vision's."""

from __future__ import annotations

from mdtrap_jax.checkpoints.layouts.clip import hf_blocks
from mdtrap_jax.checkpoints.layouts.layout import (
  Checkpoint,
  Description,
  Layout,
  activation,
  count_blocks,
  merged_config,
)
from mdtrap_jax.checkpoints.rules import (
  FLAX,
  TORCH,
  Dialect,
  Module,
  same,
  split_first,
  split_last,
)
from mdtrap_jax.models.families.siglip import SIGLIP_MODELS, image_config, text_config
from mdtrap_jax.models.image_stem import ImageConfig
from mdtrap_jax.models.text_stem import TextConfig

_POOL = "image/stem/attention_pool"
_GEMMA_VOCABULARY = 256_000

HF = (
  Module("convolution", "vision_model.embeddings.patch_embedding", "image/stem/patch"),
  Module("table", "vision_model.embeddings.position_embedding", "image/stem/position"),
  *hf_blocks("vision_model.encoder.layers", "image/blocks"),
  Module("norm", "vision_model.post_layernorm", "image/stem/post_norm"),
  Module("leading", "vision_model.head.probe", f"{_POOL}/probe"),
  Module("packed pool", "vision_model.head.attention.in_proj", f"{_POOL}/qkv"),
  Module("dense", "vision_model.head.attention.out_proj", f"{_POOL}/out"),
  Module("norm", "vision_model.head.layernorm", f"{_POOL}/norm"),
  Module("dense", "vision_model.head.mlp.fc1", f"{_POOL}/mlp/fc1"),
  Module("dense", "vision_model.head.mlp.fc2", f"{_POOL}/mlp/fc2"),
  Module("table", "text_model.embeddings.token_embedding", "text/stem/token"),
  Module("table", "text_model.embeddings.position_embedding", "text/stem/position"),
  *hf_blocks("text_model.encoder.layers", "text/blocks"),
  Module("norm", "text_model.final_layer_norm", "text/stem/post_norm"),
  Module("dense", "text_model.head", "text/stem/projection"),
  Module("leading", "logit_scale", "logit_scale"),
  Module("leading", "logit_bias", "logit_bias"),
)
HF_VISION_DEFAULTS = {
  "hidden_size": 768,
  "intermediate_size": 3072,
  "num_hidden_layers": 12,
  "num_attention_heads": 12,
  "image_size": 224,
  "patch_size": 16,
  "hidden_act": "gelu_pytorch_tanh",
  "layer_norm_eps": 1e-6,
  "vision_use_head": True,
}
HF_TEXT_DEFAULTS = {
  "vocab_size": 32000,
  "hidden_size": 768,
  "intermediate_size": 3072,
  "num_hidden_layers": 12,
  "num_attention_heads": 12,
  "max_position_embeddings": 64,
  "hidden_act": "gelu_pytorch_tanh",
  "layer_norm_eps": 1e-6,
}


def _big_vision_blocks(name: str, path: str, encoder: str) -> tuple[Module, ...]:
  attention = f"{name}.MultiHeadDotProductAttention_0"
  return (
    Module("norm", f"{name}.LayerNorm_0", f"{path}/norm1"),
    *(
      Module(f"{encoder} in", f"{attention}.{part_name}", f"{path}/attention/qkv", part)
      for part, part_name in enumerate(("query", "key", "value"))
    ),
    Module(f"{encoder} out", f"{attention}.out", f"{path}/attention/out"),
    Module("norm", f"{name}.LayerNorm_1", f"{path}/norm2"),
    Module("dense", f"{name}.MlpBlock_0.Dense_0", f"{path}/mlp/fc1"),
    Module("dense", f"{name}.MlpBlock_0.Dense_1", f"{path}/mlp/fc2"),
  )


def _big_vision(block: str) -> tuple[Module, ...]:
  """The table; `block` is what follows a block's name, its number or nothing (scanned)."""
  head = "img.MAPHead_0"
  attention = f"{head}.MultiHeadDotProductAttention_0"
  return (
    Module("convolution", "img.embedding", "image/stem/patch"),
    Module("leading", "img.pos_embedding", "image/stem/position"),
    *_big_vision_blocks(f"img.Transformer.encoderblock{block}", "image/blocks", "image"),
    Module("norm", "img.Transformer.encoder_norm", "image/stem/post_norm"),
    Module("leading", f"{head}.probe", f"{_POOL}/probe"),
    *(
      Module("pool in", f"{attention}.{name}", f"{_POOL}/qkv", part)
      for part, name in enumerate(("query", "key", "value"))
    ),
    Module("image out", f"{attention}.out", f"{_POOL}/out"),
    Module("norm", f"{head}.LayerNorm_0", f"{_POOL}/norm"),
    Module("dense", f"{head}.MlpBlock_0.Dense_0", f"{_POOL}/mlp/fc1"),
    Module("dense", f"{head}.MlpBlock_0.Dense_1", f"{_POOL}/mlp/fc2"),
    Module("table", "txt.Embed_0", "text/stem/token"),
    Module("leading", "txt.pos_embedding", "text/stem/position"),
    *_big_vision_blocks(f"txt.Encoder_0.encoderblock{block}", "text/blocks", "text"),
    Module("norm", "txt.Encoder_0.encoder_norm", "text/stem/post_norm"),
    Module("dense", "txt.head", "text/stem/projection"),
    Module("leading", "t", "logit_scale"),
    Module("leading", "b", "logit_bias"),
  )


def _with_heads(description: Description) -> Dialect:
  """How big_vision arranges attention: a separate axis for the heads."""
  image, text = description.image.heads, description.text.heads
  return {
    "pool in": ((".kernel", "_kernel", split_last(image)), (".bias", "_bias", split_last(image))),
    **{
      f"{encoder} in": (
        (".kernel", "/kernel", split_last(heads)),
        (".bias", "/bias", split_last(heads)),
      )
      for encoder, heads in (("image", image), ("text", text))
    },
    **{
      f"{encoder} out": ((".kernel", "/kernel", split_first(heads)), (".bias", "/bias", same))
      for encoder, heads in (("image", image), ("text", text))
    },
  }


def describe_hf(checkpoint: Checkpoint) -> Description:
  """The model that a Hugging Face `config.json` describes.

  Raises:
    ValueError: a NaFlex checkpoint, or one without the pooling head.
  """
  if (checkpoint.config or {}).get("model_type") == "siglip2" or len(
    checkpoint.shape("vision_model.embeddings.patch_embedding.weight")
  ) == 2:
    raise _naflex(checkpoint)
  config = checkpoint.require_config("siglip")
  vision = merged_config(config, "vision_config", HF_VISION_DEFAULTS)
  words = merged_config(config, "text_config", HF_TEXT_DEFAULTS)
  if not vision["vision_use_head"]:
    raise ValueError(f"{checkpoint.source} has no pooling head, so no image embeddings.")
  image = image_config(
    vision["image_size"],
    vision["patch_size"],
    vision["hidden_size"],
    vision["num_hidden_layers"],
    vision["num_attention_heads"],
    vision["intermediate_size"],
    activation(vision["hidden_act"]),
    vision["layer_norm_eps"],
  )
  text = text_config(
    words["max_position_embeddings"],
    words["vocab_size"],
    words["hidden_size"],
    words["num_hidden_layers"],
    words["num_attention_heads"],
    words["intermediate_size"],
    words.get("projection_size") or words["hidden_size"],
    activation(words["hidden_act"]),
    words["layer_norm_eps"],
  )
  return _description(image, text)


def describe_big_vision(checkpoint: Checkpoint) -> Description:
  """The model of a big_vision checkpoint, from the shapes of its arrays.

  Raises:
    ValueError: a NaFlex checkpoint.
  """
  shape = checkpoint.shape
  if len(patch_shape := shape("img.embedding.kernel")) == 2:
    raise _naflex(checkpoint)
  patch, _, _, width = patch_shape
  grid = round(shape("img.pos_embedding")[1] ** 0.5)
  image_depth, image_heads, image_mlp = _block_sizes(checkpoint, "img.Transformer.encoderblock")
  text_depth, text_heads, text_mlp = _block_sizes(checkpoint, "txt.Encoder_0.encoderblock")
  vocabulary_size, text_width = shape("txt.Embed_0.embedding")
  published = (
    m.image.image_size
    for m in SIGLIP_MODELS.values()
    if (m.image.width, m.image.patch_size, m.image.grid) == (width, patch, grid)
  )
  image = image_config(
    next(published, grid * patch),
    patch,
    width,
    image_depth,
    image_heads,
    image_mlp,
  )
  text = text_config(
    shape("txt.pos_embedding")[1],
    vocabulary_size,
    text_width,
    text_depth,
    text_heads,
    text_mlp,
    shape("txt.head.kernel")[1],
  )
  return _description(image, text)


def _block_sizes(checkpoint: Checkpoint, block: str) -> tuple[int, int, int]:
  """Depth, heads and MLP width of one encoder, scanned or unrolled."""
  query, dense = "MultiHeadDotProductAttention_0.query.bias", "MlpBlock_0.Dense_0.bias"
  depth = count_blocks(checkpoint.arrays, f"{block}_{{}}.")
  if depth:
    block = f"{block}_0"
  else:
    depth = checkpoint.shape(f"{block}.{query}")[0]
  return (depth, checkpoint.shape(f"{block}.{query}")[-2], checkpoint.shape(f"{block}.{dense}")[-1])


def _description(image: ImageConfig, text: TextConfig) -> Description:
  # The architectures are the same; the Gemma tokenizer's vocabulary tells the second.
  family = "siglip2" if text.vocabulary_size == _GEMMA_VOCABULARY else "siglip"
  return Description(family, image, text, sigmoid_bias=True)


def _naflex(checkpoint: Checkpoint) -> ValueError:
  return ValueError(
    f"{checkpoint.source} is a NaFlex variant, whose images keep their aspect ratio; that is "
    "not supported. Use one of a fixed resolution, such as google/siglip2-base-patch16-224."
  )


_TRAINING = (r"opt\..*", r"chrono\..*")

LAYOUTS = (
  Layout(
    "siglip-huggingface",
    HF,
    TORCH,
    describe_hf,
    (r"(text|vision)_model\.embeddings\.position_ids",),
  ),
  Layout(
    "siglip-big_vision",
    _big_vision("_{}"),
    FLAX,
    describe_big_vision,
    _TRAINING,
    "corners",
    _with_heads,
  ),
  Layout(
    "siglip-big_vision-scanned",
    _big_vision(""),
    FLAX,
    describe_big_vision,
    _TRAINING,
    "corners",
    _with_heads,
  ),
)
