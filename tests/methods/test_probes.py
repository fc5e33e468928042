"""Probes against twins in NumPy, PyTorch and scikit-learn, in float64, and the papers' settings."""

import functools
import math

import jax
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from mdtrap_jax.data.task import Task
from mdtrap_jax.methods import heads
from mdtrap_jax.methods.heads import METHODS, Domain, make_method
from mdtrap_jax.methods.probes import clap, logistic, lp_plus_plus, tim
from mdtrap_jax.methods.settings import Settings

WAYS, SHOTS, QUERIES, WIDTH, SCALE = 3, 4, 5, 16, 30.0
STEPS = 12  # LP++ moves its multipliers in the tenth


@functools.cache
def task(shots=SHOTS, seed=0):
  """Classes that overlap, texts near them; float64."""
  rng = np.random.default_rng(seed)
  centers = rng.standard_normal((WAYS, WIDTH))
  labels = lambda count: np.repeat(np.arange(WAYS, dtype=np.int32), count)
  rows = lambda own: centers[own] + 1.5 * rng.standard_normal((len(own), WIDTH))
  support, query = labels(shots), labels(QUERIES)
  text = 3 * (centers + rng.standard_normal((WAYS, WIDTH)))
  return Task(rows(support), support, rows(query), query, np.int32(1), np.int32(2), text=text)


def run(name, weights=None, own=None, **overrides):
  """Start, end and logits of the queries of one task."""
  with jax.enable_x64(True):
    text = METHODS[name].text
    method = make_method(name, ways=WAYS, logit_scale=SCALE if text else None, **overrides)

    def whole(weights, task):
      prepared, start = method.prepare(weights, task)
      end = method.run(weights, prepared, start, 0, method.steps)
      return start.params, end, method.evaluate(weights, prepared, end).cosines

    start, end, logits = jax.device_get(jax.jit(whole)(weights, task() if own is None else own))
    assert logits.dtype == np.float64
    return start, end.params, logits, end.opt_state.get("loss")


def unit(rows):
  return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def tensors(*arrays):
  return [torch.tensor(np.asarray(array), dtype=torch.float64) for array in arrays]


ONE_HOT, LABELS = np.eye(WAYS)[task().support_labels], torch.tensor(task().support_labels).long()


def descend(params, loss, optimizer, rates=None):
  """PyTorch's loop; the last loss before its step."""
  for t in range(STEPS):
    if rates is not None:
      optimizer.param_groups[0]["lr"] = rates(t)
    optimizer.zero_grad()
    value = loss()
    value.backward()
    optimizer.step()
  return value.item()


def half_wave(rate):
  return lambda t: rate * (1 + math.cos(math.pi * t / STEPS)) / 2


def warm(rate):
  """CoOp's scheduler as its library counts: one epoch at 1e-5, then the cosine from its start."""
  return lambda t: 1e-5 if t == 0 else half_wave(rate)(t - 1)


def cosine_logits(images, texts):
  return SCALE * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T


@pytest.mark.parametrize("shots", [4, 6])  # fewer rows than features, and more
def test_ridge(shots):
  own = task(shots)
  x, y = unit(own.support), np.eye(WAYS)[own.support_labels]
  weight = np.linalg.inv(x.T @ x + 0.5 * np.eye(WIDTH)) @ x.T @ y
  _, _, logits, _ = run("ridge", own=own, l2=0.5)
  np.testing.assert_allclose(logits, unit(own.query) @ weight, atol=1e-10)


def test_logistic_is_scikit_learns():
  theirs = LogisticRegression(C=1.0, tol=1e-10, max_iter=1000)
  theirs.fit(unit(task().support), task().support_labels)
  _, params, logits, _ = run("logistic")
  expected = theirs.decision_function(unit(task().query))
  centered = lambda rows: rows - rows.mean(1, keepdims=True)  # the bias is free up to a shift
  np.testing.assert_allclose(centered(logits), centered(expected), atol=1e-6)


