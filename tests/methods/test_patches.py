"""Patch tokens: what they are in each family, and a term that asks for them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdtrap_jax.methods.all_way import AllWay
from mdtrap_jax.models import Specification, build, random_weights
from mdtrap_jax.objectives import losses, make_term, register, terms
from mdtrap_jax.objectives.pull_back import zero_cotangents
from tests.analysis.test_attention import numpy_norm
from tests.episodes import row, small_adaptation, small_config, small_episodes, smallest_clip
from tests.models.test_models import VARIANTS

OPTIONS = {"weight": 0.7, "window": (0, 5)}


def add_locality(context, weight):
  """Patches of a view are like those in the same places of its clean image, not like the mean."""

  def loss(features, batch, memory, key, step):
    z, clean = losses.unit(features.patches), losses.unit(features.clean_patches)
    z = z.reshape(-1, *clean.shape)  # [V, M, P, W]
    return jnp.mean(jnp.sum((z - z.mean(2, keepdims=True)) * clean[None], -1)), memory

  return make_term("locality", loss, weight, context.start, context.stop)


@pytest.fixture(autouse=True, scope="module")
def locality():
  register("locality", add_locality, clean=True, patches=True)
  yield
  terms._TERMS.pop("locality")


@functools.cache
def setup(weight=OPTIONS["weight"], **overrides):
  config = small_config(adapt__steps=5, adapt__views=2, objective__ra__weight=0.0, **overrides)
  config.objective.locality = OPTIONS | {"weight": weight}
  method, params = small_adaptation(config)
  return method, params, small_episodes(method.model, 3)


@functools.cache
def prepared(number, **overrides):
  method, params, episodes = setup(**overrides)
  fixed, state = jax.jit(method.prepare)(params, row(episodes, number))
  return fixed, state._replace(params=jax.tree.map(lambda x: x + 0.01, state.params))


def features_of(**overrides):
  """Of the second episode's first step."""
  method, params, _ = setup(**overrides)
  forward = lambda fixed, state: method.forward(params, fixed, state, 0, clean=True)["features"]
  return jax.jit(forward)(*prepared(1, **overrides))


@pytest.mark.parametrize("family", ["clip", "siglip", "pe-core"])
def test_they_are_all_but_the_class_token_after_the_last_norm(family):
  model = build(Specification(family, *VARIANTS[family]))
  params = random_weights(model, jax.random.key(0))
  stem, config = params["image"]["stem"], model.image
  stem["post_norm"] = jax.tree.map(lambda leaf: 1.5 * leaf + 0.1, stem["post_norm"])
  images = jax.random.normal(jax.random.key(1), (2, config.image_size, config.image_size, 3))
  last = jax.jit(lambda x: model.embed_image(params, x, stop=config.depth))(images)

  @jax.jit
  def encode(tokens):
    found = model.encode_image_tokens(params, tokens, start=config.depth, patches=True)
    return found, model.encode_image_tokens(params, tokens, start=config.depth)

  (embedding, patches), plain = encode(last)
  expected = numpy_norm(last, stem["post_norm"], config.epsilon)
  assert expected.shape[1] == config.patches + (family != "siglip")
  np.testing.assert_allclose(patches, expected[:, family != "siglip" :], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(embedding, plain, rtol=1e-5, atol=1e-6)
  if family == "clip":  # whose embedding is the token left out, behind the projection
    expected = expected[:, 0] @ np.asarray(stem["projection"]["kernel"])
    np.testing.assert_allclose(embedding, expected, rtol=1e-4, atol=1e-5)


def test_a_steps_gradient_against_finite_differences_and_the_loss_by_hand():
  method, params, _ = setup()
  fixed, state = prepared(1)
  with jax.enable_x64(True):
    double = lambda tree: jax.tree.map(
      lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )
    params, fixed, state = double((params, fixed, state))
    term = method.terms["locality"]

    @jax.jit
    def step(trained):
      moved = state._replace(params=trained)
      forward = method.forward(params, fixed, moved, 0, clean=True)
      zeros = zero_cotangents(forward["features"])
      cotangent, after = term.update(zeros, term.init(trained), trained, **forward)
      return forward["features"], after.value, forward["features_vjp"](cotangent)[0]

    features, value, gradient = step(state.params)
    direction = jax.tree.map(
      lambda x: jnp.asarray(np.random.default_rng(0).standard_normal(x.shape)), gradient
    )
    value_at = lambda h: step(jax.tree.map(lambda x, d: x + h * d, state.params, direction))[1]
    slope = (value_at(1e-5) - value_at(-1e-5)) / 2e-5
    assert abs(slope) > 1e-5
    found = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, direction)))
    np.testing.assert_allclose(found, OPTIONS["weight"] * slope, rtol=1e-5)
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  z, clean = unit(np.asarray(features.patches)), unit(np.asarray(features.clean_patches))
  assert (z.shape, clean.shape) == ((6, 4, 64), (3, 4, 64))  # view-major, and the class token out
  by_hand = [
    (z[view * 3 + image, patch] - z[view * 3 + image].mean(0)) @ clean[image, patch]
    for view in range(2)
    for image in range(3)
    for patch in range(4)
  ]
  np.testing.assert_allclose(value, np.mean(by_hand), rtol=1e-6)


