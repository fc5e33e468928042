"""Layer norm for a TPU, alone or with an adapter's low-rank input, as kernels of one pass.

XLA reads and writes an array of all tokens for each of the masks, for each sum of a layer norm's
backward pass and for what is added afterwards. Here a tile of rows stays on the chip meanwhile.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mdtrap_jax.models.layers import normalize
from mdtrap_jax.models.masks import draw, keep_masks

ROWS = 256  # of a tile, where rows have nothing to do with each other
COPIES = 10  # float32 arrays of a tile that a kernel may need at once
VECTOR_MEMORY = 64 * 2**20  # bytes that a kernel may use; the chips have 96 MiB and more


class Form(NamedTuple):
  """What is static."""

  epsilon: float  # of the layer norm
  rate: float  # of the dropout; 0: none
  interpret: bool  # runs a kernel's operations one by one, on any device


def fits(tokens: int, width: int) -> bool:
  """Whether a tile of an image's tokens fits in the vector memory, with all that is computed."""
  return 4 * COPIES * max(tokens, ROWS) * width <= VECTOR_MEMORY


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def norm_and_input(form: Form, x: jax.Array, scale: jax.Array, bias: jax.Array):
  """Layer norm of `x [R, W]`, and `x` itself for a residual connection, whose cotangents join."""
  return normalize(form.epsilon, x, scale, bias), x


def _norm_forward(form, x, scale, bias):
  return norm_and_input(form, x, scale, bias), (x, scale, bias)


def _norm_backward(form, residuals, cotangents):
  x, scale, bias = residuals
  width = x.shape[1]
  rows, all_columns = ((ROWS, width), lambda i: (i, 0)), ((1, width), lambda i: (0, 0))
  back = _call(
    functools.partial(_norm_kernel, epsilon=form.epsilon),
    pl.cdiv(len(x), ROWS),
    [(x, *rows), *((cotangent, *rows) for cotangent in cotangents), (scale[None], *all_columns)],
    [(x, *rows)],
    form.interpret,
  )[0]
  # Of frozen weights nobody asks for these, and they are not computed.
  weights = jax.vjp(lambda *weights: normalize(form.epsilon, x, *weights), scale, bias)[1]
  return back, *weights(cotangents[0])


norm_and_input.defvjp(_norm_forward, _norm_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def norm_with_low(
  form: Form, x: jax.Array, scale: jax.Array, bias: jax.Array, a: jax.Array, keys: jax.Array
):
  """Layer norm, beside it `sum_p dropout_p(norm) a[p]` and a column of ones; and `x` itself.

  Args:
    form: static.
    x: `[B, S, W]`.
    scale: `[W]`.
    bias: `[W]`.
    a: `[P, W, L]`, each projection's columns where the others have zeros; the column of ones is
      the last.
    keys: `[B]` typed, of the `P` masks; without dropout of no meaning.

  Returns:
    `[B, S, W + L]` and `x`.
  """
  _, tokens, width = x.shape
  out = jax.ShapeDtypeStruct((*x.shape[:2], width + a.shape[2]), x.dtype)
  image = lambda width: ((None, tokens, width), lambda i: (i, 0, 0))
  joined = _call(
    functools.partial(_low_kernel, form=form),
    len(x),
    [(x, *image(width)), *_shared(scale, bias, a)],
    [(out, *image(out.shape[2]))],
    form.interpret,
    _words(keys),
  )[0]
  return joined, x


def _low_forward(form, x, scale, bias, a, keys):
  return norm_with_low(form, x, scale, bias, a, keys), (x, scale, bias, a, keys)


def _low_backward(form, residuals, cotangents):
  x, scale, bias, a, keys = residuals
  _, tokens, width = x.shape
  image = lambda width: ((None, tokens, width), lambda i: (i, 0, 0))
  whole = (a.shape, lambda i: (0, 0, 0))
  back, of_a = _call(
    functools.partial(_low_back_kernel, form=form),
    len(x),
    [
      (x, *image(width)),
      (cotangents[0], *image(width + a.shape[2])),
      (cotangents[1], *image(width)),
      *_shared(scale, bias, a),
    ],
    [(x, *image(width)), (jax.ShapeDtypeStruct(a.shape, jnp.float32), *whole)],
    form.interpret,
    _words(keys),
  )
  plain = lambda *weights: norm_with_low_plain(form, x, *weights, a, keys)
  weights = jax.vjp(plain, scale, bias)[1]  # as above
  return back, *weights(cotangents[0]), of_a.astype(a.dtype), None


norm_with_low.defvjp(_low_forward, _low_backward)


def norm_with_low_plain(form, x, scale, bias, a, keys):
  """The first result of `norm_with_low`, in any precision."""
  normal = normalize(form.epsilon, x, scale, bias)
  dropped = [normal] * len(a)
  if form.rate:
    masks = keep_masks(keys, x.shape[1:], form.rate, len(a))
    dropped = [jnp.where(keep, normal, jnp.zeros((), x.dtype)) for keep in masks]
  low = checkpoint_name(sum(dropped[p] @ a[p] for p in range(len(a))), "low")
  return jnp.concatenate([normal, low.at[..., -1].set(1)], -1)


def _call(kernel, steps, inputs, outputs, interpret, words=None):
  """Runs `kernel` on blocks of arrays `(array, block, index)`."""
  spec = lambda one: pl.BlockSpec(*one[1:])
  arrays = [one[0] for one in inputs]
  moved = sum(array.size * array.dtype.itemsize for array, *_ in inputs + outputs)
  flops = 0
  if words is not None:
    a, (rows, width) = arrays[-1], arrays[0].shape[1:]
    flops = 2 * len(outputs) * len(a) * steps * rows * width * a.shape[2]
  in_specs = [spec(one) for one in inputs]
  if words is not None:
    arrays = [words, *arrays]
    in_specs = [pl.BlockSpec(memory_space=pltpu.SMEM), *in_specs]
  return pl.pallas_call(
    kernel,
    grid=(steps,),
    in_specs=in_specs,
    out_specs=[spec(one) for one in outputs],
    out_shape=[jax.ShapeDtypeStruct(one[0].shape, one[0].dtype) for one in outputs],
    cost_estimate=pl.CostEstimate(flops=flops, bytes_accessed=moved, transcendentals=0),
    interpret=interpret,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("arbitrary",), vmem_limit_bytes=VECTOR_MEMORY
    ),
  )(*arrays)