@pytest.mark.parametrize("neighbors", [1, 3])
def test_knn(neighbors):
  similarity = unit(task().query) @ unit(task().support).T
  votes = np.zeros((len(similarity), WAYS))
  for row, own in zip(votes, similarity, strict=True):
    for i in np.argsort(-own)[:neighbors]:
      row[task().support_labels[i]] += math.exp(own[i] / 0.07)
  shares = votes / votes.sum(1, keepdims=True)
  _, _, logits, _ = run("knn", neighbors=neighbors)
  np.testing.assert_allclose(logits, np.log(shares + 1e-3), atol=1e-10)


@pytest.mark.parametrize("shots", [4, 6])  # by the rows' products, and by covariances
def test_mahalanobis(shots):
  own = task(shots)
  whole, logits = np.cov(own.support.T), []
  for c in range(WAYS):
    rows = own.support[own.support_labels == c]
    share = len(rows) / (len(rows) + 1)
    precision = np.linalg.inv(share * np.cov(rows.T) + (1 - share) * whole + np.eye(WIDTH))
    away = own.query - rows.mean(0)
    logits.append(-np.einsum("qd,de,qe->q", away, precision, away))
  _, _, found, _ = run("mahalanobis", own=own)
  np.testing.assert_allclose(found, np.stack(logits, 1), rtol=1e-9)


def test_a_single_image_has_no_covariance():
  own = task(1)
  whole = np.cov(own.support.T)
  away = own.query[:, None] - own.support[None]
  expected = -np.einsum("qcd,de,qce->qc", away, np.linalg.inv(whole / 2 + np.eye(WIDTH)), away)
  np.testing.assert_allclose(run("mahalanobis", own=own)[2], expected, rtol=1e-9)


def tip(rows, keys):
  affinity = F.normalize(rows, dim=-1) @ keys.T
  cache = torch.exp(-(5.5 - 5.5 * affinity)) @ torch.tensor(ONE_HOT)
  return cosine_logits(rows, torch.tensor(task().text)) + 1.0 * cache


def test_tip_adapter_and_its_tuned_keys():
  support, query = tensors(task().support, task().query)
  keys = F.normalize(support, dim=-1)
  _, _, logits, _ = run("tip_adapter")
  np.testing.assert_allclose(logits, tip(query, keys), rtol=1e-10)
  keys = keys.clone().requires_grad_()
  optimizer = torch.optim.AdamW([keys], eps=1e-4)
  loss = descend(
    keys, lambda: F.cross_entropy(tip(support, keys), LABELS), optimizer, half_wave(1e-3)
  )
  _, params, logits, term = run("tip_adapter_f", steps=STEPS)
  np.testing.assert_allclose(params["keys"], keys.detach(), atol=1e-10)
  np.testing.assert_allclose(logits, tip(query, keys).detach(), rtol=1e-9)
  assert term.value == pytest.approx(loss, abs=1e-10)


def test_clip_adapter():
  support, query, text = tensors(task().support, task().query, task().text)
  start, params, logits, term = run("clip_adapter", steps=STEPS)
  assert np.abs(start["down"]).max() <= WIDTH**-0.5
  down, up = (tensor.requires_grad_() for tensor in tensors(start["down"], start["up"]))

  def predict(rows):
    added = F.relu(F.relu(rows @ down) @ up)
    return cosine_logits(0.2 * added + 0.8 * rows, text)

  optimizer = torch.optim.SGD([down, up], lr=1, momentum=0.9, weight_decay=5e-4)
  loss = descend(None, lambda: F.cross_entropy(predict(support), LABELS), optimizer, warm(2e-3))
  np.testing.assert_allclose(params["down"], down.detach(), atol=1e-10)
  np.testing.assert_allclose(logits, predict(query).detach(), rtol=1e-9)
  assert term.value == pytest.approx(loss, abs=1e-10)


