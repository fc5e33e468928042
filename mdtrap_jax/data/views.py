"""The five views of a support image, made on the device with the exact meaning of PIL.

Every function here is pure and can be compiled and vmapped. Images are uint8 `[H, W, 3]`
with sides of at most 2048 pixels (sums over an image stay within int32), and every primitive
returns uint8 again, because PIL clips to bytes after each operation.

Legend: `M` images, `V` views per image, `S` image side.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

JITTER = (0.6, 1.4)  # Range of the brightness, contrast and color factors.
MAX_DEGREES = 45.0

# PIL rotates by 16.16 fixed-point steps computed in float64, which an accelerator lacks. We
# tabulate 65536·cos at every 1/16 degree (whole part and rest) and reach the angle from the
# nearest entry by the addition theorem: the small correction is then the only float32 error,
# about 4e-6 of a fixed-point unit.
_STEPS = 16
_FIXED_COS = 65536 * np.cos(np.radians(np.arange(360 * _STEPS) / _STEPS))
_COS_WHOLE = np.floor(_FIXED_COS).astype(np.int32)
_COS_REST = (_FIXED_COS - np.floor(_FIXED_COS)).astype(np.float32)


def _blend(degenerate: jax.Array, image: jax.Array, factor: jax.typing.ArrayLike) -> jax.Array:
  """`degenerate + factor·(image - degenerate)`, clipped and truncated like PIL's blend."""
  start = degenerate.astype(jnp.float32)
  mixed = start + jnp.float32(factor) * (image.astype(jnp.float32) - start)
  return jnp.clip(mixed, 0, 255).astype(jnp.uint8)  # The cast truncates, as in C.


def _grey(image: jax.Array) -> jax.Array:
  """PIL's integer luma (ITU-R 601-2) of `[H, W, 3]`, int32 `[H, W]`."""
  red, green, blue = (image[..., channel].astype(jnp.int32) for channel in range(3))
  return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def adjust_brightness(image: jax.Array, factor: jax.typing.ArrayLike) -> jax.Array:
  """Blends with black, like `PIL.ImageEnhance.Brightness`; a factor of 1 changes nothing."""
  return _blend(jnp.zeros_like(image), image, factor)


def adjust_contrast(image: jax.Array, factor: jax.typing.ArrayLike) -> jax.Array:
  """Blends with the rounded mean of the grey image, like `PIL.ImageEnhance.Contrast`."""
  pixels = image.shape[0] * image.shape[1]
  mean = (2 * jnp.sum(_grey(image)) + pixels) // (2 * pixels)  # floor(mean + 1/2)
  return _blend(jnp.full_like(image, mean.astype(jnp.uint8)), image, factor)


def adjust_color(image: jax.Array, factor: jax.typing.ArrayLike) -> jax.Array:
  """Blends with the grey image, like `PIL.ImageEnhance.Color`."""
  return _blend(jnp.broadcast_to(_grey(image)[..., None], image.shape), image, factor)


def flip(image: jax.Array) -> jax.Array:
  """Mirrors left and right."""
  return image[:, ::-1]


def _fixed_cos_sin(degrees: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """`65536·cos` and `65536·sin`, each as an int32 and a float32 of which the sum is meant."""
  nearest = jnp.round(degrees * _STEPS).astype(jnp.int32)
  rest = jnp.deg2rad(degrees - nearest.astype(jnp.float32) / _STEPS)
  at_cos, at_sin = nearest % (360 * _STEPS), (nearest - 90 * _STEPS) % (360 * _STEPS)
  wholes, rests = jnp.asarray(_COS_WHOLE), jnp.asarray(_COS_REST)
  cos = wholes[at_cos].astype(jnp.float32) + rests[at_cos]
  sin = wholes[at_sin].astype(jnp.float32) + rests[at_sin]
  cosine_less_one, sine = -2 * jnp.sin(rest / 2) ** 2, jnp.sin(rest)
  cos_rest = rests[at_cos] + (cos * cosine_less_one - sin * sine)
  sin_rest = rests[at_sin] + (sin * cosine_less_one + cos * sine)
  return wholes[at_cos], cos_rest, wholes[at_sin], sin_rest


def rotate(image: jax.Array, degrees: jax.typing.ArrayLike) -> jax.Array:
  """Rotates counter-clockwise about the center: nearest neighbor, black outside.

  Follows `PIL.Image.rotate`, fixed-point rounding included: the source of output pixel
  `(x, y)` is `(x0 + x·cos + y·sin, y0 - x·sin + y·cos) >> 16`.

  Args:
    image: uint8 `[H, W, 3]`.
    degrees: Scalar angle, any size or sign.

  Returns:
    uint8 `[H, W, 3]`.
  """
  height, width, _ = image.shape
  # PIL maps output to input, that is, by the negative angle.
  cos, cos_rest, sin, sin_rest = _fixed_cos_sin(-jnp.float32(degrees))

  def origin(size: int, whole: jax.Array, rest: jax.Array) -> jax.Array:
    # floor((65536·size - whole - rest + 1) / 2): everything but the small rest is exact.
    return (65536 * size + 1 - whole - jnp.ceil(rest).astype(jnp.int32)) >> 1

  across, down = width - 1, height - 1
  x0 = origin(width, across * cos + down * sin, across * cos_rest + down * sin_rest)
  y0 = origin(height, down * cos - across * sin, down * cos_rest - across * sin_rest)
  cos = cos + jnp.floor(cos_rest + 0.5).astype(jnp.int32)
  minus_sin = -sin + jnp.floor(0.5 - sin_rest).astype(jnp.int32)
  sin = sin + jnp.floor(sin_rest + 0.5).astype(jnp.int32)
  x, y = jnp.arange(width)[None, :], jnp.arange(height)[:, None]
  column = (x0 + x * cos + y * sin) >> 16
  row = (y0 + x * minus_sin + y * cos) >> 16
  inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)

  source = jnp.where(inside, row * width + column, 0)

  def gather(channel: jax.Array) -> jax.Array:
    # By channel: XLA compiles this to the fastest loop (a gather of pixels runs at half).
    taken = channel.reshape(-1).at[source].get(mode="promise_in_bounds")
    return jnp.where(inside, taken, 0)

  return jnp.stack([gather(image[..., channel]) for channel in range(3)], axis=-1)