def test_the_row_of_a_batch_and_of_chunks_equals_one_alone():
  method, params, episodes = setup(adapt__chunk=4)

  @jax.jit
  @jax.vmap
  def adapt(task):
    fixed, state = method.prepare(params, task)
    return method.run(params, fixed, state, 0, 3, clean=True)

  batch = adapt(episodes)
  alone, params, episodes = setup()
  fixed, start = jax.jit(alone.prepare)(params, row(episodes, 1))
  state = jax.jit(functools.partial(alone.run, clean=True))(params, fixed, start, 0, 3)
  close = lambda b, a: np.testing.assert_allclose(b[1], a, rtol=2e-2, atol=1e-4)
  jax.tree.map(close, batch.params, state.params)
  value = batch.opt_state["locality"].value
  np.testing.assert_allclose(value[1], state.opt_state["locality"].value, rtol=1e-3)
  assert abs(value[1]) > 1e-3


@pytest.mark.parametrize("tune", ["coop", "lora"])
def test_a_fixed_image_encoder_has_those_of_the_pretrained_model(tune):
  overrides = {"tune": tune, "coop__tokens": 2, "lora__encoder": "text"}
  method, params, _ = setup(**overrides)
  fixed, state = prepared(1, **overrides)
  found = features_of(**overrides)
  model, _ = smallest_clip()
  last = fixed.tokens  # [N, S, W]
  expected, patches = jax.jit(
    lambda x: model.encode_image_tokens(params, x, start=model.image.depth, patches=True)
  )(last)
  np.testing.assert_allclose(found.image, expected, atol=1e-5)
  np.testing.assert_allclose(found.patches, patches, atol=1e-5)
  np.testing.assert_allclose(found.clean_patches, patches[:3], atol=1e-5)
  assert fixed.query_tokens.ndim == 2
  support = jax.jit(method.embeddings)(params, fixed, state).support
  np.testing.assert_allclose(support, expected[:3], atol=1e-5)


@pytest.mark.parametrize("tune", ["maple", "layernorm"])
def test_what_is_trained_in_the_image_encoder_reaches_them(tune):
  overrides = {"tune": tune, "maple__depth": 2}
  method, params, _ = setup(**overrides)
  fixed, state = prepared(1, **overrides)

  def sums(trained):
    moved = state._replace(params=trained)
    patches = method.forward(params, fixed, moved, 0, clean=True)["features"].patches
    return (patches @ jnp.arange(64.0)).sum(), patches.shape

  gradient, shape = jax.jit(jax.grad(sums, has_aux=True))(state.params)
  assert shape == (6, 4, 64)
  assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) > 1e-3


def test_in_minibatches_of_a_large_support():
  method, params, episodes = setup(objective__svl__weight=0.0)
  fields = {name: getattr(method, name) for name in ("model", "parameterization", "tx", "steps")}
  whole = AllWay(**fields, phases=method.phases, batch_size=2, patches=True)
  fixed, state = whole.prepare(params, row(episodes, 0))
  features = jax.eval_shape(lambda: whole.forward(params, fixed, state, 0, clean=True)["features"])
  assert features.patches.shape == features.clean_patches.shape == (2, 4, 64)


def test_a_step_without_such_a_term_is_the_program_that_it_was():
  def program(**overrides):
    method, params, _ = setup(**overrides)
    step = functools.partial(method.step, clean=True)
    return str(jax.make_jaxpr(step)(params, *prepared(1), 0))

  method, params, _ = setup()
  config = small_config(adapt__steps=5, adapt__views=2, objective__ra__weight=0.0)
  known, _ = small_adaptation(config)
  assert (method.patches, known.patches, setup(weight=0.0)[0].patches) == (True, False, False)
  state = known.init(prepared(1)[1].params)
  plain = lambda method: str(
    jax.make_jaxpr(functools.partial(method.step, clean=True))(params, prepared(1)[0], state, 0)
  )
  assert plain(setup(weight=0.0)[0]) == plain(known)
  assert "[6,4,64]" not in plain(known)
  assert "[6,4,64]" in program()
