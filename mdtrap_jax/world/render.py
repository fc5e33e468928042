"""Rendering of scenes: one scene is a pure function, batches of any size run it in fixed chunks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mdtrap_jax.world import atlas as atlas_lib
from mdtrap_jax.world import scenes

SIZE = 48  # Side of an image in pixels.
HALF = SIZE / 2  # Pixels in a unit length.
_GROUND_TILE = 2.7  # Length of a background tile, a little more than an image width.


class View(NamedTuple):
  """Camera: where the world is looked at from; `SOURCE_VIEW` is the source domain's."""

  focus: jax.Array  # [2] float32, the point of the world that the camera turns about
  pin: jax.Array  # [2] float32, where in the image that point appears
  zoom: jax.Array  # [] float32, > 1 is nearer
  roll: jax.Array  # [] float32, radians
  lattice: jax.Array  # [] float32, distance between copies of the object


# No copy at this distance reaches the image.
SOURCE_VIEW = View(np.zeros(2, np.float32), np.zeros(2, np.float32), 1.0, 0.0, 8.0)


class Layers(NamedTuple):
  """What a look may build on."""

  image: jax.Array  # [SIZE, SIZE, 3] float32 in [0, 1]
  coverage: jax.Array  # [SIZE, SIZE] float32, how much of a pixel is the object


def pixel_grid() -> np.ndarray:
  """[SIZE, SIZE, 2] float32 centers of pixels, (x, y) in [-1, 1]."""
  axis = ((np.arange(SIZE) + 0.5) / HALF - 1).astype(np.float32)
  return np.stack(np.meshgrid(axis, axis, indexing="xy"), axis=-1)


def rotate(points: jax.Array, angle: jax.Array) -> jax.Array:
  """Turns [..., 2] points by `angle` radians, clockwise on the screen (y is down)."""
  c, s = jnp.cos(angle), jnp.sin(angle)
  x, y = points[..., 0], points[..., 1]
  return jnp.stack([c * x - s * y, s * x + c * y], axis=-1)


# XLA would compute a look-up again for each of the pixel operations that read it.
_keep = jax.lax.optimization_barrier


def _taps(table: jax.Array, page: jax.Array, x: jax.Array, y: jax.Array, wrap: bool):
  """The four neighbors of texel positions x, y in a page of the table, and the fractions."""
  side = table.shape[1]
  left, top = jnp.floor(x), jnp.floor(y)
  i, j = top.astype(jnp.int32), left.astype(jnp.int32)
  edge = (lambda k: k & (side - 1)) if wrap else (lambda k: jnp.clip(k, 0, side - 1))
  rows, columns = (edge(i), edge(i + 1)), (edge(j), edge(j + 1))
  taps = [[table[page, r, c] for c in columns] for r in rows]
  return taps, x - left, y - top


def _look_up(table: jax.Array, page: jax.Array, position: jax.Array) -> jax.Array:
  """Bilinear sample of a table that wraps, at `position` in tiles, [..., 2]."""
  texel = position * table.shape[1]
  (a, b), fx, fy = _taps(table, page, texel[..., 0], texel[..., 1], wrap=True)
  if table.ndim == 4:
    fx, fy = fx[..., None], fy[..., None]
  top = a[0] + (a[1] - a[0]) * fx
  return top + (b[0] + (b[1] - b[0]) * fx - top) * fy