def test_taskres():
  support, query, text = tensors(task().support, task().query, task().text)
  residual = torch.zeros_like(text, requires_grad=True)
  predict = lambda rows: cosine_logits(rows, text + 0.5 * residual)
  optimizer = torch.optim.Adam([residual], weight_decay=5e-4)
  loss = descend(residual, lambda: F.cross_entropy(predict(support), LABELS), optimizer, warm(2e-3))
  _, params, logits, term = run("taskres", steps=STEPS)
  np.testing.assert_allclose(params["residual"], residual.detach(), atol=1e-9)
  np.testing.assert_allclose(logits, predict(query).detach(), rtol=1e-9)
  assert term.value == pytest.approx(loss, abs=1e-9)


def test_lp_plus_plus():
  support, query, text = (
    F.normalize(rows, dim=-1) for rows in tensors(task().support, task().query, task().text)
  )
  count = len(support)
  weight = torch.stack([support[c == LABELS].sum(0) for c in range(WAYS)]).requires_grad_()
  bias = torch.zeros(WAYS, dtype=torch.float64, requires_grad=True)
  own = (support @ text.T)[torch.arange(count), LABELS]
  means = torch.stack([own[c == LABELS].mean() for c in range(WAYS)])
  multiplier = torch.full((WAYS,), 250 * means.mean().item(), dtype=torch.float64)
  multiplier.requires_grad_()
  rate = 4 * count / torch.linalg.eigvalsh(support.T @ support).max().item()
  blend = count / (4 * ((support @ text.T) ** 2).sum(0).max().item())
  predict = lambda rows: rows @ weight.T + bias + multiplier * (rows @ text.T)
  optimizer = torch.optim.SGD([weight, bias], lr=rate, momentum=0.9)
  for t in range(STEPS):
    optimizer.zero_grad()  # not of the multipliers, as in the published code
    loss = F.cross_entropy(predict(support), LABELS)
    loss.backward()
    optimizer.step()
    if (t + 1) % 10 == 0:
      multiplier.data -= blend * multiplier.grad.data
  _, params, logits, term = run("lp_plus_plus", steps=STEPS)
  np.testing.assert_allclose(params["multiplier"], multiplier.detach(), rtol=1e-9)
  np.testing.assert_allclose(logits, predict(query).detach(), rtol=1e-8)
  assert term.value == pytest.approx(loss.item(), abs=1e-9)


def test_clap():
  support, query, text = tensors(task().support, task().query, task().text)
  prototypes = text.clone().requires_grad_()
  chances = cosine_logits(support, text).softmax(-1)
  held = torch.diag(chances.T @ torch.tensor(ONE_HOT)) / SHOTS

  def loss():
    moved = (prototypes - text).pow(2).sum(-1)
    return F.cross_entropy(cosine_logits(support, prototypes), LABELS) + (held * moved).mean()

  optimizer = torch.optim.SGD([prototypes], lr=1, momentum=0.9)
  last = descend(prototypes, loss, optimizer, warm(0.1))
  _, params, logits, term = run("clap", steps=STEPS)
  np.testing.assert_allclose(logits, cosine_logits(query, prototypes).detach(), rtol=1e-8)
  assert term.value == pytest.approx(last, abs=1e-9)


def test_prolip():
  rng = np.random.default_rng(5)
  kernel, bias = rng.standard_normal((WIDTH, WIDTH)), rng.standard_normal(WIDTH)
  weights = {"image": {"stem": {"projection": {"kernel": kernel, "bias": bias}}}}
  support, query, text, start, shift = tensors(
    task().support, task().query, task().text, kernel, bias
  )
  tuned = start.clone().requires_grad_()
  predict = lambda rows: cosine_logits(rows @ tuned + shift, text)
  loss = lambda: F.cross_entropy(predict(support), LABELS) + ((tuned - start) ** 2).sum() / SHOTS
  optimizer = torch.optim.Adam([tuned], eps=1e-4)
  last = descend(tuned, loss, optimizer, half_wave(1e-2))
  picked = METHODS["prolip"].weights(weights)
  _, params, logits, term = run("prolip", weights=picked, steps=STEPS, learning_rate=1e-2)
  np.testing.assert_allclose(params["kernel"], tuned.detach(), atol=1e-9)
  np.testing.assert_allclose(logits, predict(query).detach(), rtol=1e-8)
  assert term.value == pytest.approx(last, abs=1e-9)


