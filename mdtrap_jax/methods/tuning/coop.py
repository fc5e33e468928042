"""Learned context tokens of the text encoder.

CoOp: K. Zhou, J. Yang, C. C. Loy, Z. Liu, "Learning to prompt for vision-language models", IJCV
2022, arXiv 2109.01134; the class's name at the end.

The image encoder is fixed: images are encoded once, and a step runs the text encoder alone. A
term that is a function of images only, as SVL and `L_v` are, has then no gradient on what is
trained; RA has one through its textual target.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mdtrap_jax.methods.tuning import context
from mdtrap_jax.methods.tuning.parameterization import Parameterization
from mdtrap_jax.models.chunks import in_chunks
from mdtrap_jax.models.vlm import Params, Prompts, VisionLanguageModel

DEVIATION = 0.02  # of a random start


@dataclasses.dataclass(frozen=True)
class Coop(Parameterization):
  """`M` context tokens in front of the class names; trained is `{"context": [M, W]}`.

  Attributes:
    tokens: `M`.
    words: whose embeddings the context starts from; "" for a random start.
    per_class: whether each class of an episode has a context of its own, `[C, M, W]`.
  """

  tokens: int = 16
  words: str = ""
  per_class: bool = False

  encoders = ("text",)

  @property
  def pretrained_start(self) -> bool:
    """A start from words is: a prompt with these words."""
    return bool(self.words)

  def check(self, model):
    """See `Parameterization.check`: the context must fit into a text."""
    context.check_words(model, "coop", self.words, self.tokens)

  def token_ids(self, model, class_names, template):
    """Of `WORDS NAME.`, or of `NAME.` after room for the context: `[C, L]`."""
    del template
    return context.make_token_ids(model, "coop", class_names, self.words, self.tokens)

  def init(self, model, params, key, token_ids):
    """Drawn from `N(0, 0.02²)`, or the embeddings of the words."""
    ids = token_ids if self.per_class else token_ids[:1]
    rows = start_context(model, params, key, ids, self.tokens, self.words)
    return {"context": rows if self.per_class else rows[0]}

  def text_tokens(self, model, shape):
    """A context that the classes share is computed once."""
    if self.per_class:
      return super().text_tokens(model, shape)
    return context.count_computed(model, self.tokens, shape)

  def encode_text(self, model, params, token_ids, trained, key=None, chunk=None):
    """The text encoder on the learned context and the class names."""
    del key
    at, learned = context.text_start(model), trained["context"]
    encode = lambda ids, own: model.encode_text(params, ids, prompts=Prompts(own, None), at=at)
    if self.per_class:
      return in_chunks(encode, chunk, token_ids, learned)
    return in_chunks(lambda ids: encode(ids, learned), chunk, token_ids)


def start_context(
  model: VisionLanguageModel,
  params: Params,
  key: jax.Array,
  token_ids: jax.Array,
  count: int,
  words: str,
) -> jax.Array:
  """`[B, count, W]`, where learned tokens start: the rows' own embeddings, or without words noise.

  Args:
    model: whose text encoder it is.
    params: of the model.
    key: typed key; consumed.
    token_ids: `[B, L]`.
    count: of learned tokens.
    words: that `token_ids` begin with; "" for a random start.
  """
  if not words:
    return DEVIATION * jax.random.normal(key, (len(token_ids), count, model.text.width))
  start = context.text_start(model)
  rows = params["text"]["stem"]["token"][token_ids[:, start : start + count]]
  return rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
