"""The baselines as plain loops, one task at a time: what the library's probes are timed against.

Each is written as its authors' code computes it on features that are there already, with PyTorch's
optimizers, scikit-learn's logistic regression and inverses of whole covariances. A task is NumPy
arrays: `support [N, D]`, `support_labels [N]`, `query [Q, D]`, `text [C, D]`, `projection [D, D]`.
Every function gives the queries' logits `[Q, C]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from mdtrap_jax.methods.heads import METHODS, Domain

SCALE = 100.0
Task = dict[str, torch.Tensor]


def to_torch(task: dict[str, np.ndarray]) -> Task:
  """The arrays as tensors, with one-hot labels beside them."""
  found = {name: torch.as_tensor(array) for name, array in task.items()}
  found["labels"] = found.pop("support_labels").long()
  found["one_hot"] = F.one_hot(found["labels"], len(found["text"])).to(found["support"])
  return found


def _settings(name: str):
  return METHODS[name].settings(Domain())


def _unit(rows):
  return F.normalize(rows, dim=-1)


def _cosines(images, texts):
  return SCALE * _unit(images) @ _unit(texts).T


def _means(rows, one_hot):
  return one_hot.T @ rows / one_hot.sum(0)[:, None]


def _descend(loss: Callable, optimizer, steps: int, schedule: str = "") -> None:
  rate = optimizer.param_groups[0]["lr"]
  for t in range(steps):
    if schedule == "warm" and t == 0:
      optimizer.param_groups[0]["lr"] = 1e-5
    elif schedule:
      past = t - (schedule == "warm")
      optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * past / steps)) / 2
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()


def _ridge(task: Task):
  x = _unit(task["support"])
  inner = torch.linalg.solve(x @ x.T + torch.eye(len(x)), task["one_hot"])
  return _unit(task["query"]) @ (x.T @ inner)


def _logistic(task: Task):
  model = LogisticRegression(C=1.0, max_iter=1000)
  model.fit(_unit(task["support"]).numpy(), task["labels"].numpy())
  return torch.as_tensor(model.decision_function(_unit(task["query"]).numpy()))


def _knn(task: Task):
  similarity = F.cosine_similarity(task["query"][:, None], task["support"], dim=-1)
  return F.one_hot(task["labels"][similarity.argmax(1)], len(task["text"]))


def _mahalanobis(task: Task):
  x, query, logits = task["support"], task["query"], []
  whole = torch.cov(x.T)
  for c in range(len(task["text"])):
    rows = x[task["labels"] == c]
    share = len(rows) / (len(rows) + 1)
    precision = torch.inverse(
      share * torch.cov(rows.T) + (1 - share) * whole + torch.eye(x.shape[1])
    )
    away = query - rows.mean(0)
    logits.append(-((away @ precision) * away).sum(1))
  return torch.stack(logits, 1)


def _tip(task: Task, rows, keys):
  cache = torch.exp(-5.5 * (1 - _unit(rows) @ keys.T)) @ task["one_hot"]
  return _cosines(rows, task["text"]) + cache


def _tip_adapter(task: Task):
  return _tip(task, task["query"], _unit(task["support"]))


def _tip_adapter_f(task: Task):
  keys = _unit(task["support"]).clone().requires_grad_()
  optimizer = torch.optim.AdamW([keys], lr=1e-3, eps=1e-4)
  loss = lambda: F.cross_entropy(_tip(task, task["support"], keys), task["labels"])
  _descend(loss, optimizer, _settings("tip_adapter_f").steps, "cosine")
  return _tip(task, task["query"], keys)


def _clip_adapter(task: Task):
  width = task["support"].shape[1]
  layers = torch.nn.Sequential(
    torch.nn.Linear(width, width // 4, bias=False),
    torch.nn.ReLU(),
    torch.nn.Linear(width // 4, width, bias=False),
    torch.nn.ReLU(),
  )
  predict = lambda rows: _cosines(0.2 * layers(rows) + 0.8 * rows, task["text"])
  optimizer = torch.optim.SGD(layers.parameters(), lr=2e-3, momentum=0.9, weight_decay=5e-4)
  loss = lambda: F.cross_entropy(predict(task["support"]), task["labels"])
  _descend(loss, optimizer, _settings("clip_adapter").steps, "warm")
  return predict(task["query"])


def _taskres(task: Task):
  residual = torch.zeros_like(task["text"], requires_grad=True)
  predict = lambda rows: _cosines(rows, task["text"] + 0.5 * residual)
  optimizer = torch.optim.Adam([residual], lr=2e-3, weight_decay=5e-4)
  loss = lambda: F.cross_entropy(predict(task["support"]), task["labels"])
  _descend(loss, optimizer, _settings("taskres").steps, "warm")
  return predict(task["query"])


def _lp_plus_plus(task: Task):
  x, query, text = (_unit(task[name]) for name in ("support", "query", "text"))
  ways, count = len(text), len(x)
  classifier = torch.nn.Linear(x.shape[1], ways)
  classifier.weight.data = task["one_hot"].T @ x
  own = ((x @ text.T) * task["one_hot"]).sum(0) / task["one_hot"].sum(0)
  blend = torch.full((ways,), 250 * own.mean().item(), requires_grad=True)
  rate = 4 * count / torch.linalg.eigvalsh(x.T @ x).max().item()
  blend_rate = count / (4 * ((x @ text.T) ** 2).sum(0).max().item())
  predict = lambda rows: classifier(rows) + blend * (rows @ text.T)
  optimizer = torch.optim.SGD(classifier.parameters(), lr=rate, momentum=0.9)
  for t in range(_settings("lp_plus_plus").steps):
    optimizer.zero_grad()
    F.cross_entropy(predict(x), task["labels"]).backward()
    optimizer.step()
    if (t + 1) % 10 == 0:
      blend.data -= blend_rate * blend.grad.data
  return predict(query)


def _clap(task: Task):
  text, one_hot = task["text"], task["one_hot"]
  prototypes = text.clone().requires_grad_()
  chances = _cosines(task["support"], text).softmax(-1)
  held = (chances * one_hot).sum(0) / one_hot.sum(0)

  def loss():
    penalty = (held * (prototypes - text).pow(2).sum(-1)).mean()
    return F.cross_entropy(_cosines(task["support"], prototypes), task["labels"]) + penalty

  optimizer = torch.optim.SGD([prototypes], lr=0.1, momentum=0.9)
  _descend(loss, optimizer, _settings("clap").steps, "warm")
  return _cosines(task["query"], prototypes)


def _prolip(task: Task):
  start = task["projection"]
  kernel = start.clone().requires_grad_()
  predict = lambda rows: _cosines(rows @ kernel, task["text"])
  shots = len(task["labels"]) / len(task["text"])

  def loss():
    penalty = ((kernel - start) ** 2).sum() / shots
    return F.cross_entropy(predict(task["support"]), task["labels"]) + penalty

  optimizer = torch.optim.Adam([kernel], lr=1e-5, eps=1e-4)
  _descend(loss, optimizer, _settings("prolip").steps, "cosine")
  return predict(task["query"])


def _tim_logits(rows, weight):
  return 15 * (rows @ weight.T - (weight**2).sum(1) / 2 - (rows**2).sum(1, keepdim=True) / 2)


def _tim(task: Task):
  x, query, one_hot = _unit(task["support"]), _unit(task["query"]), task["one_hot"]
  weight, known, rest = _means(x, one_hot), 0.1 / 1.1, len(x) / len(query)
  part = lambda wanted, has, rows: wanted.T @ rows + weight * has.sum(0)[:, None] - has.T @ rows
  for _ in range(_settings("tim").steps):
    own, found = (_tim_logits(rows, weight).softmax(1) for rows in (x, query))
    soft = found**1.1 / (found**1.1).sum(0) ** 0.5
    soft = soft / soft.sum(1, keepdim=True)
    total = known * one_hot.sum(0) + rest * soft.sum(0)
    weight = (known * part(one_hot, own, x) + rest * part(soft, found, query)) / total[:, None]
  return _tim_logits(query, weight)


def _tim_gd(task: Task):
  x, query, one_hot = _unit(task["support"]), _unit(task["query"]), task["one_hot"]
  weight = _means(x, one_hot).requires_grad_()

  def loss():
    own, found = (_tim_logits(rows, weight).softmax(1) for rows in (x, query))
    supervised = -(one_hot * torch.log(own + 1e-12)).sum(1).mean()
    conditional = -(found * torch.log(found + 1e-12)).sum(1).mean()
    marginal = -(found.mean(0) * torch.log(found.mean(0))).sum()
    return 0.1 * supervised - (marginal - 0.1 * conditional)

  _descend(loss, torch.optim.Adam([weight], lr=1e-4), _settings("tim_gd").steps)
  return _tim_logits(query, weight)


def _laplacian_shot(task: Task):
  x, query = _unit(task["support"]).numpy(), _unit(task["query"]).numpy()
  means = _means(torch.as_tensor(x), task["one_hot"]).numpy()
  unary = ((query[:, None] - means[None]) ** 2).sum(-1)
  away = ((query[:, None] - query[None]) ** 2).sum(-1)
  near = np.zeros_like(away)
  np.put_along_axis(near, np.argsort(away, 1)[:, 1:3], 1.0, 1)
  logits = -unary
  for _ in range(20):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    logits = -unary + 0.5 * near @ (powers / powers.sum(1, keepdims=True))
  return torch.as_tensor(logits)


LOOPS: dict[str, Callable[[Task], Any]] = {
  loop.__name__[1:]: loop
  for loop in (
    _ridge, _logistic, _knn, _mahalanobis, _tip_adapter, _tip_adapter_f, _clip_adapter, _taskres,
    _lp_plus_plus, _clap, _prolip, _tim, _tim_gd, _laplacian_shot,
  )
}  # fmt: skip