def _distance(shapes: jax.Array, page: jax.Array, q: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Signed distance to a shape at [..., 2] points in radii, and its unit gradient."""
  limit = atlas_lib.EXTENT * (1 - 1.0 / atlas_lib.PAGE)
  inside = jnp.clip(q, -limit, limit)
  texel = (inside / atlas_lib.EXTENT + 1) * (atlas_lib.PAGE / 2) - 0.5
  (a, b), fx, fy = _taps(shapes, page, texel[..., 0], texel[..., 1], wrap=False)
  top, bottom = a[0] + (a[1] - a[0]) * fx, b[0] + (b[1] - b[0]) * fx
  slope_x = (a[1] - a[0]) * (1 - fy) + (b[1] - b[0]) * fy
  gradient = jnp.stack([slope_x, bottom - top], axis=-1)
  gradient = gradient / (jnp.linalg.norm(gradient, axis=-1, keepdims=True) + 1e-3)
  beyond = jnp.sum(jnp.abs(q - inside), axis=-1)
  return top + (bottom - top) * fy + beyond, gradient


def stroke_coverage(points: jax.Array, stroke: jax.Array, softness: float) -> jax.Array:
  """Coverage in [0, 1] of a round-ended stroke `(x, y, dx, dy, radius)` at [..., 2] points.

  `softness` is the width of its edge, in the units of the points.
  """
  start, along, radius = stroke[:2], stroke[2:4], stroke[4]
  offset = points - start[None, None]
  part = jnp.sum(offset * along[None, None], axis=-1) / (jnp.sum(along**2) + 1e-6)
  nearest = jnp.clip(part, 0.0, 1.0)[..., None] * along[None, None]
  distance = jnp.linalg.norm(offset - nearest, axis=-1) - radius
  return jnp.clip(0.5 - distance / softness, 0.0, 1.0)


def render_scene(
  atlas: atlas_lib.Atlas, scene: scenes.Scene, view: View = SOURCE_VIEW
) -> Layers:
  """Draws one scene as seen by a view.

  Args:
    atlas: the tables of `mdtrap_jax.world.atlas`.
    scene: one scene.
    view: the camera.

  Returns:
    The image [SIZE, SIZE, 3] in [0, 1] and the object's coverage [SIZE, SIZE].
  """
  screen = jnp.asarray(pixel_grid())
  world = rotate((screen - view.pin) / view.zoom, view.roll) + view.focus
  kind = scene.attributes

  place = rotate(world * scene.ground_scale, scene.ground_angle) / _GROUND_TILE
  place = _keep(place + scene.ground_offset[None, None])
  ground = _keep(_look_up(atlas.grounds, kind.background, place))
  ground = ground * scene.ground_gain[None, None]
  for speck, color in zip(scene.specks, scene.speck_colors, strict=True):
    cover = stroke_coverage(world, speck, 1.0 / HALF)[..., None]
    ground = ground + (color[None, None] - ground) * cover

  offset = world - scene.center[None, None]
  copy = jnp.clip(jnp.round(offset / view.lattice), -4, 4)
  local = rotate(offset - view.lattice * copy, -scene.angle)
  q = local / scene.radius
  x = (q[..., 0] + scene.slant * q[..., 1]) / scene.aspect
  y = q[..., 1] * scene.aspect
  bend, phase_x, phase_y = scene.warp
  q = jnp.stack(
    [x + bend * jnp.sin(2.5 * y + phase_x), y + bend * jnp.sin(2.5 * x + phase_y)], axis=-1
  )
  distance, normal = _keep(_distance(atlas.shapes, scene.page, _keep(q)))
  pixels = (distance - scene.stroke) * (scene.radius * HALF * view.zoom)
  normal = rotate(normal, scene.angle - view.roll)
  facing = jnp.sum(normal * scene.light[None, None], axis=-1)
  coverage = jnp.clip(0.5 - pixels / scene.softness, 0.0, 1.0)

  tile = rotate(local, scene.texture_angle) / (scene.period * atlas_lib.TEXTURE_PERIODS)
  tile = _keep(tile + scene.texture_phase[None, None])
  pattern = _keep(_look_up(atlas.textures, kind.texture, tile))
  second = jnp.where(
    scene.tone > 0,
    scene.color + (1.0 - scene.color) * scene.tone,
    scene.color * (1.0 + scene.tone),
  )
  surface = scene.color[None, None] + (second - scene.color)[None, None] * pattern[..., None]
  # The rim darkens the last pixel and a half, the bevel lights the side that faces the light.
  rim = scene.rim * jnp.clip(1.0 + pixels / 1.5, 0.0, 1.0)
  bevel = 1.2 * facing * jnp.exp(jnp.minimum(pixels, 0.0) / 3.0)
  surface = surface * (1.0 - rim)[..., None] + bevel[..., None]

  # The distance at a point shifted against the light, to first order: the cast shadow.
  cast = pixels + 12.0 * view.zoom * facing
  shadow = scene.shadow * jnp.clip(0.5 - cast / 4.0, 0.0, 1.0)
  image = ground * (1.0 - shadow)[..., None]
  image = image + (surface - image) * coverage[..., None]

  sheen = 1.0 + jnp.sum(screen * scene.light[None, None], axis=-1)
  image = image * sheen[..., None] * scene.gain[None, None]
  image = 0.5 + (image - 0.5) * scene.contrast
  noise = _keep(pixel_noise(jax.random.fold_in(scene.key, 0)))
  return Layers(jnp.clip(image + scene.grain * noise, 0.0, 1.0), coverage)


def pixel_noise(key: jax.Array) -> jax.Array:
  """[SIZE, SIZE, 3] float32 noise, uniform with mean 0 and deviation 1.

  One random word gives the three channels of a pixel.
  """
  bits = jax.random.bits(key, (SIZE, SIZE), jnp.uint32)
  bytes_ = (bits[..., None] >> jnp.array([0, 10, 20], jnp.uint32)) & 1023
  return (bytes_.astype(jnp.float32) - 511.5) * (np.sqrt(12.0) / 1024)


def to_uint8(image: jax.Array) -> jax.Array:
  """Rounds an image in [0, 1] to bytes."""
  return jnp.round(jnp.clip(image, 0.0, 1.0) * 255).astype(jnp.uint8)
