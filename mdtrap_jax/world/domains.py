"""Looks: domains that keep what a scene means and change how it looks, by a severity in [0, 1].

A look is a camera (`view`), which moves before the scene is drawn, and a finish, which works on
the drawn image. Both blend linearly from the source's, so that severity 0 is the source image
and every step away from it removes more. No look crosses over a negative on its way: a blend of
an image with its inverse would be blank half way, and severity 0.5 harder than 1.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mdtrap_jax.world import atlas as atlas_lib
from mdtrap_jax.world import render, scenes
from mdtrap_jax.world.render import SIZE, Layers, View, planes

# Scenes that one call of the compiled program renders, whatever the batch, so that no result
# depends on the batch; and scenes in each turn of the loops inside.
BLOCK, CHUNK = 128, 32


class Look(NamedTuple):
  """A domain's camera and finish, for one scene."""

  view: Callable[[atlas_lib.Atlas, scenes.Scene, jax.Array], View]
  finish: Callable[[Layers, jax.Array, jax.Array], jax.Array]  # (layers, severity, key)


@functools.cache
def _blur_matrix(sigma: float) -> np.ndarray:
  """[SIZE, SIZE] rows of a Gaussian over pixels that repeats the edge."""
  position = np.arange(SIZE)
  reach = int(4 * sigma) + 1
  matrix = np.zeros((SIZE, SIZE), np.float32)
  for shift in range(-reach, reach + 1):
    weight = np.exp(-0.5 * (shift / sigma) ** 2)
    np.add.at(matrix, (position, np.clip(position + shift, 0, SIZE - 1)), weight)
  return matrix / matrix.sum(axis=1, keepdims=True)


def _blur(image: jax.Array, sigma: float) -> jax.Array:
  """Gaussian blur of [..., SIZE, SIZE] by `sigma` pixels."""
  matrix = jnp.asarray(_blur_matrix(sigma))
  return matrix @ image @ matrix.T


def _toward(image: jax.Array, other: jax.Array, amount: jax.Array) -> jax.Array:
  return image + (other - image) * amount


def _gray(image: jax.Array) -> jax.Array:
  """Luminance [SIZE, SIZE]."""
  return 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]


def _polarity(gray: jax.Array, cover: jax.Array) -> jax.Array:
  """1 where the object is lighter than what is around it, else -1."""
  inside = jnp.sum(gray * cover) / (jnp.sum(cover) + 1e-3)
  around = jnp.sum(gray * (1 - cover)) / (jnp.sum(1 - cover) + 1e-3)
  return jnp.where(inside < around, -1.0, 1.0)


def _vignette(inner: float, outer: float) -> np.ndarray:
  """[SIZE, SIZE], 0 within `inner` of the center and 1 beyond `outer`."""
  distance = np.hypot(*render.pixel_grid())
  return np.clip((distance - inner) / (outer - inner), 0, 1).astype(np.float32)


def _source_view(atlas, scene, severity) -> View:
  del atlas, scene, severity
  return render.SOURCE_VIEW


def _radiograph(layers: Layers, severity: jax.Array, key: jax.Array) -> jax.Array:
  """Gray film: density and thickness of the object, rib-like bands, blur, quantum noise."""
  keys = jax.random.split(key, 2)
  gray, cover = _gray(layers.image), layers.coverage
  # Film shows an object as denser or as clearer than what is around it; keep the scene's order.
  polarity = _polarity(gray, cover)
  detail = gray - _blur(gray, 5.0)
  phase = jax.random.uniform(keys[0], (2,)) * 2 * np.pi
  x, y = render.pixel_grid()
  bands = jnp.sin(5.0 * (y + 0.25 * x**2) + phase[0]) + 0.6 * jnp.sin(3.0 * x + phase[1])
  film = 0.45 + polarity * (0.26 * cover - 0.06) + 0.65 * detail + 0.07 * bands
  film = film * (1.0 - 0.7 * _vignette(0.75, 1.35))
  film = film[None] * planes(np.array([0.95, 1.0, 1.03], np.float32))
  image = _toward(layers.image, film, severity)
  image = _toward(image, _blur(image, 1.3), severity)
  noise = render.pixel_noise(keys[1])[:1]
  noise = 0.6 * noise + 1.6 * _blur(noise, 0.9)
  return image + severity**2 * 0.065 * noise