def _shared(scale, bias, a):
  """What every image needs."""
  row = ((1, len(scale)), lambda i: (0, 0))
  return [(scale[None], *row), (bias[None], *row), (a, a.shape, lambda i: (0, 0, 0))]


def _words(keys):
  """`[B, 2] int32`, what masks take of a key."""
  data = jax.random.key_data(keys)
  return jax.lax.bitcast_convert_type(jnp.stack([data[:, 0], data[:, -1]], -1), jnp.int32)


def _wide(ref):
  return ref[...].astype(jnp.float32)


def _normal(x, epsilon):
  """The layer norm of rows, float32, without scale and bias; and the inverse deviation."""
  centered = x - x.mean(-1, keepdims=True)
  inverse = jax.lax.rsqrt(jnp.square(centered).mean(-1, keepdims=True) + epsilon)
  return centered * inverse, inverse


def _norm_back(normal, inverse, scaled):
  """The cotangent of a norm's input, from that of its result times `scale`."""
  common = scaled.mean(-1, keepdims=True)
  along = (scaled * normal).mean(-1, keepdims=True)
  return (scaled - common - normal * along) * inverse


def _norm_kernel(x_ref, g_ref, direct_ref, scale_ref, back_ref, *, epsilon):
  normal, inverse = _normal(_wide(x_ref), epsilon)
  back = _norm_back(normal, inverse, _wide(g_ref) * _wide(scale_ref)) + _wide(direct_ref)
  back_ref[...] = back.astype(back_ref.dtype)


def _dropped(words_ref, normal, form, count):
  """Of each projection its mask, or `None`, and its input."""
  if not form.rate:
    return [(None, normal)] * count
  image = pl.program_id(0)
  masks = draw(words_ref[image, 0], words_ref[image, 1], normal.shape, form.rate, count)
  return [(keep, jnp.where(keep, normal, jnp.zeros((), normal.dtype))) for keep in masks]


def _low_kernel(words_ref, x_ref, scale_ref, bias_ref, a_ref, out_ref, *, form):
  width = x_ref.shape[-1]
  normal = _normal(_wide(x_ref), form.epsilon)[0] * _wide(scale_ref) + _wide(bias_ref)
  normal = normal.astype(x_ref.dtype)
  out_ref[:, :width] = normal
  low = jnp.zeros((len(normal), a_ref.shape[2]), jnp.float32)
  for p, (_, dropped) in enumerate(_dropped(words_ref, normal, form, len(a_ref))):
    low += _product(dropped, a_ref[p], (1, 0))
  column = jax.lax.broadcasted_iota(jnp.int32, low.shape, 1)
  out_ref[:, width:] = jnp.where(column == low.shape[1] - 1, 1.0, low).astype(out_ref.dtype)


def _low_back_kernel(
  words_ref, x_ref, g_ref, direct_ref, scale_ref, bias_ref, a_ref, back_ref, a_back_ref, *, form
):
  width = x_ref.shape[-1]
  plain, inverse = _normal(_wide(x_ref), form.epsilon)
  normal = (plain * _wide(scale_ref) + _wide(bias_ref)).astype(x_ref.dtype)
  low, g = g_ref[:, width:], g_ref[:, :width].astype(jnp.float32)

  @pl.when(pl.program_id(0) == 0)
  def _():
    a_back_ref[...] = jnp.zeros(a_back_ref.shape, a_back_ref.dtype)

  for p, (keep, dropped) in enumerate(_dropped(words_ref, normal, form, len(a_ref))):
    back = _product(low, a_ref[p], (1, 1))
    g += back if keep is None else jnp.where(keep, back, 0.0)
    a_back_ref[p] += _product(dropped, low, (0, 0))
  back = _norm_back(plain, inverse, g * _wide(scale_ref)) + _wide(direct_ref)
  back_ref[...] = back.astype(back_ref.dtype)


def _product(a, b, contract: tuple[int, int]):
  dimensions = (((contract[0],), (contract[1],)), ((), ()))
  return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)
