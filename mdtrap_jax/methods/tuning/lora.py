"""Low-rank adapters: what the CVPR 2026 paper trains. The mathematics is in `models/lora.py`."""

from __future__ import annotations

import dataclasses

import numpy as np

from mdtrap_jax.checkpoints import adapters, merge
from mdtrap_jax.methods.tuning.parameterization import Parameterization
from mdtrap_jax.models.chunks import in_chunks
from mdtrap_jax.models.lora import SCALES, LoraConfig, LoraFactors
from mdtrap_jax.models.pissa import start_from_weights


@dataclasses.dataclass(frozen=True)
class Lora(Parameterization):
  """Factors beside the projections of one encoder or both; trained is `{encoder: factors}`."""

  config: LoraConfig = LoraConfig()

  @property
  def encoders(self) -> tuple[str, ...]:
    """The adapted ones."""
    return self.config.encoders

  def check(self, model):
    """See `Parameterization.check`: the blocks must be there."""
    for encoder in self.encoders:
      self.config.blocks({"image": model.image, "text": model.text}[encoder].depth)

  def weights(self, model, params):
    """With `dora` or `start="pissa"` also what factors start from, `{"lora": {encoder: …}}`."""
    if not self.config.dora and self.config.start == "zero":
      return params
    params, start = dict(params), {}
    for encoder in self.encoders:
      rows = self.config.blocks({"image": model.image, "text": model.text}[encoder].depth)
      blocks = params[encoder]["blocks"]
      blocks, start[encoder] = start_from_weights(blocks, self.config, rows)
      params[encoder] = params[encoder] | {"blocks": blocks}
    return params | {"lora": start}

  def init(self, model, params, key, token_ids):
    """Fresh factors; the adapted model starts as the pretrained one."""
    del token_ids
    factors = model.init_lora(key, self.config)
    starts = params.get("lora", {})
    return {name: _started(own, starts.get(name)) for name, own in factors.items()}

  def embed_image(self, model, params, images, patches=False):
    """Everything below the first adapted block."""
    if "image" not in self.encoders:
      return super().embed_image(model, params, images, patches)
    return model.embed_image(params, images, self.config)

  def encode_image(self, model, params, tokens, trained, key=None, patches=False):
    """The adapted blocks and what lies above and between them."""
    if "image" not in self.encoders:
      return super().encode_image(model, params, tokens, trained, key, patches)
    return model.encode_image_tokens(params, tokens, self.config, trained, key, patches=patches)

  def encode_text(self, model, params, token_ids, trained, key=None, chunk=None):
    """The adapted text encoder; with dropout all rows at once, as it is drawn for all."""
    encode = lambda ids: model.encode_text(params, ids, self.config, trained, key)
    return in_chunks(encode, chunk if key is None else None, token_ids)

  def save(self, model, trained, base, fingerprint=None):
    """As the library `peft` stores adapters.

    PiSSA's factors are none without what it has frozen, so that they have no such file.
    """
    if self.config.start == "pissa":
      return super().save(model, trained, base, fingerprint)
    return adapters.to_peft(model, self.config, trained, base, fingerprint)

  def load(self, folder, model, classes):
    """What `save` wrote."""
    if self.config.start == "pissa":
      return super().load(folder, model, classes)
    return adapters.from_peft(folder, model, self.config)

  def export(self, model, params, trained, base, fingerprint=None):
    """To PiSSA's factors come those that it started from, with the other sign."""
    if self.config.start != "pissa":
      return self.save(model, trained, base, fingerprint)
    rank = 2 * self.config.rank
    alpha = self.config.multiplier * SCALES[self.config.scale](rank)
    config = dataclasses.replace(self.config, rank=rank, alpha=alpha, start="zero")
    starts = self.weights(model, params)["lora"]
    both = {name: _difference(own, starts[name]) for name, own in trained.items()}
    return adapters.to_peft(model, config, both, base, fingerprint)

  def merge(self, model, params, trained):
    """The sum of each projection and its factors' product, or DoRA's multiple of it."""
    frozen = self.weights(model, params)
    changes = adapters.differences(model, self.config, trained, frozen)
    return merge.add(model, {name: frozen[name] for name in params}, changes, "the adapter")


def _started(factors: LoraFactors | None, start: LoraFactors | None) -> LoraFactors | None:
  """Factors with what follows from the weights in place of their own start."""
  if factors is None or start is None:
    return factors
  own = [
    leaf if leaf is not None else old for old, leaf in zip(factors[:3], start[:3], strict=True)
  ]
  return LoraFactors(*own, _started(factors.fc1, start.fc1), _started(factors.fc2, start.fc2))


def _difference(factors: LoraFactors | None, start: LoraFactors | None) -> LoraFactors | None:
  """Factors of twice the rank, whose product is `A B` less that of the start."""
  if factors is None or start is None:
    return None
  own = LoraFactors(None, None)
  if factors.a is not None:
    a = np.concatenate([factors.a, start.a], axis=-1)
    b = np.concatenate([factors.b, -np.asarray(start.b)], axis=-2)
    own = LoraFactors(a, b, factors.magnitude)
  fc1, fc2 = _difference(factors.fc1, start.fc1), _difference(factors.fc2, start.fc2)
  return own._replace(fc1=fc1, fc2=fc2)
