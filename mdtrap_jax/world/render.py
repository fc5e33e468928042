"""Rendering of scenes: one scene is a pure function of its fields.

How it is laid out is for speed on a CPU, where the compiler fuses everything and computes an
intermediate again for each reader: `find_surfaces` and `shade` are to be compiled apart.
Coordinates are pairs of planes and images channel-first, so that whole rows of pixels are
worked on at once. Every frame of reference is an affine map of the pixel grid, and one matrix
product, which is never fused, gives all of them; so no sine is computed for each pixel.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mdtrap_jax.models.families.miniature import IMAGE_SIZE
from mdtrap_jax.world import atlas as atlas_lib
from mdtrap_jax.world import scenes

SIZE = IMAGE_SIZE  # Side of an image in pixels.
HALF = SIZE / 2  # Pixels in a unit length.
_GROUND_TILE = 2.7  # Length of a background tile, a little more than an image width.


class Points(NamedTuple):
  """A point for each pixel; x is to the right and y down."""

  x: jax.Array  # [SIZE, SIZE] float32
  y: jax.Array  # [SIZE, SIZE] float32

  def moved(self, by: jax.Array) -> "Points":
    """Translated by the vector `by`, [2]."""
    return Points(self.x + by[0], self.y + by[1])

  def along(self, direction: jax.Array) -> jax.Array:
    """Inner product with a vector [2], giving [SIZE, SIZE]."""
    return self.x * direction[0] + self.y * direction[1]


class View(NamedTuple):
  """Camera: where the world is looked at from; `SOURCE_VIEW` is the source domain's."""

  focus: jax.Array  # [2] float32, the point of the world that the camera turns about
  pin: jax.Array  # [2] float32, where in the image that point appears
  zoom: jax.Array  # [] float32, > 1 is nearer
  roll: jax.Array  # [] float32, radians
  lattice: jax.Array  # [] float32, distance between copies of the object


# No copy at this distance reaches the image.
SOURCE_VIEW = View(np.zeros(2, np.float32), np.zeros(2, np.float32), 1.0, 0.0, 8.0)


class Surfaces(NamedTuple):
  """What the tables say about each pixel, before light falls on it."""

  ground: jax.Array  # [3, SIZE, SIZE] float32, color of the background
  pixels: jax.Array  # [SIZE, SIZE] float32, distance to the object's edge in pixels
  facing: jax.Array  # [SIZE, SIZE] float32, slope of that distance towards the light
  pattern: jax.Array  # [SIZE, SIZE] float32 in [0, 1], texture


class Layers(NamedTuple):
  """What a look may build on."""

  image: jax.Array  # [3, SIZE, SIZE] float32 in [0, 1]
  coverage: jax.Array  # [SIZE, SIZE] float32, how much of a pixel is the object


def pixel_grid() -> Points:
  """Centers of the pixels, from -1 to 1."""
  axis = ((np.arange(SIZE) + 0.5) / HALF - 1).astype(np.float32)
  return Points(*np.meshgrid(axis, axis, indexing="xy"))


def turn(angle: jax.Array) -> jax.Array:
  """[2, 2] rotation by `angle` radians, clockwise on the screen, for columns (x, y)."""
  c, s = jnp.cos(angle), jnp.sin(angle)
  return jnp.stack([jnp.stack([c, -s]), jnp.stack([s, c])])


def frames(maps: list[tuple[jax.Array, jax.Array]]) -> list[Points]:
  """The pixel grid in each of `F` frames `linear @ (x, y) + shift`.

  Args:
    maps: pairs of linear [2, 2] and shift [2].

  Returns:
    `F` coordinate planes.
  """
  rows = jnp.concatenate([jnp.concatenate([a, b[:, None]], axis=1) for a, b in maps])
  basis = np.stack([*pixel_grid(), np.ones((SIZE, SIZE), np.float32)]).reshape(3, -1)
  points = (rows @ basis).reshape(len(maps), 2, SIZE, SIZE)
  return [Points(x, y) for x, y in points]