def test_tim_by_descent():
  support, query = (F.normalize(rows, dim=-1) for rows in tensors(task().support, task().query))
  weight = torch.stack([support[c == LABELS].mean(0) for c in range(WAYS)]).requires_grad_()

  def chances(rows):
    return (-15 / 2 * torch.cdist(rows, weight) ** 2).softmax(-1)

  def loss():
    own, found = chances(support), chances(query)
    supervised = -(torch.tensor(ONE_HOT) * torch.log(own + 1e-12)).sum(1).mean()
    conditional = -(found * torch.log(found + 1e-12)).sum(1).mean()
    marginal = -(found.mean(0) * torch.log(found.mean(0))).sum()
    return 0.1 * supervised - (marginal - 0.1 * conditional)

  last = descend(weight, loss, torch.optim.Adam([weight], lr=1e-4))
  _, params, logits, term = run("tim_gd", steps=STEPS)
  np.testing.assert_allclose(params["prototypes"], weight.detach(), atol=1e-9)
  np.testing.assert_allclose(
    logits, (-15 / 2 * torch.cdist(query, weight) ** 2).detach(), atol=1e-7
  )
  assert term.value == pytest.approx(last, abs=1e-9)


def test_tim_by_alternating_closed_forms():
  support, query = unit(task().support), unit(task().query)
  weight = np.stack([support[task().support_labels == c].mean(0) for c in range(WAYS)])

  def chances(rows):
    logits = -15 / 2 * ((rows[:, None] - weight[None]) ** 2).sum(-1)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)

  for _ in range(STEPS):
    own, found = chances(support), chances(query)
    soft = found**1.1 / (found**1.1).sum(0) ** 0.5
    soft /= soft.sum(1, keepdims=True)
    part = lambda wanted, has, rows: wanted.T @ rows + weight * has.sum(0)[:, None] - has.T @ rows  # noqa: B023
    known, rest = 0.1 / 1.1, len(support) / len(query)
    total = known * ONE_HOT.sum(0) + rest * soft.sum(0)
    weight = (known * part(ONE_HOT, own, support) + rest * part(soft, found, query)) / total[
      :, None
    ]
  _, params, _, _ = run("tim", steps=STEPS)
  np.testing.assert_allclose(params["prototypes"], weight, atol=1e-9)


@pytest.mark.parametrize("name", ["logistic", "lp_plus_plus", "clap", "tim"])
def test_within_the_span_of_its_rows_a_probe_is_the_same(name, monkeypatch):
  rng = np.random.default_rng(8)
  wide = lambda rows: (
    rows @ rng.standard_normal((WIDTH, 40)) + 0.1 * rng.standard_normal((len(rows), 40))
  )
  mixed = [wide(rows) for rows in (task().support, task().query, task().text)]
  own = task()._replace(support=mixed[0], query=mixed[1], text=mixed[2])
  reduced = run(name, own=own, steps=STEPS)
  for module in (logistic, lp_plus_plus, clap, tim):
    monkeypatch.setattr(module, "within_span", lambda probe: probe)
  monkeypatch.setattr(heads, "_make", heads._make.__wrapped__)  # made anew
  whole = run(name, own=own, steps=STEPS)
  np.testing.assert_allclose(reduced[2], whole[2], rtol=1e-6, atol=1e-7)
  assert reduced[3].value == pytest.approx(whole[3].value, rel=1e-6)
  width = lambda found: next(leaf.shape[1] for leaf in found[1].values() if leaf.ndim == 2)
  assert width(reduced) < width(whole) == 40


