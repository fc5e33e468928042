"""Every parameterization through a whole training beside a twin in plain torch, in float64.

The library's is the second of two episodes at once, encoded a few rows at a time.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdtrap_jax import config as settings
from mdtrap_jax.methods.finetune import FineTuning
from mdtrap_jax.methods.tuning.choices import make_parameterization
from mdtrap_jax.objectives import chain
from tests.episodes import small_config, smallest_clip

torch = pytest.importorskip("torch", reason="torch, the twin's library, is not installed")
from tests.methods.torch_twin import Twin  # noqa: E402

STEPS, VIEWS, NAMES, SCALE = 6, 2, ["cat", "dog", "owl"], 30.0
LABELS = np.arange(3, dtype=np.int32)
DRAWS = np.random.default_rng(1).integers(0, VIEWS * len(NAMES), (STEPS, len(NAMES)))
TOLERANCE = 1e-8


class Coop(Twin):
  """`start`: the library's own start, which the draws of another generator cannot give."""

  def __init__(self, model, params, start):
    super().__init__(model, params)
    self.context = self.train(start["context"])

  def text_tokens(self, tokens, block):
    if block:
      return tokens
    context = self.context.expand(len(tokens), *self.context.shape[-2:])
    count = context.shape[1]
    return torch.cat([tokens[:, :1], context, tokens[:, 1 + count :]], 1)


class Maple(Twin):
  """Leaves in the order of the library's tree: by name."""

  def __init__(self, model, params, start):
    super().__init__(model, params)
    names = ("bias", "context", "deeper", "kernel")
    self.bias, self.context, self.deeper, self.kernel = self.train(*(start[n] for n in names))

  def text_tokens(self, tokens, block):
    if block > len(self.deeper):
      return tokens
    own = self.deeper[block - 1] if block else self.context
    own = own.expand(len(tokens), *own.shape)
    return torch.cat([tokens[:, :1], own, tokens[:, 1 + own.shape[1] :]], 1)

  def image_tokens(self, tokens, block):
    if block > len(self.deeper):
      return tokens
    own = self.deeper[block - 1] if block else self.context
    own = own @ self.kernel[block] + self.bias[block]
    kept = tokens[:, : -len(own)] if block else tokens
    return torch.cat([kept, own.expand(len(tokens), *own.shape)], 1)


class Subset(Twin):
  """Copies of some vectors, looked up before the pretrained ones."""

  rows = (0, 1)

  def __init__(self, model, params, start):
    super().__init__(model, params)
    self.own = {}
    for encoder in sorted(start):
      for path in sorted(start[encoder]):
        self.own[encoder, path] = self.train(start[encoder][path])
        expected = self.params[encoder]
        for part in path.split("/"):
          expected = expected[part]
        rows = list(self.rows) if path.startswith("blocks") else slice(None)
        torch.testing.assert_close(self.own[encoder, path].detach(), expected[rows])

  def weight(self, encoder, path, block=None):
    own = self.own.get((encoder, f"{'stem' if block is None else 'blocks'}/{path}"))
    if own is None or (block is not None and block not in self.rows):
      return super().weight(encoder, path, block)
    return own if block is None else own[self.rows.index(block)]


class Upper(Subset):
  rows = (1,)


class Lora(Twin):
  """Factors, and with `dora` magnitudes, of attention and of both layers of the MLP."""

  scale, attention, pissa = 8 / 2**0.5, ("q", "k", "v", "out"), False

  def __init__(self, model, params, start):
    super().__init__(model, params)
    self.own = {}
    for encoder in sorted(start):
      for group, factors in (
        ("attention", start[encoder]),
        ("fc1", start[encoder].fc1),
        ("fc2", start[encoder].fc2),
      ):
        if factors is not None and factors.a is not None:
          leaves = [leaf for leaf in factors[:3] if leaf is not None]
          self.own[encoder, group] = self.train(*leaves)

  def linear(self, encoder, name, block, x, weight, bias):
    group = name if name.startswith("fc") else "attention"
    own = self.own.get((encoder, group))
    if own is None or (group == "attention" and name not in self.attention):
      return super().linear(encoder, name, block, x, weight, bias)
    column = self.attention.index(name) if group == "attention" else 0
    a, b = (leaf[block, column] for leaf in own[:2])
    if self.pissa:
      u, s, v = torch.linalg.svd(weight, full_matrices=False)
      weight = weight - u[:, :2] @ torch.diag(s[:2]) @ v[:2]
    total = weight + self.scale * a @ b
    if len(own) > 2:
      total = own[2][block, column] * total / total.norm(dim=0).detach()
    return x @ total + bias


class OfText(Lora):
  attention = ("q", "k", "v")


class Pissa(Lora):
  scale, attention, pissa = 1.0, ("v",), True


