"""One contract for every term of the registry."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mdtrap_jax.objectives import losses, terms
from mdtrap_jax.objectives.chain import make_objective
from mdtrap_jax.objectives.pull_back import pull_back, zero_cotangents
from mdtrap_jax.objectives.term import Batch, Context, Features
from mdtrap_jax.objectives.terms import TERMS

WAYS, SHOTS, VIEWS, WIDTH, INPUT = 3, 1, 2, 4, 5
M, N = WAYS * SHOTS, VIEWS * WAYS * SHOTS
CONTEXT = Context(logit_scale=7.0, num_views=N, num_clean=M, start=0, stop=3, fade=6)
BATCH = Batch(
  labels=jnp.tile(jnp.arange(WAYS), VIEWS),
  views=jnp.repeat(jnp.arange(VIEWS), WAYS),
  clean_labels=jnp.arange(WAYS),
)
INPUTS = jax.random.normal(jax.random.key(9), (N, INPUT))
PARAMS = {
  "w": jax.random.normal(jax.random.key(1), (INPUT, WIDTH)),
  "text": jax.random.normal(jax.random.key(2), (WAYS, WIDTH)),
}


def encode(params, inputs=INPUTS):
  image = jnp.tanh(inputs @ params["w"])
  return Features(image, image[:M] * 1.5, params["text"])


KEY = jax.random.key(3)


def update(term, state, features, step, key=KEY, updates=None):
  updates = zero_cotangents(features) if updates is None else updates
  return term.update(
    updates,
    state,
    PARAMS,
    features=features,
    batch=BATCH,
    key=key,
    step=step,
    features_vjp=None,
    something_else="ignored",
  )


@pytest.fixture(params=sorted(TERMS))
def name(request):
  return request.param


def test_cotangent_is_the_gradient_of_the_weighted_loss(name):
  """Against finite differences of the value that the term itself reports, in float64."""
  with jax.enable_x64(True):
    double = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float64), tree)
    features = double(encode(PARAMS))
    term = TERMS[name].make(CONTEXT, 0.5)
    state = term.init(double(PARAMS))
    _, state = update(term, state, features, 0)  # RA: remembers a relation
    moved = jax.tree.map(lambda x: x * 1.1 + 0.05, features)
    value = lambda f: update(term, state, f, 1)[1].value
    cotangent, new_state = update(term, state, moved, 1)
    direction = jax.tree.map(
      lambda x: jax.random.normal(jax.random.key(5), x.shape, x.dtype), moved
    )
    h = 1e-6
    shift = lambda sign: jax.tree.map(lambda x, d: x + sign * h * d, moved, direction)
    slope = (value(shift(1)) - value(shift(-1))) / (2 * h)
    assert abs(slope) > 1e-6
    np.testing.assert_allclose(optax.tree.vdot(cotangent, direction), 0.5 * slope, rtol=1e-6)
    np.testing.assert_allclose(new_state.norm, jnp.linalg.norm(cotangent.image))


def test_adds_to_what_came_before(name):
  term = TERMS[name].make(CONTEXT, 0.5)
  state = term.init(PARAMS)
  features = encode(PARAMS)
  _, state = update(term, state, features, 0)
  alone, _ = update(term, state, features, 1)
  ones = jax.tree.map(jnp.ones_like, features)
  added, _ = update(term, state, features, 1, updates=ones)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b + 1, rtol=1e-6), added, alone)


def test_zero_weight_and_closed_window_are_exact_no_ops(name):
  features = encode(PARAMS)
  before = jax.tree.map(lambda x: x + jnp.nan, features)  # even NaN passes untouched
  for weight, step in ((0.0, 1), (0.5, CONTEXT.stop), (0.5, CONTEXT.stop + 5)):
    term = TERMS[name].make(CONTEXT, weight)
    after, state = update(term, term.init(PARAMS), features, step, updates=before)
    jax.tree.map(np.testing.assert_array_equal, after, before)
    assert state.norm == 0
    assert jnp.isnan(state.value)


def test_a_loss_that_overflows_while_off_does_not_leak(name):
  features = jax.tree.map(lambda x: x * jnp.inf, encode(PARAMS))
  term = TERMS[name].make(CONTEXT, 0.5)
  after, _ = update(term, term.init(PARAMS), features, CONTEXT.stop)
  assert all((leaf[jnp.isfinite(leaf)] == 0).all() for leaf in jax.tree.leaves(after))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), features)
  after, _ = update(term, term.init(PARAMS), features, CONTEXT.stop, updates=zeros)
  assert all((leaf == 0).all() for leaf in jax.tree.leaves(after))


def test_state_keeps_its_structure_in_scan_and_does_not_recompile(name):
  term, traces = TERMS[name].make(CONTEXT, 0.5), []

  @jax.jit
  def steps(state, features, start):
    traces.append(1)
    body = lambda s, t: (update(term, s, features, t)[1], s.value)
    return jax.lax.scan(body, state, start + jnp.arange(3))

  state, _ = steps(term.init(PARAMS), encode(PARAMS), 0)
  again, _ = steps(state, encode(PARAMS), 2)
  assert len(traces) == 1
  assert jax.tree.structure(again) == jax.tree.structure(term.init(PARAMS))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_keeps_the_dtype_of_the_updates(name, dtype):
  features = encode(PARAMS)
  before = jax.tree.map(lambda x: x.astype(dtype), zero_cotangents(features))
  term = TERMS[name].make(CONTEXT, 0.5)
  after, _ = update(term, term.init(PARAMS), features, 1, updates=before)
  assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {jnp.dtype(dtype)}


def test_batch_row_equals_alone(name):
  term = TERMS[name].make(CONTEXT, 0.5)
  inputs = jax.random.normal(jax.random.key(8), (4, N, INPUT))
  keys = jax.random.split(jax.random.key(7), 4)

  def two_steps(inputs, key):
    features = encode(PARAMS, inputs)
    _, state = update(term, term.init(PARAMS), features, 0, key)
    return update(term, state, features, 1, key)

  batch, _ = jax.vmap(two_steps)(inputs, keys)
  alone, _ = two_steps(inputs[2], keys[2])
  jax.tree.map(lambda b, a: np.testing.assert_allclose(b[2], a, atol=2e-6), batch, alone)


def test_missing_extra_argument_is_an_error(name):
  term = TERMS[name].make(CONTEXT, 0.5)
  with pytest.raises(TypeError, match="batch"):
    term.update(
      zero_cotangents(encode(PARAMS)),
      term.init(PARAMS),
      PARAMS,
      features=encode(PARAMS),
      key=jax.random.key(0),
      step=0,
    )


def test_weight_can_be_swept_by_vmap_in_one_program(name):
  term, features = TERMS[name].make(CONTEXT, 0.5), encode(PARAMS)
  _, state = update(term, term.init(PARAMS), features, 0)

  def with_weight(weight):
    return update(term, state._replace(weight=weight), features, 1)[0].image

  swept = jax.vmap(with_weight)(jnp.array([0.5, 1.0, 0.0]))
  np.testing.assert_allclose(swept[1], 2 * swept[0], rtol=1e-5)
  assert not swept[2].any()


def test_chain_equals_the_gradient_of_the_summed_loss():
  """All terms at once, against `jax.grad` of the loss written out."""
  weights = {"vlm": 1.0, "visual": 0.2, "svl": 0.1, "ra": 3.0}
  chain = optax.named_chain(
    *((name, TERMS[name].make(CONTEXT, weights[name])) for name in weights),
    ("encoder", pull_back()),
  )
  key, labels = jax.random.key(3), BATCH.labels
  rows = terms.draw_prototypes(jax.random.fold_in(key, zlib.crc32(b"svl")), 1, N, WAYS)
  previous = encode(PARAMS)
  old_relation = losses.visual_relation(previous.image, previous.clean)
  moved = jax.tree.map(lambda x: 1.1 * x + 0.02, PARAMS)

  def total(params):
    f, s = encode(params), CONTEXT.logit_scale
    means = jnp.stack([f.image[:M][jnp.arange(M) == c].mean(0) for c in range(WAYS)])
    share = 1 - 1 / CONTEXT.fade
    target = share * old_relation + (1 - share) * losses.text_relation(
      f.text, labels, BATCH.clean_labels
    )
    relation = losses.visual_relation(f.image, f.clean)
    return (
      losses.cosine_cross_entropy(f.image, f.text, labels, s)
      + 0.2 * losses.cosine_cross_entropy(f.image, means, labels, s)
      + 0.1 * losses.cosine_cross_entropy(f.image, f.image[rows], labels, s)
      + 3.0 * losses.cosine_divergence(target, relation)
    )

  state = chain.init(PARAMS)
  for step, params in ((0, PARAMS), (1, moved)):
    features, vjp = jax.vjp(encode, params)
    gradient, state = chain.update(
      zero_cotangents(features),
      state,
      params,
      features=features,
      batch=BATCH,
      key=key,
      step=step,
      features_vjp=vjp,
    )
  expected = jax.grad(total)(moved)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), gradient, expected)


def test_random_prototypes_are_uniform_and_fresh():
  keys = jax.random.split(jax.random.key(0), 4000)
  rows = jax.vmap(lambda key: terms.draw_prototypes(key, 0, N, WAYS))(keys)
  counts = np.bincount(np.asarray(rows).ravel(), minlength=N)
  expected = 4000 * WAYS / N
  assert (abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_first_relation_is_only_remembered():
  term, features = TERMS["ra"].make(CONTEXT, 3.0), encode(PARAMS)
  after, state = update(term, term.init(PARAMS), features, 0)
  assert not any(leaf.any() for leaf in jax.tree.leaves(after))
  np.testing.assert_allclose(
    state.memory.relation, losses.visual_relation(features.image, features.clean)
  )


def test_without_a_clean_pass_relation_alignment_passes_through():
  term, features = TERMS["ra"].make(CONTEXT, 3.0), encode(PARAMS)._replace(clean=None)
  before = zero_cotangents(features)
  after, state = update(term, term.init(PARAMS), features, 1, updates=before)
  jax.tree.map(np.testing.assert_array_equal, after, before)
  assert state.norm == 0


def test_unknown_divergence_names_the_choices():
  with pytest.raises(ValueError, match=r"'kl'.*cosine.*softmax"):
    TERMS["ra"].make(CONTEXT, 3.0, divergence="kl")


def test_a_closed_term_keeps_the_value_of_its_last_step(name):
  term, features = TERMS[name].make(CONTEXT, 0.5), encode(PARAMS)
  _, state = update(term, term.init(PARAMS), features, CONTEXT.stop - 2)
  _, last = update(term, state, jax.tree.map(lambda x: 1.1 * x + 0.05, features), CONTEXT.stop - 1)
  _, closed = update(term, last, features, CONTEXT.stop)
  assert jnp.isfinite(last.value)
  assert last.value != state.value
  assert closed.value == last.value


def test_relations_are_aligned_to_the_texts_alone_once_the_past_has_faded():
  """T = 33 and a window (2, 5): steps 12 … 32 and a fade of int(0.6 · 33) = 19."""
  options = {"ra": {"weight": 3.0, "window": (2, 5)}}
  chain = make_objective(
    options, optax.identity(), steps=33, logit_scale=7.0, num_views=N, num_clean=M
  )
  features = encode(PARAMS)
  before = jax.random.normal(jax.random.key(4), (N, M))
  text = losses.text_relation(features.text, BATCH.labels, BATCH.clean_labels)
  state = chain.init(PARAMS)
  memory = state["ra"].memory._replace(relation=before)
  state["ra"] = state["ra"]._replace(memory=memory)
  for step, share in ((13, 18 / 19), (22, 9 / 19), (30, 1 / 19), (31, 0.0), (32, 0.0)):
    _, after = chain.update(
      zero_cotangents(features),
      state,
      PARAMS,
      features=features,
      batch=BATCH,
      key=KEY,
      step=step,
      features_vjp=lambda cotangent: (PARAMS,),
    )
    expected = share * before + (1 - share) * text
    np.testing.assert_allclose(after["ra"].memory.target, expected, atol=1e-6)


def test_names_of_the_papers_terms_stay_theirs():
  make = lambda context, weight: terms.make_term("mine", None, weight, 0, 1)
  with pytest.raises(ValueError, match="there is a term 'ra' already"):
    terms.register("ra", make)
  for _ in range(2):  # a notebook's cell may run twice
    terms.register("of_a_test", lambda context, weight: make(context, weight))
  assert TERMS["of_a_test"].clean is False
  with pytest.raises(TypeError, match="does not support item assignment"):
    TERMS["ra"] = make
  terms._TERMS.pop("of_a_test")


def test_relations_in_minibatches_of_all_images_are_those_of_the_whole():
  """In any order; and what is not seen yet is only remembered."""
  context = CONTEXT._replace(num_views=M, width=WIDTH)
  whole, parts = (
    make(context, 2.0)
    for make in (terms.add_relation_alignment, terms.add_relation_alignment_in_minibatches)
  )
  states = whole.init(PARAMS), parts.init(PARAMS)
  features = encode(PARAMS)._replace(image=encode(PARAMS).image[:M])
  for step, order in enumerate(([0, 1, 2], [2, 0, 1], [1, 2, 0])):
    rows = jnp.array(order)
    here = Features(features.image * (1 + step) + step, features.clean + step, features.text)
    mixed = Features(here.image[rows], here.clean[rows], here.text)
    batch = Batch(jnp.arange(M), jnp.zeros(M, jnp.int32), jnp.arange(M))
    drawn = Batch(rows, batch.views, rows, rows)
    found = [
      term.update(
        zero_cotangents(features), state, PARAMS, features=f, batch=b, key=KEY, step=jnp.array(step)
      )
      for term, state, f, b in zip(
        (whole, parts), states, (here, mixed), (batch, drawn), strict=True
      )
    ]
    (cotangent, first), (of_parts, second) = found
    np.testing.assert_allclose(of_parts.image, cotangent.image[rows], atol=1e-6)
    np.testing.assert_allclose(of_parts.clean, cotangent.clean[rows], atol=1e-6)
    np.testing.assert_allclose(second.value, first.value, rtol=1e-4)
    states = first, second
  assert jnp.abs(cotangent.image).max() > 0
  fresh = parts.init(PARAMS)
  _, state = parts.update(
    zero_cotangents(features), fresh, PARAMS, features=mixed, batch=drawn, key=KEY,
    step=jnp.array(1),
  )  # fmt: skip
  assert (state.value, state.norm) == (0, 0)
  assert state.memory.seen.all()