def _satellite_view(atlas, scene, severity) -> View:
  """Rises above the scene until the object is small and one of many."""
  del atlas
  height = jnp.maximum(scene.radius / 0.27, 1.0)  # At which the radius is 0.27.
  lattice = _toward(render.SOURCE_VIEW.lattice, 2.4 * scene.radius, severity**0.3)
  return View(scene.center, scene.center, 1.0 / _toward(1.0, height, severity), 0.0, lattice)


def _satellite(layers: Layers, severity: jax.Array, key: jax.Array) -> jax.Array:
  """Roads and roofs as clutter, haze, a soft sensor with column noise."""
  keys = jax.random.split(key, 4)
  grid = render.pixel_grid()
  image = layers.image
  u = jax.random.uniform(keys[0], (7, 5), minval=-1.0)
  for road in u[:2]:
    turn = jnp.pi * road[0]
    along = 4.0 * jnp.stack([jnp.cos(turn), jnp.sin(turn)])
    line = jnp.concatenate([0.9 * road[1:3] - 0.5 * along, along, jnp.array([0.03])])
    cover = render.stroke_coverage(grid, line, 0.05)[None]
    image = _toward(image, planes(jnp.array([0.62, 0.60, 0.57])), 0.8 * severity * cover)
  for roof in u[2:]:
    block = jnp.concatenate([roof[:2], 0.12 * roof[2:4], jnp.array([0.05])])
    cover = render.stroke_coverage(grid, block, 0.05)[None]
    shade = (0.45 + 0.3 * roof[4]) * jnp.array([1.05, 0.98, 0.9])
    image = _toward(image, planes(shade), 0.8 * severity * cover)
  cloud = 1.2 * _blur(render.pixel_noise(keys[1])[:1], 6.0)
  image = _toward(image, planes(jnp.array([0.66, 0.71, 0.76])), severity * (0.40 + cloud))
  image = _toward(image, _blur(image, 0.7), severity)
  column = jax.random.normal(keys[2], (1, 1, SIZE)) * 0.5
  return image + severity * 0.045 * (render.pixel_noise(keys[3]) + column)


def _dermoscopy(layers: Layers, severity: jax.Array, key: jax.Array) -> jax.Array:
  """A faint patch in skin: tint, little contrast, hairs, gel highlights, a dark round frame."""
  keys = jax.random.split(key, 4)
  gray, cover = _gray(layers.image), layers.coverage
  chroma = layers.image - gray[None]
  mottle = _blur(render.pixel_noise(keys[0])[0], 2.5)
  tone = 0.85 * (gray - 0.6) + 0.25 * (_polarity(gray, cover) * cover - 0.2) + 0.4 * mottle
  skin = planes(jnp.array([0.80, 0.60, 0.51]))
  tinted = skin + planes(jnp.array([0.36, 0.40, 0.40])) * tone[None] + 0.38 * chroma
  image = _toward(layers.image, tinted, severity)
  image = _toward(image, _blur(image, 1.0), severity)
  grid = render.pixel_grid()
  for hair in jax.random.uniform(keys[1], (5, 4), minval=-1.0):
    rows = render.turn(jnp.pi * hair[0])
    middle = 0.8 * hair[1] + 0.25 * hair[2] * jnp.square(grid.along(rows[0]) + hair[3])
    strand = jnp.clip(1.2 - jnp.abs(grid.along(rows[1]) - middle) * 28.0, 0.0, 1.0)[None]
    image = _toward(image, planes(jnp.array([0.2, 0.13, 0.10])), 0.75 * severity * strand)
  for bubble in jax.random.uniform(keys[2], (3, 2), minval=-0.8, maxval=0.8):
    offset = grid.moved(-bubble)
    spot = jnp.exp(-60.0 * (jnp.square(offset.x) + jnp.square(offset.y)))
    image = image + 0.3 * severity * spot[None]
  image = image * (1.0 - severity * 0.9 * _vignette(0.85, 1.25))[None]
  return image + severity * 0.03 * render.pixel_noise(keys[3])


def _closeup_view(atlas, scene, severity) -> View:
  """Moves to the thickest part of the object until its edge leaves the frame."""
  anchor = jnp.asarray(atlas.anchors)[scene.page] * scene.radius
  focus = scene.center + render.turn(scene.angle) @ anchor
  roll = jax.random.uniform(jax.random.fold_in(scene.key, 2), minval=-0.8, maxval=0.8)
  return View(
    focus=focus,
    pin=focus * (1.0 - severity),
    zoom=1.0 + 2.2 * severity,
    roll=severity * roll,
    lattice=render.SOURCE_VIEW.lattice,
  )