class Draws(NamedTuple):
  """What one view of one image draws; a recipe uses what it needs."""

  degrees: jax.Array  # [] float32, rotation.
  factors: jax.Array  # [3] float32, of brightness, contrast and color.
  mirrored: jax.Array  # [] bool.


def _draw(key: jax.Array) -> Draws:
  degrees_key, factors_key, mirrored_key = jax.random.split(key, 3)
  return Draws(
    degrees=jax.random.uniform(degrees_key, minval=-MAX_DEGREES, maxval=MAX_DEGREES),
    factors=jax.random.uniform(factors_key, (3,), minval=JITTER[0], maxval=JITTER[1]),
    mirrored=jax.random.bernoulli(mirrored_key),
  )


def _unchanged(image: jax.Array, draws: Draws) -> jax.Array:
  del draws
  return image


def _rotated(image: jax.Array, draws: Draws) -> jax.Array:
  return rotate(image, draws.degrees)


def _jittered(image: jax.Array, draws: Draws) -> jax.Array:
  brightness, contrast, color = draws.factors
  image = adjust_contrast(adjust_brightness(image, brightness), contrast)
  return adjust_color(image, color)


def _flipped(image: jax.Array, draws: Draws) -> jax.Array:
  return jnp.where(draws.mirrored, flip(image), image)


def _rotated_jittered_flipped(image: jax.Array, draws: Draws) -> jax.Array:
  return _flipped(_jittered(_rotated(image, draws), draws), draws)


Recipe = Callable[[jax.Array, Draws], jax.Array]

VIEWS: tuple[Recipe, ...] = (
  _unchanged,
  _rotated_jittered_flipped,
  _rotated,
  _jittered,
  _flipped,
)
"""The recipes `(image, draws) -> image`, in the order of the paper's reference code."""


def make_views(key: jax.Array, images: jax.Array, views: int = 5) -> jax.Array:
  """Makes the first `views` recipes of `VIEWS` from every image.

  Image `m` of view `v` draws from `fold_in(fold_in(key, v), m)` alone, so it depends neither
  on how many views nor on how many images are made.

  Args:
    key: A typed key, consumed.
    images: uint8 `[M, S, S, 3]`.
    views: How many views `V` of each image, 1 to 5; the first is the image itself.

  Returns:
    uint8 `[V, M, S, S, 3]`.

  Raises:
    ValueError: If `views` is out of range or the images are not uint8.
  """
  if not 1 <= views <= len(VIEWS):
    raise ValueError(f"views={views}, but an image has 1 to {len(VIEWS)} views.")
  if images.dtype != jnp.uint8:
    raise ValueError(f"Views are made from uint8 images (0 to 255), not {images.dtype}.")

  def draw_view(view: jax.Array) -> Draws:
    view_key = jax.random.fold_in(key, view)
    numbers = jnp.arange(images.shape[0])
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(view_key, numbers)
    return jax.vmap(_draw)(keys)

  # A loop rather than a vmap: its results exist before the pixels are touched. XLA would
  # otherwise fuse the random bits into the pixel loops and redo them for every pixel (20×).
  draws = jax.lax.map(draw_view, jnp.arange(views))
  return jnp.stack(
    [
      jax.vmap(recipe)(images, Draws(*(drawn[view] for drawn in draws)))
      for view, recipe in enumerate(VIEWS[:views])
    ]
  )


def view_rows(key: jax.Array, images: jax.Array, views: jax.Array, numbers: jax.Array) -> jax.Array:
  """Some of the views of `make_views`, made when they are needed instead of all at once.

  Args:
    key: The key that `make_views` would get.
    images: uint8 `[B, S, S, 3]`.
    views: int32 `[B]`, of each the number of its recipe.
    numbers: int32 `[B]`, the place of each image among the `M`.

  Returns:
    uint8 `[B, S, S, 3]`.
  """

  def draw_row(row):
    return _draw(jax.random.fold_in(jax.random.fold_in(key, row[0]), row[1]))

  draws = jax.lax.map(draw_row, (views, numbers))  # a loop, as there
  return jax.vmap(lambda image, view, drawn: jax.lax.switch(view, VIEWS, image, drawn))(
    images, views, draws
  )


def normalize(
  images: jax.Array,
  mean: Sequence[float],
  std: Sequence[float],
  dtype: jax.typing.DTypeLike = jnp.float32,
) -> jax.Array:
  """`(images/255 - mean)/std` per channel, computed in float32.

  Args:
    images: uint8 `[..., S, S, 3]`.
    mean: The backbone's mean per channel, on the scale 0 to 1.
    std: The backbone's standard deviation per channel, on the same scale.
    dtype: Type of the result.

  Returns:
    `dtype` `[..., S, S, 3]`.
  """
  shape = (1,) * (images.ndim - 1) + (3,)
  mean = jnp.asarray(mean, jnp.float32).reshape(shape)
  std = jnp.asarray(std, jnp.float32).reshape(shape)
  return ((images.astype(jnp.float32) / 255 - mean) / std).astype(dtype)