def planes(color: jax.Array) -> jax.Array:
  """A color [3] as [3, 1, 1], to meet an image."""
  return jnp.asarray(color)[:, None, None]


def _look_up(table: jax.Array, pages: jax.Array, points: Points) -> jax.Array:
  """Bilinear samples [P, SIZE, SIZE] of `P` pages of a table that wraps, at points in tiles."""
  side = table.shape[-1]
  flat, first = table.reshape(-1), pages[:, None, None] * side**2
  left, top = jnp.floor(points.x * side), jnp.floor(points.y * side)
  fx, fy = (points.x * side - left)[None], (points.y * side - top)[None]
  j, i = left.astype(jnp.int32), top.astype(jnp.int32)
  columns = (j & (side - 1), (j + 1) & (side - 1))
  rows = ((i & (side - 1)) * side, ((i + 1) & (side - 1)) * side)
  (a, b), (c, d) = (
    [flat.at[first + (row + column)[None]].get(mode="promise_in_bounds") for column in columns]
    for row in rows
  )
  upper, lower = a + (b - a) * fx, c + (d - c) * fx
  return upper + (lower - upper) * fy


def _distance(shapes: jax.Array, page: jax.Array, q: Points) -> tuple[jax.Array, Points]:
  """Signed distance to a shape at points in radii, and its gradient, about a unit vector."""
  side = atlas_lib.PAGE
  limit = atlas_lib.EXTENT * (1 - 1.0 / side)
  inside = Points(jnp.clip(q.x, -limit, limit), jnp.clip(q.y, -limit, limit))
  x, y = ((t / atlas_lib.EXTENT + 1) * (side / 2) - 0.5 for t in inside)
  j = jnp.clip(x.astype(jnp.int32), 0, side - 2)
  i = jnp.clip(y.astype(jnp.int32), 0, side - 2)
  fx, fy = x - j, y - i
  flat, first = shapes.reshape(-1), page * side**2 + i * side + j
  a, b, c, d = (
    flat.at[first + step].get(mode="promise_in_bounds") for step in (0, 1, side, side + 1)
  )
  upper, lower = a + (b - a) * fx, c + (d - c) * fx
  slope_x, slope_y = (b - a) * (1 - fy) + (d - c) * fy, lower - upper
  texel = 2 * atlas_lib.EXTENT / side
  beyond = jnp.abs(q.x - inside.x) + jnp.abs(q.y - inside.y)
  return upper + (lower - upper) * fy + beyond, Points(slope_x / texel, slope_y / texel)


def stroke_coverage(points: Points, stroke: jax.Array, softness: float) -> jax.Array:
  """Coverage in [0, 1] of a round-ended stroke `(x, y, dx, dy, radius)`, [SIZE, SIZE].

  `softness` is the width of its edge, in the units of the points.
  """
  along, radius = stroke[2:4], stroke[4]
  offset = points.moved(-stroke[:2])
  part = jnp.clip(offset.along(along / (jnp.sum(along**2) + 1e-6)), 0.0, 1.0)
  dx, dy = offset.x - part * along[0], offset.y - part * along[1]
  return jnp.clip(0.5 - (jnp.sqrt(dx * dx + dy * dy) - radius) / softness, 0.0, 1.0)


