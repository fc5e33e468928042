"""Heads as pure functions: hand-made values, padding, single classes, gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from mdtrap_jax.data.task import Task
from mdtrap_jax.methods import ncc, url
from mdtrap_jax.methods.heads import METHODS, Domain, make_method, seen_domains
from mdtrap_jax.methods.linear import linear
from mdtrap_jax.objectives.losses import symmetric_cross_entropy, unit, unit_or_zero
from tests.methods.reported import by_hand, reported

WIDTH = 16


def make_task(counts=(3, 1, 4), queries=2, seed=0, shape=(WIDTH,)):
  rng = np.random.default_rng(seed)
  labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
  query_labels = np.repeat(np.arange(len(counts)), queries).astype(np.int32)
  centers = rng.standard_normal((len(counts), *shape))
  rows = lambda own: jnp.asarray(
    centers[own] + 0.7 * rng.standard_normal((len(own), *shape)), jnp.float32
  )
  return Task(rows(labels), jnp.asarray(labels), rows(query_labels), jnp.asarray(query_labels))


def pad(task, support, query):
  def rows(values, labels, size):
    extra = size - len(labels)
    # Not the rows that `gather` pads with: nothing may depend on them.
    junk = 7.0 * jnp.ones((extra, *values.shape[1:]), values.dtype)
    return jnp.concatenate([values, junk]), jnp.pad(labels, (0, extra), constant_values=-1)

  return Task(
    *rows(task.support, task.support_labels, support), *rows(task.query, task.query_labels, query)
  )


def _adapt(method, task):
  fit = method.fit(None, task, jax.random.key(3))
  representations = method.represent(None, fit.params, task)
  return fit.params, fit.losses, method.predict(task, representations)


def adapt(method, task):
  return jax.jit(functools.partial(_adapt, method))(task)


def expanded_symmetric_loss(z, prototypes, labels, scale):
  """The published form: prototypes expanded to one per image, N×N logits."""
  logits = scale * unit(z) @ unit(prototypes)[labels].T
  target = jnp.arange(len(labels))
  loss = optax.softmax_cross_entropy_with_integer_labels
  return (loss(logits, target).mean() + loss(logits.T, target).mean()) / 2


def test_symmetric_loss_equals_its_expanded_form_and_its_gradient():
  task = make_task()
  means = ncc.prototypes(task.support, task.support_labels, 3)
  arguments = (task.support, means)
  ours = lambda z, p: symmetric_cross_entropy(z, p, task.support_labels, 7.0)
  theirs = lambda z, p: expanded_symmetric_loss(z, p, task.support_labels, 7.0)
  np.testing.assert_allclose(*(jax.jit(loss)(*arguments) for loss in (ours, theirs)), rtol=1e-6)
  gradients = [jax.jit(jax.grad(loss, (0, 1)))(*arguments) for loss in (ours, theirs)]
  for a, b in zip(*gradients, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_gradients_are_right_with_padding_and_an_absent_class():
  with jax.enable_x64(True):
    rng = np.random.default_rng(1)
    z, p = jnp.asarray(rng.standard_normal((5, 4))), jnp.asarray(rng.standard_normal((3, 4)))
    p = p.at[1].set(0.0)
    labels = jnp.array([0, 2, 2, 0, -1])
    for loss in (symmetric_cross_entropy, url.prototype_cross_entropy):
      check_grads(jax.jit(lambda a: loss(a, p, labels, 3.0)), (z,), 1, modes=["rev"])  # noqa: B023
      gradient = jax.jit(jax.grad(lambda b: loss(z, b, labels, 3.0)))(p)  # noqa: B023
      assert jnp.isfinite(gradient).all()
      np.testing.assert_array_equal(gradient[1], 0.0)


def test_unit_or_zero_keeps_a_zero_row_and_its_gradient_zero():
  rows = jnp.array([[3.0, 4.0], [0.0, 0.0]])
  np.testing.assert_allclose(unit_or_zero(rows), [[0.6, 0.8], [0.0, 0.0]])
  assert jnp.isfinite(jax.grad(lambda r: unit_or_zero(r).sum())(rows)).all()


def test_prototypes_and_prediction_by_hand():
  features = jnp.array([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0], [9.0, 9.0]])
  labels = jnp.array([0, 0, 1, -1])
  means = ncc.prototypes(features, labels, 3)
  np.testing.assert_allclose(means, [[2.0, 0.0], [0.0, 5.0], [0.0, 0.0]])
  query = jnp.array([[1.0, 0.1], [1.0, 0.2], [5.0, 5.0]])
  predicted = ncc.predict(query, means, labels, jnp.array([0, 1, -1]))
  assert predicted.accuracy == 0.5  # the last row is padding
  assert (predicted.cosines[:, 2] == -jnp.inf).all()  # an absent class is never chosen


def test_a_nan_query_is_no_hit():
  means = jnp.eye(2)
  query = jnp.array([[jnp.nan, 0.0], [1.0, 0.0]])
  assert ncc.predict(query, means, jnp.array([0, 1]), jnp.array([0, 0])).accuracy == 0.5


@pytest.mark.parametrize("name", ["url", "copa"])
def test_heads_start_as_ncc_and_lower_their_loss(name):
  task = make_task((5, 5, 5), seed=4)
  method = make_method(name, ways=3, steps=20)
  start = method.head.init(jax.random.key(0), jax.ShapeDtypeStruct((WIDTH,), jnp.float32))
  before = method.predict(task, method.represent(None, start, task))
  baseline = make_method("ncc", ways=3)
  same = baseline.predict(task, baseline.represent(None, {}, task))
  np.testing.assert_allclose(before.cosines, same.cosines, atol=1e-6)
  losses = adapt(method, task)[1]
  assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["url", "copa"])
def test_single_images_and_a_single_class_have_a_defined_result(name):
  method = make_method(name, ways=3, steps=3)
  run = jax.jit(lambda task: _adapt(method, task))  # one program: padding makes them alike
  for counts in ((1, 1, 1), (1, 9), (4,)):
    params, losses, predicted = run(pad(make_task(counts), 10, 6))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((params, losses)))
    assert 0 <= predicted.accuracy <= 1
    if len(counts) == 1:
      assert predicted.accuracy == 1.0


@pytest.mark.parametrize("name", ["url", "copa"])
def test_a_run_says_accuracy_and_gap_before_and_after(name):
  task = make_task((1, 2, 6), queries=8, seed=10)
  method = make_method(name, ways=4, steps=20, learning_rate=0.02 if name == "copa" else None)
  found = reported(method, None, pad(task, 12, 25))
  params = jax.device_get(adapt(method, task)[0])
  maps = [params[part] for part in (("shared", "shared") if name == "url" else ("image", "proto"))]
  before, after = (by_hand(*task[:4], maps) for maps in (None, maps))
  np.testing.assert_allclose((found.ncc_accuracy, found.gap_before), before, rtol=1e-4)
  np.testing.assert_allclose((found.accuracy, found.gap_after), after, rtol=1e-4)
  assert before[0] != after[0]
  assert abs(after[1] - before[1]) > 0.01 * before[1]


def test_nan_features_show_in_the_losses():
  task = make_task()
  task = task._replace(support=task.support.at[0, 0].set(jnp.nan))
  _, losses, predicted = adapt(make_method("copa", ways=3, steps=2), task)
  assert jnp.isnan(losses).all()
  assert predicted.accuracy == 0.0


def test_linear_has_the_derivative_of_a_product():
  rows, weight = (
    jax.random.normal(jax.random.key(k), shape) for k, shape in ((0, (4, 3)), (1, (3, 5)))
  )
  f = lambda fn: jax.grad(lambda r, w: (fn(r, w) ** 2).sum(), (0, 1))(rows, weight)
  for a, b in zip(f(linear), f(lambda r, w: r @ w), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5)


def test_bad_methods_are_named():
  with pytest.raises(ValueError, match="copa_tsa"):
    make_method("capo", ways=5)
  with pytest.raises(ValueError, match="model.name=resnet18"):
    make_method("copa_tsa", ways=5)
  with pytest.raises(ValueError, match="feature maps"):
    adapt(make_method("copa_transformer", ways=3, steps=1), make_task())
  with pytest.raises(ValueError, match="multiple of 8"):
    adapt(make_method("copa_transformer", ways=3, steps=1), make_task(shape=(2, 2, 12)))


LAYERS_23, ALL_LAYERS = ("layer2", "layer3"), ("layer1", "layer2", "layer3", "layer4")


@pytest.mark.parametrize(
  ("name", "domain", "steps", "rate", "l2", "ratio", "layers"),
  [
    ("ncc", Domain("isic"), 0, 0.0, 0.0, 1.0, ALL_LAYERS),
    ("url", Domain("aircraft", seen=True), 40, 0.1, 0.0, 1.0, ALL_LAYERS),
    ("url", Domain("mnist"), 40, 1.0, 0.0, 1.0, ALL_LAYERS),
    ("url_tsa", Domain("aircraft", seen=True), 40, 0.1, 0.0, 0.5, ALL_LAYERS),  # adapters: 0.05
    ("url_tsa", Domain("isic", one_shot=True), 40, 1.0, 0.0, 0.5, ALL_LAYERS),  # adapters: 0.5
    ("copa", Domain("isic"), 50, 1e-3, 0.1, 1.0, ALL_LAYERS),
    ("copa", Domain("cifar10", seen=True), 50, 1e-3, 0.1, 1.0, ALL_LAYERS),
    ("copa", Domain("mnist", one_shot=True), 50, 5e-3, 0.0, 1.0, ALL_LAYERS),
    ("copa_transformer", Domain("isic"), 50, 1e-4, 0.1, 1.0, ALL_LAYERS),
    ("copa_transformer", Domain("traffic_sign"), 50, 1e-3, 0.0, 1.0, ALL_LAYERS),
    ("copa_tsa", Domain("aircraft", seen=True), 40, 1e-3, 0.1, 0.1, LAYERS_23),
    ("copa_tsa", Domain("isic", one_shot=True), 40, 1e-4, 0.1, 0.1, LAYERS_23),
    ("copa_tsa", Domain("traffic_sign"), 40, 5e-3, 0.0, 0.5, LAYERS_23),
    ("copa_tsa", Domain("cifar100", one_shot=True), 40, 5e-4, 0.1, 0.5, LAYERS_23),
  ],
)
def test_published_settings(name, domain, steps, rate, l2, ratio, layers):
  settings = METHODS[name].settings(domain)
  assert settings.learning_rate == pytest.approx(rate)
  assert settings._replace(learning_rate=0)[:5] == (steps, 0, l2, ratio, layers)


def test_what_is_known_of_a_domain_reaches_its_method():
  # The first step of Adadelta is proportional to its rate.
  moved = lambda **known: jnp.abs(
    adapt(make_method("url", ways=3, steps=1, **known), make_task())[0]["shared"] - jnp.eye(WIDTH)
  ).max()
  unseen = moved(domain="aircraft")
  np.testing.assert_allclose(moved(domain="aircraft", seen=True), 0.1 * unseen, rtol=1e-2)
  np.testing.assert_allclose(moved(seen=True, learning_rate=0.3), 0.3 * unseen, rtol=1e-2)


def test_seen_domains_by_the_names_of_the_published_sets():
  mdl = [
    "ilsvrc_2012",
    "omniglot",
    "aircraft",
    "cu_birds",
    "dtd",
    "quickdraw",
    "fungi",
    "vgg_flower",
  ]
  unseen = ["traffic_sign", "mscoco", "mnist", "cifar10", "cifar100", "isic"]
  entries = {name: f"meta/{name}" for name in mdl + unseen}
  assert seen_domains("mdl", entries) == set(mdl)
  assert seen_domains("sdl", entries) == {"ilsvrc_2012"}
  assert seen_domains("", entries) == set()
  assert seen_domains("sdl, isic", entries) == {"ilsvrc_2012", "isic"}


def test_images_of_ones_own_are_unseen_unless_named():
  own = {"fungi": "fungi=~/mushrooms", "isic": "isic"}
  assert seen_domains("mdl", own) == set()
  assert seen_domains("mdl,fungi", own) == {"fungi"}
  assert seen_domains("sdl,dtd", own) == set()  # DTD is real, and not in this run
  with pytest.raises(ValueError, match=r"config.seen='mld'.*mdl, sdl"):
    seen_domains("mld", own)


@pytest.mark.parametrize("pool", ncc.POOLS)
@pytest.mark.parametrize("distance", ncc.DISTANCES)
def test_ncc_by_every_pool_and_distance(pool, distance):
  task = make_task((3, 1, 4), queries=5, seed=3)
  support, query = np.asarray(task.support), np.asarray(task.query)
  rows = [support[np.asarray(task.support_labels) == c] for c in range(3)]
  means = np.stack([getattr(np, pool)(own, axis=0) for own in rows])
  lengths = lambda a: np.linalg.norm(a, axis=-1, keepdims=True)
  expected = {
    "cosine": (query / lengths(query)) @ (means / lengths(means)).T,
    "l2": -((query[:, None] - means[None]) ** 2).sum(-1),
  }[distance]
  method = make_method("ncc", ways=4, prototypes=pool, distance=distance)
  _, _, found = adapt(method, task)
  np.testing.assert_allclose(found.cosines[:, :3], expected, rtol=1e-4, atol=1e-5)
  assert (found.cosines[:, 3] == -np.inf).all()


def test_urls_loss_of_distances():
  # URL's code: -‖x - p‖² without a scale, p the mean of the mapped images.
  task = make_task((2, 2), seed=6)
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda rows: 0.2 * np.asarray(rows, np.float64), task[:1] + task[2:3])
    task = task._replace(support=wide[0], query=wide[1])
    _, losses, _ = adapt(make_method("url", ways=2, steps=1, distance="l2"), task)
  means = task.support.reshape(2, 2, -1).mean(1)
  logits = -((task.support[:, None] - means[None]) ** 2).sum(-1)
  chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  expected = -np.log(chances[np.arange(4), np.asarray(task.support_labels)]).mean()
  np.testing.assert_allclose(losses[0], expected, rtol=1e-9)
