"""What a run says of one task, and the same by hand."""

from types import SimpleNamespace

import jax
import numpy as np


def reported(method, params, task) -> SimpleNamespace:
  """`accuracy`, `ncc_accuracy`, `gap_before`, `gap_after` of one task."""

  def run(params, task):
    prepared, state = method.prepare(params, task)
    before = method.baseline(params, prepared, state)
    state = method.run(params, prepared, state, 0, method.steps) if method.steps else state
    return before, method.evaluate(params, prepared, state)

  before, after = jax.device_get(jax.jit(run)(params, task))
  return SimpleNamespace(
    accuracy=after.accuracy,
    ncc_accuracy=before.accuracy,
    gap_before=before.extras["gap"],
    gap_after=after.extras["gap"],
  )


def by_hand(support, labels, query, query_labels=None, maps=None):
  """Accuracy by cosine to the class means, and the gap of one prototype per image.

  Args:
    support: `[N, D]`, without padding.
    labels: `[N]`.
    query: `[Q, D]`.
    query_labels: `[Q]`; `None`: `labels`.
    maps: of images and of prototypes, `[D, D]` each; `None`: none.
  """
  support, labels, query = map(np.asarray, (support, labels, query))
  unit = lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True)
  query_labels = labels if query_labels is None else query_labels
  classes = np.unique(labels)
  means = np.stack([support[labels == c].mean(0) for c in classes])
  image_map, prototype_map = maps or (np.eye(support.shape[1]),) * 2
  prototypes = unit(means @ prototype_map)
  chosen = classes[(unit(query @ image_map) @ prototypes.T).argmax(1)]
  own = prototypes[np.searchsorted(classes, labels)]
  gap = np.linalg.norm((unit(support @ image_map) - own).mean(0))
  return (chosen == query_labels).mean(), gap