# The fields of a config beside `:TUNE`'s, and the twin.
KINDS = {
  "lora": ({"lora.encoder": "text"}, OfText),
  "coop": ({"coop.tokens": 3}, Coop),
  "coop of classes": ({"coop.words": "a photo", "coop.per_class": True}, Coop),
  "maple": ({"maple.depth": 2}, Maple),
  "layernorm": ({"layernorm.encoder": "both"}, Subset),
  "bias": ({"bias.encoder": "both", "bias.position": "1"}, Upper),
  "dora": ({"lora.projections": ("q", "k", "v", "out", "fc1", "fc2")}, Lora),
  "pissa": ({"lora.projections": ("v", "fc2"), "lora.alpha": 2.0}, Pissa),
}


def make_config(name):
  fields, _ = KINDS[name]
  config = small_config(row=f"svl_ra,{name.split()[0]}")
  config.update_from_flattened_dict({"adapt.steps": STEPS, "lora.dropout": 0.0, **fields})
  config.optimizer.learning_rate = 1e-2
  return settings.resolve(config)


def rate(config):
  """The learning rate of a step, written out."""
  o = config.optimizer

  def of(t):
    if t < o.warmup_steps:
      return o.warmup_rate
    wave = (1 + math.cos(math.pi * (t - o.warmup_steps) / int(o.periods * STEPS))) / 2
    return o.floor + (o.learning_rate - o.floor) * wave

  return of


def torch_optimizer(config, leaves):
  o = config.optimizer
  if o.name == "sgd":
    return torch.optim.SGD(leaves, o.learning_rate, o.momentum, weight_decay=o.weight_decay)
  betas = (o.b1, o.b2)
  return torch.optim.AdamW(leaves, o.learning_rate, betas, o.eps, o.weight_decay)


@pytest.mark.parametrize("name", KINDS)
def test_follows_its_twin(name):
  _, twin_of = KINDS[name]
  config, rng = make_config(name), np.random.default_rng(0)
  views = rng.standard_normal((VIEWS, 3, 16, 16, 3))
  both = np.stack([rng.standard_normal(views.shape), views])
  model, params = smallest_clip()
  with jax.enable_x64(True):
    rng = np.random.default_rng(2)  # biases and norms that are not 0 and 1
    params = jax.tree.map(
      lambda leaf: jnp.asarray(leaf + 0.1 * rng.standard_normal(leaf.shape), jnp.float64), params
    )
    parameterization = make_parameterization(config)
    draws = jnp.asarray(DRAWS)
    objective = {
      "vlm": {"weight": 1.0, "window": (0, 5)},
      "svl": {"weight": 0.1, "window": (0, 3), "draw": lambda key, step, n, c: draws[step]},
      "ra": {"weight": 3.0, "window": (0, 3)},
    }
    optimizer = chain.make_optimizer(steps=STEPS, **config.optimizer.to_dict())
    counts = dict(num_views=VIEWS * len(NAMES), num_clean=len(NAMES))
    tx = chain.make_objective(objective, optimizer, steps=STEPS, logit_scale=SCALE, **counts)
    method = FineTuning(model, parameterization, tx, STEPS, (), VIEWS, chunk=2)
    ids = jnp.asarray(parameterization.token_ids(model, NAMES, "a photo of a {}."))
    weights = parameterization.weights(model, params)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0, 0))
    def run(params, views, key):
      prepared, state = method.prepare_images(
        params, views, views[0], key=key, labels=LABELS, query_labels=LABELS,
        token_ids=ids, text=model.encode_text(params, ids),
      )  # fmt: skip

      def step(state, t):
        state = method.step(params, prepared, state, t, clean=True)
        terms = [state.opt_state[term] for term in objective]
        on = jnp.array([True, t < 3 * (STEPS // 5), (t > 0) & (t < 3 * (STEPS // 5))])
        return state, jnp.where(on, jnp.stack([term.value for term in terms]), jnp.nan)

      last, losses = jax.lax.scan(step, state, jnp.arange(STEPS))
      return state.params, last.params, losses, last.status

    adapted = jax.device_get(run(weights, both, jax.random.split(jax.random.key(3), 2)))
  start, ours, losses, status = jax.tree.map(lambda leaf: leaf[1], adapted)
  assert status == 0
  full = np.zeros((len(NAMES), model.text.context_length), np.int64)
  full[:, : ids.shape[1]] = ids
  twin = twin_of(model, params, start)
  expected = twin.fit(
    views, full, LABELS, DRAWS, STEPS, SCALE, torch_optimizer(config, twin.trained), rate(config)
  )
  assert (np.isnan(losses) == np.isnan(expected)).all()
  np.testing.assert_allclose(losses, expected, rtol=TOLERANCE)
  assert abs(losses[-1, 0] - losses[0, 0]) > 1e-4  # something was learned
  for before, after in zip(jax.tree.leaves(start), jax.tree.leaves(ours), strict=True):
    assert not np.allclose(before, after, atol=1e-5)
  for leaf, theirs in zip(jax.tree.leaves(ours), twin.trained, strict=True):
    np.testing.assert_allclose(leaf, theirs.detach().numpy(), rtol=0, atol=TOLERANCE)
