"""Random resized crops, made on the device: what image classifiers are trained with.

Legend: `B` images, `S` image side.
"""

import jax
import jax.numpy as jnp

AREA = (0.08, 1.0)  # share of the image's area, torchvision's `RandomResizedCrop`
ASPECT = (3 / 4, 4 / 3)  # width over height, drawn on a logarithmic scale
_TRIES = 10  # draws of a box; where none lies within the image, the whole is taken


def random_crops(key: jax.Array, images: jax.Array) -> jax.Array:
  """A random box of each image, resized to the whole, mirrored with probability ½.

  The distribution is torchvision's, bicubic and antialiased, but of the model's square and not of
  the file's pixels: those are kept in their final size.

  Args:
    key: A typed key, consumed.
    images: uint8 `[B, S, S, 3]`.

  Returns:
    uint8 `[B, S, S, 3]`.
  """
  keys = jax.random.split(key, len(images))
  boxes = jax.lax.map(_draw_box, keys)  # a loop: its draws exist before the pixels are touched
  return jax.vmap(_crop)(images, *boxes)


def _draw_box(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Size and corner of a box, `[2] float32` each in shares of the sides, and whether to mirror."""
  area_key, aspect_key, corner_key, mirror_key = jax.random.split(key, 4)
  area = jax.random.uniform(area_key, (_TRIES,), minval=AREA[0], maxval=AREA[1])
  low, high = jnp.log(jnp.asarray(ASPECT))
  aspect = jnp.exp(jax.random.uniform(aspect_key, (_TRIES,), minval=low, maxval=high))
  sizes = jnp.stack([jnp.sqrt(area / aspect), jnp.sqrt(area * aspect)], -1)  # height, width
  fits = (sizes <= 1).all(-1)
  size = jnp.where(fits.any(), sizes[jnp.argmax(fits)], jnp.ones(2))
  corner = jax.random.uniform(corner_key, (2,)) * (1 - size)
  return size, corner, jax.random.bernoulli(mirror_key)


def _crop(image: jax.Array, size: jax.Array, corner: jax.Array, mirrored: jax.Array) -> jax.Array:
  side = image.shape[0]
  scale = 1 / size
  pixels = jax.image.scale_and_translate(
    image.astype(jnp.float32), image.shape, (0, 1), scale, -corner * side * scale, "cubic"
  )
  pixels = jnp.where(mirrored, pixels[:, ::-1], pixels)
  return jnp.clip(jnp.round(pixels), 0, 255).astype(jnp.uint8)