def find_surfaces(
  atlas: atlas_lib.Atlas, scene: scenes.Scene, view: View = SOURCE_VIEW
) -> Surfaces:
  """Looks up what each pixel of one scene shows.

  Args:
    atlas: the tables of `mdtrap_jax.world.atlas`.
    scene: one scene.
    view: the camera.

  Returns:
    The surfaces, to be lit by `shade`.
  """
  kind = scene.attributes
  eye = turn(view.roll) / view.zoom
  eye_shift = view.focus - eye @ view.pin
  floor = turn(scene.ground_angle) * (scene.ground_scale / _GROUND_TILE)
  body = turn(-scene.angle)
  body_shift = body @ (eye_shift - scene.center)
  cloth = turn(scene.texture_angle) / (scene.period * atlas_lib.TEXTURE_PERIODS)
  world, place, local, tile = frames([
    (eye, eye_shift),
    (floor @ eye, floor @ eye_shift + scene.ground_offset),
    (body @ eye, body_shift),
    (cloth @ body @ eye, cloth @ body_shift + scene.texture_phase),
  ])  # fmt: skip

  ground = _look_up(atlas.grounds, 3 * kind.background + jnp.arange(3), place)
  ground = ground * planes(scene.ground_gain)
  for speck, color in zip(scene.specks, scene.speck_colors, strict=True):
    ground += (planes(color) - ground) * stroke_coverage(world, speck, 1.0 / HALF)[None]

  x, y = (t - view.lattice * jnp.clip(jnp.round(t / view.lattice), -4, 4) for t in local)
  x, y = x / scene.radius, y / scene.radius
  x, y = (x + scene.slant * y) / scene.aspect, y * scene.aspect
  q = Points(x + scene.bend[0] * y * y, y + scene.bend[1] * x * x)
  distance, normal = _distance(atlas.shapes, scene.page, q)
  pixels = (distance - scene.stroke) * (scene.radius * HALF * view.zoom)
  # The light as the object's own frame sees it, instead of turning every normal.
  facing = normal.along(turn(view.roll - scene.angle) @ scene.light)
  pattern = _look_up(atlas.textures, kind.texture[None], tile)[0]
  return Surfaces(ground, pixels, facing, pattern)


def shade(scene: scenes.Scene, view: View, surfaces: Surfaces) -> Layers:
  """Colors, lights and photographs the surfaces of one scene.

  Returns:
    The image [3, SIZE, SIZE] in [0, 1] and the object's coverage [SIZE, SIZE].
  """
  ground, pixels, facing, pattern = surfaces
  coverage = jnp.clip(0.5 - pixels / scene.softness, 0.0, 1.0)
  second = jnp.where(
    scene.tone > 0,
    scene.color + (1.0 - scene.color) * scene.tone,
    scene.color * (1.0 + scene.tone),
  )
  surface = planes(scene.color) + planes(second - scene.color) * pattern[None]
  # The rim darkens the last pixel and a half, the bevel lights the side that faces the light.
  rim = scene.rim * jnp.clip(1.0 + pixels / 1.5, 0.0, 1.0)
  bevel = 1.2 * facing * jnp.exp(jnp.minimum(pixels, 0.0) / 3.0)
  surface = surface * (1.0 - rim)[None] + bevel[None]

  # The distance at a point shifted against the light, to first order: the cast shadow.
  cast = pixels + 12.0 * view.zoom * facing
  shadow = scene.shadow * jnp.clip(0.5 - cast / 4.0, 0.0, 1.0)
  image = ground * (1.0 - shadow)[None]
  image = image + (surface - image) * coverage[None]

  sheen = 1.0 + pixel_grid().along(scene.light)
  image = image * sheen[None] * planes(scene.gain)
  image = 0.5 + (image - 0.5) * scene.contrast
  noise = pixel_noise(jax.random.fold_in(scene.key, 0))
  return Layers(jnp.clip(image + scene.grain * noise, 0.0, 1.0), coverage)


def pixel_noise(key: jax.Array) -> jax.Array:
  """[3, SIZE, SIZE] float32 noise, uniform with mean 0 and deviation 1.

  One random word gives the three channels of a pixel.
  """
  bits = jax.random.bits(key, (SIZE, SIZE), jnp.uint32)
  levels = [((bits >> shift) & 1023).astype(jnp.float32) for shift in (0, 10, 20)]
  return (jnp.stack(levels) - 511.5) * (np.sqrt(12.0) / 1024)


def to_uint8(image: jax.Array) -> jax.Array:
  """Rounds an image in [0, 1] to bytes."""
  return jnp.round(jnp.clip(image, 0.0, 1.0) * 255).astype(jnp.uint8)
