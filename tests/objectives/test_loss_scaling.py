"""Loss scaling on gradients made by hand, and beside PyTorch's GradScaler."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from mdtrap_jax.objectives import pull_back
from mdtrap_jax.objectives.loss_scaling import LEAST, scale_loss

PARAMS = {"w": jnp.array([0.5, -2.0])}


def half_vjp(cotangent):
  """What a float16 encoder does to a cotangent: more than 65504 is infinite, small ones are 0."""
  narrow = cotangent["z"].astype(jnp.float16)
  return ({"w": narrow.astype(jnp.float32)},)


def make(optimizer=None, **settings):
  inner = optax.named_chain(
    ("encoder", pull_back()), ("optimizer", optimizer or optax.adam(0.1, b1=0.5, b2=0.5))
  )
  return scale_loss(inner, **settings)


def take(transform, cotangents, state=None, vjp=half_vjp):
  """Parameters and the states after each of some steps."""
  update = jax.jit(lambda u, s, p: transform.update(u, s, p, features_vjp=vjp, step=0))
  params, states = PARAMS, [transform.init(PARAMS) if state is None else state]
  for cotangent in cotangents:
    updates, state = update({"z": jnp.asarray(cotangent, jnp.float32)}, states[-1], params)
    params = optax.apply_updates(params, updates)
    states.append(state)
  return params, states


def scales(states):
  return [float(state.scale) for state in states]


def test_small_gradients_survive_and_the_optimizer_sees_them_unscaled():
  tiny = 2.0**-27  # below the least float16, 2^-24
  params, _ = take(make(optax.sgd(1.0)), [[tiny, -tiny]])
  assert (half_vjp({"z": jnp.array([tiny])})[0]["w"] == 0).all()
  np.testing.assert_array_equal(params["w"], PARAMS["w"] - jnp.array([tiny, -tiny]))
  state = make(optax.trace(0.9)).init(PARAMS)
  _, states = take(make(optax.trace(0.9)), [[tiny, -tiny]], state)
  np.testing.assert_array_equal(states[-1].inner["optimizer"].trace["w"], [tiny, -tiny])


def test_an_overflow_halves_the_scale_and_changes_nothing_else():
  transform = make()
  params, (_, before) = take(transform, [[0.1, 0.2]])
  updates, after = transform.update(
    {"z": jnp.array([2.0, 0.0])}, before, params, features_vjp=half_vjp
  )
  assert (updates["w"] == 0).all()
  assert (float(after.scale), int(after.good)) == (float(before.scale) / 2, 0)
  jax.tree.map(np.testing.assert_array_equal, after.inner, before.inner)


def test_the_scale_grows_after_so_many_finite_steps():
  one, over = [0.1, 0.1], [1e6, 0.0]
  _, states = take(make(start=8.0, period=3), [one, one, over, one, one, one, one])
  assert scales(states) == [8, 8, 8, 4, 4, 4, 8, 8]
  assert [int(state.good) for state in states] == [0, 1, 2, 0, 1, 2, 0, 1]


def test_the_published_settings():
  _, states = take(make(), [[0.1, 0.1]])
  assert scales(states) == [65536, 65536]
  old = states[-1]._replace(good=jnp.int32(1999))
  _, states = take(make(), [[0.1, 0.1]], old)
  assert scales(states)[-1] == 131072


@pytest.mark.parametrize("seed", [0, 1])
def test_scales_and_parameters_equal_those_of_gradscaler(seed):
  rng = np.random.default_rng(seed)
  cotangents = rng.standard_normal((40, 2)) * 10.0 ** rng.integers(-3, 5, (40, 1))
  start, period = 64.0, 3
  params, states = take(make(optax.sgd(1e-3, 0.9), start=start, period=period), cotangents)
  weight = torch.nn.Parameter(torch.tensor([0.5, -2.0]))
  optimizer = torch.optim.SGD([weight], lr=1e-3, momentum=0.9)
  scaler = torch.amp.GradScaler("cpu", init_scale=start, growth_interval=period)
  expected = [start]
  for cotangent in cotangents.astype(np.float32):
    scaled = scaler.scale(torch.as_tensor(cotangent))
    weight.grad = scaled.half().float()
    scaler.step(optimizer)
    scaler.update()
    expected.append(scaler.get_scale())
  assert scales(states) == expected
  assert min(expected) < start < max(expected)  # it went both ways
  np.testing.assert_allclose(params["w"], weight.detach().numpy(), rtol=1e-5)


def test_what_no_scale_could_help_is_not_hidden():
  transform = make()
  lost, states = take(transform, [[np.nan, 0.0]])
  assert not np.isfinite(lost["w"]).all()
  start = transform.init(PARAMS)._replace(scale=jnp.float32(LEAST))
  lost, _ = take(transform, [[1e6, 0.0]], start)
  assert not np.isfinite(lost["w"]).all()
  kept, _ = take(transform, [[1e6, 0.0]], start._replace(scale=jnp.float32(2 * LEAST)))
  np.testing.assert_array_equal(kept["w"], PARAMS["w"])
