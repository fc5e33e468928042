"""A few of the model's own parameters: those of its layer norms, or all its biases.

Layer norms: as test-time adaptation tunes normalization (D. Wang et al., "Tent", ICLR 2021).
Biases: E. Ben-Zaken, S. Ravfogel, Y. Goldberg, "BitFit", ACL 2022. An episode owns a copy of these
vectors alone; the matrices stay shared by all.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mdtrap_jax.methods.tuning.parameterization import Parameterization
from mdtrap_jax.models import sharding
from mdtrap_jax.models.chunks import in_chunks
from mdtrap_jax.models.lora import ENCODERS, blocks_at

NORMS = ("pre_norm", "norm1", "norm2", "post_norm", "norm")
SUBSETS = {
  "layernorm": lambda path: path[-2] in NORMS,
  # The patch embedding's is left out, so that what it gives is computed once.
  "bias": lambda path: path[-1].endswith("bias") and path[-2:] != ("patch", "bias"),
}


@dataclasses.dataclass(frozen=True)
class Subset(Parameterization):
  """Vectors of one encoder or both; trained is `{encoder: {path: [A, …] or […]}}`, float32.

  Attributes:
    kind: of `SUBSETS`; the config's section too.
    encoder: `vision`, `text` or `both`.
    position: which blocks, as LoRA's. `all` takes both ends of the encoder too.
  """

  kind: str
  encoder: str = "vision"
  position: str | tuple[int, ...] = "all"

  @property
  def encoders(self) -> tuple[str, ...]:
    """Those with trained vectors."""
    return ENCODERS[self.encoder]

  def check(self, model):
    """See `Parameterization.check`: the blocks must be there."""
    for encoder in self.encoders:
      self._blocks(model, encoder)

  def init(self, model, params, key, token_ids):
    """The pretrained values."""
    del key, token_ids
    return {name: self._chosen(model, name, params[name]) for name in self.encoders}

  def embed_image(self, model, params, images, patches=False):
    """Everything below the first trained vector."""
    if "image" not in self.encoders:
      return super().embed_image(model, params, images, patches)
    return model.embed_image(params, images, stop=self._first(model), norm=self.position != "all")

  def encode_image(self, model, params, tokens, trained, key=None, patches=False):
    """What lies above."""
    if "image" not in self.encoders:
      return super().encode_image(model, params, tokens, trained, key, patches)
    weights = params if trained is None else self._with(model, params, trained)
    whole = self.position == "all"
    start = self._first(model)
    return model.encode_image_tokens(weights, tokens, start=start, norm=whole, patches=patches)

  def encode_text(self, model, params, token_ids, trained, key=None, chunk=None):
    """The whole text encoder with the trained vectors."""
    del key
    weights = self._with(model, params, trained)
    return in_chunks(lambda ids: model.encode_text(weights, ids), chunk, token_ids)

  def merge(self, model, params, trained):
    """The trained vectors in their places."""
    return jax.tree.map(np.asarray, self._with(model, params, trained))

  def _blocks(self, model, encoder):
    depth = {"image": model.image, "text": model.text}[encoder].depth
    return blocks_at(self.position, depth, self.kind)

  def _first(self, model):
    return self._blocks(model, "image")[0]

  def _chosen(self, model, name, encoder):
    """`{path: values}` of one encoder."""
    rows, chosen = list(self._blocks(model, name)), {}
    for path, leaf in traverse_util.flatten_dict(encoder).items():
      inside = path[0] == "blocks"
      if SUBSETS[self.kind](path) and (inside or self.position == "all"):
        leaf = sharding.whole(leaf)
        leaf = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        chosen["/".join(path)] = leaf[jnp.asarray(rows)] if inside else leaf
    return chosen

  def _with(self, model, params, trained):
    """The model's parameters with an episode's vectors in their places.

    Those of layer norms, which compute in float32, keep that; biases have the weights' type.
    """
    params = dict(params)
    for name, own in trained.items():
      rows, flat = list(self._blocks(model, name)), traverse_util.flatten_dict(params[name])
      for path, leaf in ((tuple(path.split("/")), leaf) for path, leaf in own.items()):
        base = sharding.whole(flat[path])
        if path[-2] not in NORMS:
          leaf = leaf.astype(base.dtype)
        if path[0] == "blocks" and len(rows) < len(base):
          leaf = jnp.asarray(base, leaf.dtype).at[jnp.asarray(rows)].set(leaf)
        flat[path] = leaf
      params[name] = traverse_util.unflatten_dict(flat)
    return params
