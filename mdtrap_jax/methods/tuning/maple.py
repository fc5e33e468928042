"""Learned tokens in both encoders, those of the images from those of the texts.

MaPLe: M. U. Khattak, H. Rasheed, M. Maaz, S. Khan, F. S. Khan, "MaPLe: multi-modal prompt
learning", CVPR 2023, arXiv 2210.03117. Blocks `1 … depth-1` see learned tokens in place of what the
block before made of the last ones; linear maps couple the two encoders.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from mdtrap_jax.methods.tuning import context
from mdtrap_jax.methods.tuning.coop import DEVIATION, start_context
from mdtrap_jax.methods.tuning.parameterization import Parameterization
from mdtrap_jax.models.chunks import in_chunks
from mdtrap_jax.models.vlm import Prompts


@dataclasses.dataclass(frozen=True)
class Maple(Parameterization):
  """`n` tokens in each of the first `J + 1` blocks; `U` is the text's width, `W` the image's.

  Trained are `context [n, U]`, `deeper [J, n, U]`, and maps `kernel [J+1, U, W]`, `bias [J+1, W]`.

  Attributes:
    depth: `J + 1`, blocks with learned tokens.
    tokens: `n`.
    words: whose first tokens' embeddings the text's context starts from; "" for a random start.
  """

  depth: int = 9
  tokens: int = 2
  words: str = "a photo of a"

  encoders = ("image", "text")
  pretrained_start = False

  def check(self, model):
    """See `Parameterization.check`: blocks and places for the tokens must be there."""
    for name, encoder in (("image", model.image), ("text", model.text)):
      if self.depth > encoder.depth:
        raise ValueError(
          f"--config.maple.depth={self.depth}: the {name} encoder of {model.name} has "
          f"{encoder.depth} blocks; give at most so many."
        )
    context.check_words(model, "maple", self.words, self.tokens)

  def token_ids(self, model, class_names, template):
    """Of `WORDS NAME.`, or of `NAME.` after room for the context: `[C, L]`."""
    del template
    return context.make_token_ids(model, "maple", class_names, self.words, self.tokens)

  def init(self, model, params, key, token_ids):
    """As MaPLe's code: tokens from `N(0, 0.02²)` or words, one draw for all deeper maps."""
    text, image, keys = model.text.width, model.image.width, jax.random.split(key, 6)
    bound, deeper = 1 / math.sqrt(text), self.depth - 1
    uniform = lambda key, *shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)

    def maps(first, others, *shape):
      alike = jnp.broadcast_to(uniform(others, *shape), (deeper, *shape))
      return jnp.concatenate([uniform(first, *shape)[None], alike])

    return {
      "context": start_context(model, params, keys[0], token_ids[:1], self.tokens, self.words)[0],
      "deeper": DEVIATION * jax.random.normal(keys[1], (deeper, self.tokens, text)),
      "kernel": maps(keys[2], keys[3], text, image),
      "bias": maps(keys[4], keys[5], image),
    }

  def embed_image(self, model, params, images, patches=False):
    """The patch embedding."""
    del patches
    return model.embed_image(params, images)

  def encode_image(self, model, params, tokens, trained, key=None, patches=False):
    """The whole encoder; the learned tokens stand after an image's own and are not pooled."""
    del key
    prompts = None
    if trained is not None:
      kernel, bias = trained["kernel"], trained["bias"][:, None]
      first = trained["context"] @ kernel[0] + bias[0]
      prompts = Prompts(first, trained["deeper"] @ kernel[1:] + bias[1:])
    return model.encode_image_tokens(params, tokens, prompts=prompts, patches=patches)

  def text_tokens(self, model, shape):
    """The context is computed once."""
    return context.count_computed(model, self.tokens, shape)

  def encode_text(self, model, params, token_ids, trained, key=None, chunk=None):
    """The text encoder on the learned tokens and the class names."""
    del key
    at, prompts = context.text_start(model), Prompts(trained["context"], trained["deeper"])
    encode = lambda ids: model.encode_text(params, ids, prompts=prompts, at=at)
    return in_chunks(encode, chunk, token_ids)
