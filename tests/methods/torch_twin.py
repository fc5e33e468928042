"""A CLIP in plain torch, float64, and fine-tuning it: a twin that shares no code with the library.

It reads the library's weights, writes out every formula, and lets autograd differentiate the summed
loss. A parameterization is a subclass: what is trained, and where it enters.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F


def tensors(tree):
  """The library's tree of arrays as float64 tensors."""
  if isinstance(tree, dict):
    return {name: tensors(leaf) for name, leaf in tree.items()}
  return torch.tensor(np.asarray(tree, np.float64))


class Twin:
  """The pretrained model; `trained` are the leaf tensors that the optimizer gets."""

  def __init__(self, model, params):
    self.model, self.params, self.trained = model, tensors(params), []

  def train(self, *leaves):
    """Makes leaves trainable, in the order of the library's own tree."""
    leaves = [torch.tensor(np.asarray(leaf, np.float64), requires_grad=True) for leaf in leaves]
    self.trained += leaves
    return leaves[0] if len(leaves) == 1 else leaves

  # What subclasses change.

  def weight(self, encoder, path, block=None):
    """A parameter by its path, as `mlp/fc1/kernel`, of a block or of the stem."""
    leaf = self.params[encoder]["stem" if block is None else "blocks"]
    for part in path.split("/"):
      leaf = leaf[part]
    return leaf if block is None else leaf[block]

  def linear(self, encoder, name, block, x, weight, bias):
    """`x W + b`; `name` of q, k, v, out, fc1, fc2."""
    return x @ weight + bias

  def text_tokens(self, tokens, block):
    """What a text block reads; block 0 before positions are added."""
    return tokens

  def image_tokens(self, tokens, block):
    """What an image block reads; block 0 before the first norm."""
    return tokens

  # The model.

  def norm(self, encoder, name, x, block=None):
    scale, bias = (self.weight(encoder, f"{name}/{part}", block) for part in ("scale", "bias"))
    epsilon = getattr(self.model, encoder).epsilon
    return F.layer_norm(x, x.shape[-1:], scale, bias, epsilon)

  def block(self, encoder, i, x):
    config = getattr(self.model, encoder)
    qkv = self.weight(encoder, "attention/qkv/kernel", i)
    bias = self.weight(encoder, "attention/qkv/bias", i)
    y = self.norm(encoder, "norm1", x, i)
    q, k, v = (self.linear(encoder, name, i, y, qkv[:, j], bias[j]) for j, name in enumerate("qkv"))
    heads = lambda t: t.reshape(*t.shape[:2], config.heads, -1).transpose(1, 2)
    q, k, v = heads(q), heads(k), heads(v)
    logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if encoder == "text" and config.causal:
      hidden = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
      logits = logits.masked_fill(hidden, -math.inf)
    y = (logits.softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
    x = x + self.dense(encoder, "out", "attention/out", i, y)
    y = self.dense(encoder, "fc1", "mlp/fc1", i, self.norm(encoder, "norm2", x, i))
    return x + self.dense(encoder, "fc2", "mlp/fc2", i, y * torch.sigmoid(1.702 * y))

  def dense(self, encoder, name, path, i, x):
    kernel, bias = (self.weight(encoder, f"{path}/{part}", i) for part in ("kernel", "bias"))
    return self.linear(encoder, name, i, x, kernel, bias)

  def encode_text(self, ids):
    x = self.text_tokens(self.weight("text", "token")[ids], 0) + self.weight("text", "position")
    for i in range(self.model.text.depth):
      x = self.block("text", i, self.text_tokens(x, i) if i else x)
    pooled = self.norm("text", "post_norm", x[torch.arange(len(ids)), ids.argmax(-1)])
    return pooled @ self.weight("text", "projection/kernel")

  def encode_image(self, images):
    """Of normalized `[B, S, S, 3]`."""
    size, grid = self.model.image.patch_size, self.model.image.grid
    patches = images.reshape(len(images), grid, size, grid, size, 3).transpose(2, 3)
    x = patches.reshape(len(images), grid * grid, -1) @ self.weight("image", "patch/kernel")
    token = self.weight("image", "class_token").expand(len(images), 1, -1)
    x = torch.cat([token, x], 1) + self.weight("image", "position")
    x = self.norm("image", "pre_norm", self.image_tokens(x, 0))
    for i in range(self.model.image.depth):
      x = self.block("image", i, self.image_tokens(x, i) if i else x)
    pooled = self.norm("image", "post_norm", x[:, 0])
    return pooled @ self.weight("image", "projection/kernel")

  def fit(self, views, ids, labels, draws, steps, scale, optimizer, rate):
    """Cross-entropy, SVL and RA (weights 1, 0.1, 3; the first three fifths), `steps` times.

    Args:
      views: `[V, M, S, S, 3]` normalized, numpy.
      ids: `[C, L]`.
      labels: `[M]`.
      draws: `[T, C]`, the rows that serve SVL as prototypes.
      steps: `T`.
      scale: of cosines.
      optimizer: of `trained`.
      rate: step to learning rate.

    Returns:
      `[T, 3]`, the losses of each step, NaN where a term is off.
    """
    views, ids, labels = torch.tensor(views), torch.tensor(ids).long(), torch.tensor(labels).long()
    flat, every = views.reshape(-1, *views.shape[2:]), labels.repeat(len(views))
    until, losses, before = 3 * (steps // 5), np.full((steps, 3), np.nan), None
    for t in range(steps):
      f, g, u = (
        self.encode_image(flat), self.encode_image(views[0]), self.encode_text(ids),
      )  # fmt: skip
      z, h, u = (x / x.norm(dim=-1, keepdim=True) for x in (f, g, u))
      values = [F.cross_entropy(scale * z @ u.T, every)]
      if t < until:
        w = z[torch.tensor(draws[t]).long()]
        values.append(F.cross_entropy(scale * z @ w.T, every))
        relation, text = z @ h.T, (u @ u.T)[every][:, labels]
        if t:
          share = 1 - t / int(0.6 * steps)
          target = share * before + (1 - share) * text
          values.append((target.exp() * (target - relation)).mean())
        before = relation.detach()
      losses[t, : len(values)] = [float(value.detach()) for value in values]
      total = sum(weight * value for weight, value in zip((1, 0.1, 3), values, strict=False))
      optimizer.zero_grad()
      total.backward()
      for group in optimizer.param_groups:
        group["lr"] = rate(t)
      optimizer.step()
    return losses
