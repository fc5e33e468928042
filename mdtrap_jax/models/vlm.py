"""A vision-language model: static description and pure functions; its weights live outside.

Every family (CLIP, SigLIP, PE-Core, the miniature) is one `VisionLanguageModel`. An encoder
runs in three steps, `embed → blocks → pool`, so that an episode can keep the part below the
first adapted block and pay for it once.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mdtrap_jax.models.image_stem import ImageConfig, ImageStem
from mdtrap_jax.models.lora import LoraConfig, LoraFactors, init_factors
from mdtrap_jax.models.shared_prefix import SharedPrefix
from mdtrap_jax.models.text_stem import TextConfig, TextStem
from mdtrap_jax.models.transformer import init_blocks, run_blocks

Params = Any  # {"image": encoder, "text": encoder, "logit_scale": []}; see `init`
Factors = Mapping[str, LoraFactors]  # {"image": …} and/or {"text": …}: adapted encoders only


class Prompts(NamedTuple):
  """Learned tokens of one encoder, in place of what it would see there."""

  first: jax.Array  # [n, W], or of a text [B, n, W]: below the first block
  deeper: jax.Array | None  # [J, n, W], below blocks 1 … J


# Traced once for all models of these shapes, whatever tokenizers they came with.
@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _init(key: jax.Array, image: ImageConfig, text: TextConfig, sigmoid_bias: bool) -> Params:
  """See `VisionLanguageModel.init`."""
  keys = jax.random.split(key, 4)
  size = image.image_size
  image_params = {
    "stem": ImageStem(image).init(keys[0], jnp.zeros((1, size, size, 3)))["params"],
    "blocks": init_blocks(keys[1], image.block, image.depth),
  }
  ids = jnp.zeros((1, text.context_length), jnp.int32)
  text_params = {
    "stem": TextStem(text).init(keys[2], ids)["params"],
    "blocks": init_blocks(keys[3], text.block, text.depth),
  }
  params = {"image": image_params, "text": text_params, "logit_scale": jnp.log(1 / 0.07)}
  return {**params, "logit_bias": jnp.float32(-10)} if sigmoid_bias else params


@dataclasses.dataclass(frozen=True)
class VisionLanguageModel:
  """Two encoders and what their inputs must look like.

  Attributes:
    name: as the user gave it.
    image: the image encoder's shape.
    text: the text encoder's shape.
    tokenize: texts to token ids `[n, L] int32`.
    image_mean: per channel, of images in [0, 1].
    image_std: per channel.
    family: of `families.FAMILIES`, which knows prompts and how images are resized.
    sigmoid_bias: SigLIP's logits have a bias; it shifts all alike, a softmax does not see it.
  """

  name: str
  image: ImageConfig
  text: TextConfig
  tokenize: Callable[[Sequence[str]], np.ndarray]
  image_mean: tuple[float, float, float]
  image_std: tuple[float, float, float]
  family: str = "clip"
  sigmoid_bias: bool = False

  def init(self, key: jax.Array) -> Params:
    """Random weights, float32; `key` is consumed.

    Returns:
      `{"image": {"stem": …, "blocks": …}, "text": {…}, "logit_scale": [] (its logarithm)}`,
      block leaves stacked `[depth, ...]`; with `sigmoid_bias` also `"logit_bias": []`.
    """
    return _init(key, self.image, self.text, self.sigmoid_bias)

  def init_lora(self, key: jax.Array, lora: LoraConfig) -> dict[str, LoraFactors]:
    """Fresh factors of the adapted encoders, `{"image": …}` and/or `{"text": …}`."""
    configs = {"image": self.image, "text": self.text}
    return {
      name: init_factors(
        jax.random.fold_in(key, i), lora, config.depth, config.width, config.mlp_width
      )
      for i, (name, config) in enumerate(configs.items())
      if name in lora.encoders
    }

  def embed_image(
    self,
    params: Params,
    images: jax.Array,
    lora: LoraConfig | None = None,
    *,
    stop: int | None = None,
    norm: bool = True,
  ) -> jax.Array:
    """Everything below the first adapted block; all of this stays fixed in an episode.

    Args:
      params: of the model.
      images: `[B, H, W, 3]`, normalized with the model's mean and std.
      lora: what is adapted; `None` stops after the patch embedding.
      stop: the first block that is left out, where `lora` does not say it.
      norm: whether the norm before the first block is part of it.

    Returns:
      tokens `[B, S, width]`.
    """
    encoder = params["image"]
    tokens = ImageStem(self.image).apply({"params": encoder["stem"]}, images, norm, method="embed")
    stop = first_adapted_block(lora, "image", self.image.depth) if stop is None else stop
    return run_blocks(encoder["blocks"], tokens, self.image.block, stop=stop)

  def encode_image_tokens(
    self,
    params: Params,
    tokens: jax.Array,
    lora: LoraConfig | None = None,
    factors: Factors | None = None,
    key: jax.Array | None = None,
    *,
    start: int | None = None,
    norm: bool = False,
    prompts: Prompts | None = None,
    patches: bool = False,
  ) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Embeddings `[B, D]` (not normalized) from the tokens of `embed_image`.

    Args:
      params: of the model.
      tokens: `[B, S, width]` from `embed_image` with the same `lora`.
      lora: what is adapted.
      factors: the episode's factors, or `None` for the base model.
      key: typed key of the LoRA dropout, or one for each row, `[B]`; consumed. `None` for no
        dropout.
      start: the first block to run, where `lora` does not say it.
      norm: whether the norm before the first block is still to come.
      prompts: learned tokens after the image's own, which are not pooled.
      patches: whether the image's patch tokens `[B, P, width]` come along, all of them after the
        norm that follows the last block, without the class token; then a pair is returned.
    """
    encoder, count = params["image"], tokens.shape[1]
    stem = lambda *arguments, method: ImageStem(self.image).apply(
      {"params": encoder["stem"]}, *arguments, method=method
    )
    start = first_adapted_block(lora, "image", self.image.depth) if start is None else start
    first, deeper = prompts or (None, None)
    if norm:
      tokens = stem(tokens, method="norm")
    if first is not None:
      learned = stem(first[None].astype(tokens.dtype), method="norm")
      shape = (len(tokens), *first.shape)
      tokens = jnp.concatenate([tokens, jnp.broadcast_to(learned, shape)], axis=1)
    tokens = run_blocks(
      encoder["blocks"],
      tokens,
      self.image.block,
      start=start,
      lora=lora,
      factors=(factors or {}).get("image"),
      key=key,
      prompts=deeper,
      at=count,
      first=1 if self.image.pool == "class" and not patches else None,
    )
    return stem(tokens[:, :count], method="pool_with_patches" if patches else "pool")

  def encode_image(self, params: Params, images: jax.Array, **adapted) -> jax.Array:
    """Embeddings `[B, D]` (not normalized) of normalized images `[B, H, W, 3]`."""
    tokens = self.embed_image(params, images, adapted.get("lora"))
    return self.encode_image_tokens(params, tokens, **adapted)

  def encode_text(
    self,
    params: Params,
    token_ids: jax.Array,
    lora: LoraConfig | None = None,
    factors: Factors | None = None,
    key: jax.Array | None = None,
    prompts: Prompts | None = None,
    at: int = 0,
  ) -> jax.Array:
    """Embeddings `[B, D]` (not normalized) of token ids `[B, L] int32`.

    Args:
      params: of the model.
      token_ids: of whole rows, or of shorter ones as `TextStem.embed` has them.
      lora: what is adapted.
      factors: the episode's factors, or `None` for the base model.
      key: typed key of the LoRA dropout, consumed. `None` for no dropout.
      prompts: learned tokens in place of the rows' own `at … at+n-1`.
      at: static; all rows have the same tokens before.
    """
    encoder, stem, block = params["text"], TextStem(self.text), self.text.block
    context, deeper = prompts or (None, None)
    tokens = stem.apply({"params": encoder["stem"]}, token_ids, context, at, method="embed")
    shared = None  # dropout differs from row to row
    if block.causal and context is not None and context.ndim == 2 and key is None:
      shared = SharedPrefix(at + len(context), len(tokens))
      block = dataclasses.replace(block, shared=shared)
      tokens, token_ids = shared.join(tokens), token_ids[:, shared.tokens :]
    tokens = run_blocks(
      encoder["blocks"],
      tokens,
      block,
      lora=lora,
      factors=(factors or {}).get("text"),
      key=key,
      prompts=deeper,
      at=at,
    )
    if shared is not None:
      tokens = shared.split(tokens)
    return stem.apply({"params": encoder["stem"]}, tokens, token_ids, method="pool")

  def logit_scale(self, params: Params) -> jax.Array:
    """The scale `s` of the cosines, `[]`: 100 for a trained CLIP."""
    return jnp.exp(params["logit_scale"])


def first_adapted_block(lora: LoraConfig | None, encoder: str, depth: int) -> int:
  """The block where an episode's own computation starts.

  An encoder that is not adapted is fixed altogether, and `depth` says so; without `lora`
  nothing is precomputed, and the answer is 0.
  """
  if lora is None:
    return 0
  return lora.blocks(depth)[0] if encoder in lora.encoders else depth
