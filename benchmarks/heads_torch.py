"""CoPA's adaptation as a plain PyTorch loop, one task at a time: what the library is timed against.

`as_published` does what the published loop does in every step: maps by 1×1 convolutions, the
loss and accuracy of the queries, the training accuracy. `lean` leaves all that out and keeps
what changes the heads: matrix products, the loss, Adam.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

LOGIT_SCALE = math.exp(2.0)


def class_means(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
  """Prototypes `[C, D]` of `[N, D]`."""
  classes = torch.arange(int(labels.max()) + 1)
  member = (classes[:, None] == labels[None]).to(features)
  return member @ features / member.sum(1, keepdim=True)


def symmetric_loss(images, prototypes, labels):
  """The contrastive loss with prototypes expanded to one per image."""
  logits = LOGIT_SCALE * F.normalize(images) @ F.normalize(prototypes[labels]).T
  target = torch.arange(len(labels))
  return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


@torch.no_grad()
def accuracy(images, prototypes, labels) -> float:
  """Share of rows whose nearest prototype by cosine is their own."""
  similarity = F.cosine_similarity(images[:, None], prototypes[None], dim=-1, eps=1e-30)
  return (similarity.argmax(1) == labels).float().mean().item()


def as_published(task, steps: int) -> float:
  """Adapts one task; the queries' accuracy after the last step.

  Args:
    task: numpy arrays `support [N, D]`, `support_labels [N]`, `query`, `query_labels`.
    steps: `T`.
  """
  support, support_labels, query, query_labels = map(torch.as_tensor, task)
  support_labels, query_labels = support_labels.long(), query_labels.long()
  maps = lambda rows: rows[:, :, None, None]
  prototypes = maps(class_means(support, support_labels))
  images, queries = maps(support), maps(query)
  heads = [maps(torch.eye(support.shape[1])).requires_grad_(True) for _ in range(2)]
  optimizer = torch.optim.Adam(heads, lr=1e-3, weight_decay=0.1)

  def evaluate():
    with torch.no_grad():
      z, p = (
        F.conv2d(rows, head).flatten(1)
        for rows, head in zip((queries, prototypes), heads, strict=True)
      )
      return symmetric_loss(z, p, query_labels).item(), accuracy(z, p, query_labels)

  for _ in range(steps):
    evaluate()
    optimizer.zero_grad()
    z, p = (
      F.conv2d(rows, head).flatten(1)
      for rows, head in zip((images, prototypes), heads, strict=True)
    )
    loss = symmetric_loss(z, p, support_labels)
    accuracy(z, p, support_labels)
    loss.backward()
    optimizer.step()
  return evaluate()[1]


def lean(task, steps: int) -> float:
  """The same adaptation with nothing in a step that it could do without; see `as_published`."""
  support, support_labels, query, query_labels = map(torch.as_tensor, task)
  support_labels, query_labels = support_labels.long(), query_labels.long()
  prototypes = class_means(support, support_labels)
  heads = [torch.eye(support.shape[1]).requires_grad_(True) for _ in range(2)]
  optimizer = torch.optim.Adam(heads, lr=1e-3, weight_decay=0.1)
  for _ in range(steps):
    optimizer.zero_grad()
    symmetric_loss(support @ heads[0].T, prototypes @ heads[1].T, support_labels).backward()
    optimizer.step()
  with torch.no_grad():
    return accuracy(query @ heads[0].T, prototypes @ heads[1].T, query_labels)