def test_laplacian_shot():
  support, query = unit(task().support), unit(task().query)
  means = np.stack([support[task().support_labels == c].mean(0) for c in range(WAYS)])
  unary = ((query[:, None] - means[None]) ** 2).sum(-1)
  near = np.zeros((len(query), len(query)))
  for i, row in enumerate(query):
    away = ((query - row) ** 2).sum(1)
    near[i, np.argsort(away)[1:3]] = 1  # the first is itself
  logits = -unary
  for _ in range(20):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    logits = -unary + 0.5 * near @ (powers / powers.sum(1, keepdims=True))
  np.testing.assert_allclose(run("laplacian_shot")[2], logits, atol=1e-10)


def test_what_starts_at_zero_shot_starts_there():
  support, text = task().support.astype(np.float32), task().text.astype(np.float32)
  own = task()._replace(support=support, query=task().query.astype(np.float32), text=text)
  expected = 100 * unit(own.query) @ unit(text).T
  for name in ("taskres", "clap"):
    method = make_method(name, ways=WAYS, steps=0)
    prepared, state = method.prepare(None, own)
    state = method.run(None, prepared, state, 0, method.steps)
    found = method.evaluate(None, prepared, state).cosines
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_zero_shot_sees_texts_alone():
  expected = SCALE * unit(task().query) @ unit(task().text).T
  logits = [run("zero_shot", own=task(shots))[2] for shots in (SHOTS, 1)]
  np.testing.assert_allclose(logits, [expected, SCALE * unit(task(1).query) @ unit(task(1).text).T])
  other = task()._replace(support=-task().support)  # whatever the support set shows
  np.testing.assert_array_equal(run("zero_shot", own=other)[2], logits[0])


def test_a_method_with_texts_says_that_there_are_none():
  method = make_method("tip_adapter", ways=WAYS)
  with pytest.raises(ValueError, match="texts of their classes, and these tasks have none"):
    method.prepare(None, task()._replace(text=None))


# By hand, from the papers and their code; see the sources in `methods/probes/`.
@pytest.mark.parametrize(
  ("name", "settings"),
  [
    ("zero_shot", dict(steps=0)),
    ("knn", dict(steps=0, neighbors=1)),
    ("ridge", dict(steps=0, l2=1.0)),  # λ from which R2-D2 starts
    ("logistic", dict(l2=1.0)),  # C = 1
    ("mahalanobis", dict(steps=0, l2=1.0)),  # β I of Simple CNAPS
    ("tip_adapter", dict(steps=0, alpha=1.0, beta=5.5)),
    ("tip_adapter_f", dict(steps=20, learning_rate=1e-3, alpha=1.0, beta=5.5)),
    ("clip_adapter", dict(steps=200, learning_rate=2e-3, l2=5e-4, alpha=0.2)),
    ("taskres", dict(steps=200, learning_rate=2e-3, l2=5e-4, alpha=0.5)),
    ("lp_plus_plus", dict(steps=300)),
    ("clap", dict(steps=300, learning_rate=0.1)),
    ("prolip", dict(steps=300, learning_rate=1e-5)),
    ("tim", dict(steps=150, l2=0.1, alpha=0.1, beta=15.0)),
    ("tim_gd", dict(steps=1000, learning_rate=1e-4, l2=0.1, alpha=0.1, beta=15.0)),
    ("laplacian_shot", dict(steps=0, alpha=0.5, neighbors=2)),
  ],
)
def test_published_settings(name, settings):
  found = METHODS[name].settings(Domain(shots=5))
  known = Settings(**{"steps": found.steps, **settings})
  assert found == known


@pytest.mark.parametrize(
  ("name", "shots", "steps"),
  [("clip_adapter", 1, 50), ("clip_adapter", 2, 100), ("clip_adapter", 4, 100),
   ("taskres", 1, 100), ("taskres", 4, 100), ("taskres", 16, 200)],
)  # fmt: skip
def test_epochs_by_shots(name, shots, steps):
  assert METHODS[name].settings(Domain(shots=shots)).steps == steps


def test_transductive_methods_are_marked():
  marked = {name for name, found in METHODS.items() if found.transductive}
  assert marked == {"tim", "tim_gd", "laplacian_shot"}