def _closeup(layers: Layers, severity: jax.Array, key: jax.Array) -> jax.Array:
  """Shallow depth of field, lamp light from one side, faded color and coarse grain."""
  keys = jax.random.split(key, 2)
  u = jax.random.uniform(keys[0], (4,), minval=-1.0)
  grid = render.pixel_grid()
  offset = grid.moved(-0.4 * u[:2])
  depth = jnp.clip(0.7 * jnp.hypot(*offset) + 0.35, 0.0, 1.0)[None]
  image = _toward(layers.image, _blur(layers.image, 3.0), severity * depth)
  image = _toward(image, _gray(image)[None], 0.45 * severity)
  image = image * (1.0 + severity * 0.35 * grid.along(u[2:]))[None]
  image = _toward(image, planes(jnp.array([0.70, 0.60, 0.46])), 0.28 * severity)
  noise = render.pixel_noise(keys[1])
  return image + severity * 0.085 * (noise[:1] + 0.5 * _blur(noise, 0.8))


def _no_finish(layers: Layers, severity: jax.Array, key: jax.Array) -> jax.Array:
  del severity, key
  return layers.image


LOOKS = {
  "source": Look(_source_view, _no_finish),
  "radiograph": Look(_source_view, _radiograph),
  "satellite": Look(_satellite_view, _satellite),
  "dermoscopy": Look(_source_view, _dermoscopy),
  "closeup": Look(_closeup_view, _closeup),
}


def _in_chunks(function: Callable, *batch: Any) -> Any:
  """Maps over the leading axes, BLOCK long, CHUNK at a time.

  The loop fits the cache and keeps the compiler from merging one step of the drawing into the
  next, where it would repeat the work of the first for every use: measured, 5 times slower.
  """
  chunks = jax.tree.map(lambda leaf: leaf.reshape(-1, CHUNK, *leaf.shape[1:]), batch)
  results = jax.lax.map(lambda chunk: jax.vmap(function)(*chunk), chunks)
  return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), results)


@functools.cache
def _draw_many(domain: str) -> Callable[[atlas_lib.Atlas, scenes.Scene, jax.Array], jax.Array]:
  look = LOOKS[domain]

  @jax.jit
  def draw(atlas, batch, severity):
    def find(scene):
      view = jax.tree.map(jnp.float32, look.view(atlas, scene, severity))
      return view, render.find_surfaces(atlas, scene, view)

    def finish(scene, layers):
      key = jax.random.fold_in(scene.key, 1)
      return render.to_uint8(look.finish(layers, severity, key))

    views, surfaces = _in_chunks(find, batch)
    layers = _in_chunks(render.shade, batch, views, surfaces)
    images = _in_chunks(finish, batch, layers)
    return jnp.moveaxis(images, 1, -1)

  return draw


@functools.cache
def _device_atlas() -> atlas_lib.Atlas:
  with jax.ensure_compile_time_eval():  # Kept across calls, so never a tracer.
    return jax.tree.map(jnp.asarray, atlas_lib.atlas())


def check(domain: str, severity: float) -> None:
  """Raises ValueError unless the domain exists and the severity is in [0, 1]."""
  if domain not in LOOKS:
    raise ValueError(f"{domain=} is not in the generated world; choose from {sorted(LOOKS)}.")
  if not 0.0 <= severity <= 1.0:
    raise ValueError(f"{severity=} must be between 0 (source look) and 1.")


def render_batch(batch: scenes.Scene, domain: str = "source", severity: float = 0.0) -> jax.Array:
  """Renders scenes in a domain.

  Args:
    batch: scenes, every leaf with a leading axis [B].
    domain: one of `LOOKS`.
    severity: 0 (exactly the source image) to 1.

  Returns:
    [B, SIZE, SIZE, 3] uint8, each image a function of its own scene alone.

  Raises:
    ValueError: If the domain or the severity is not valid.
  """
  check(domain, severity)
  # Severity 0 takes the source's own program: equal to the last bit, not only in exact numbers.
  draw = _draw_many(domain if severity > 0 else "source")
  count = batch.radius.shape[0]
  if count % BLOCK:
    rows = np.minimum(np.arange(count + -count % BLOCK), count - 1)  # The last one fills up.
    batch = jax.tree.map(lambda leaf: leaf[rows], batch)
  images = []
  for start in range(0, count, BLOCK):
    block = jax.tree.map(lambda leaf, start=start: leaf[start : start + BLOCK], batch)
    images.append(draw(_device_atlas(), block, jnp.float32(severity)))
  return jnp.concatenate(images)[:count]
