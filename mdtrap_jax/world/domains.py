"""Looks: domains that keep what a scene means and change how it looks, by a severity in [0, 1].

A look is a camera (`view`), which moves before the scene is drawn, and a finish, which works on
the drawn image. Both blend linearly from the source's, so that severity 0 is the source image
and every step away from it removes more. No look crosses over a negative on its way: a blend of
an image with its inverse would be blank half way, and severity 0.5 harder than 1.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mdtrap_jax.world import atlas as atlas_lib
from mdtrap_jax.world import render, scenes
from mdtrap_jax.world.render import SIZE, Layers, View

CHUNK = 32  # Scenes a compiled step renders; fixed, so that no result depends on the batch.
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


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
  """Gaussian blur of [SIZE, SIZE, ...] by `sigma` pixels."""
  matrix = jnp.asarray(_blur_matrix(sigma))
  return jnp.einsum("ia,jb,ab...->ij...", matrix, matrix, image)


def _toward(image: jax.Array, other: jax.Array, amount: jax.Array) -> jax.Array:
  return image + (other - image) * amount


def _gray(image: jax.Array) -> jax.Array:
  return jnp.sum(image * _LUMINANCE[None, None], axis=-1)


def _vignette(inner: float, outer: float) -> np.ndarray:
  """[SIZE, SIZE], 0 within `inner` of the center and 1 beyond `outer`."""
  distance = np.linalg.norm(render.pixel_grid(), axis=-1)
  return np.clip((distance - inner) / (outer - inner), 0, 1).astype(np.float32)


def _source_view(atlas, scene, severity) -> View:
  del atlas, scene, severity
  return render.SOURCE_VIEW


def _radiograph(layers: Layers, severity: jax.Array, key: jax.Array) -> jax.Array:
  """Gray film: density and thickness of the object, rib-like bands, blur, quantum noise."""
  keys = jax.random.split(key, 2)
  gray, cover = _gray(layers.image), layers.coverage
  inside = jnp.sum(gray * cover) / (jnp.sum(cover) + 1e-3)
  around = jnp.sum(gray * (1 - cover)) / (jnp.sum(1 - cover) + 1e-3)
  # Film shows an object as denser or as clearer than what is around it; keep the scene's order.
  polarity = jnp.where(inside < around, -1.0, 1.0)
  detail = gray - _blur(gray, 5.0)
  phase = jax.random.uniform(keys[0], (3,)) * 2 * np.pi
  x, y = np.moveaxis(render.pixel_grid(), -1, 0)
  bands = jnp.sin(5.0 * (y + 0.25 * x**2) + phase[0]) + 0.6 * jnp.sin(3.0 * x + phase[1])
  film = 0.45 + polarity * (0.26 * cover - 0.06) + 0.45 * detail + 0.07 * bands
  film = film * (1.0 - 0.7 * _vignette(0.75, 1.35))
  film = film[..., None] * jnp.array([0.95, 1.0, 1.03])[None, None]
  image = _toward(layers.image, film, severity)
  image = _toward(image, _blur(image, 1.5), severity)
  noise = render.pixel_noise(keys[1])[..., :1]
  noise = 0.6 * noise + 1.6 * _blur(noise, 0.9)
  return image + severity**2 * 0.11 * noise


def _satellite_view(atlas, scene, severity) -> View:
  """Rises above the scene until the object is small and one of many."""
  del atlas
  spacing = 2.3 * scene.radius
  lattice = _toward(render.SOURCE_VIEW.lattice, spacing, severity**0.3)
  return View(scene.center, scene.center, 1.0 / (1.0 + 1.1 * severity), 0.0, lattice)


def _satellite(layers: Layers, severity: jax.Array, key: jax.Array) -> jax.Array:
  """Roads and roofs as clutter, haze, a soft sensor with column noise."""
  keys = jax.random.split(key, 4)
  grid = jnp.asarray(render.pixel_grid())
  image = layers.image
  u = jax.random.uniform(keys[0], (8, 6), minval=-1.0)
  for road in u[:2]:
    turn = jnp.pi * road[0]
    along = 4.0 * jnp.stack([jnp.cos(turn), jnp.sin(turn)])
    start = 0.9 * road[1:3] - 0.5 * along
    line = jnp.concatenate([start, along, jnp.array([0.035])])
    cover = render.stroke_coverage(grid, line, 0.05)[..., None]
    image = _toward(image, jnp.array([0.62, 0.60, 0.57])[None, None], 0.8 * severity * cover)
  for roof in u[2:]:
    block = jnp.concatenate([roof[:2], 0.12 * roof[2:4], jnp.array([0.05])])
    cover = render.stroke_coverage(grid, block, 0.05)[..., None]
    shade = (0.45 + 0.3 * roof[4]) * jnp.array([1.05, 0.98, 0.9])
    image = _toward(image, shade[None, None], 0.8 * severity * cover)
  haze = _blur(render.pixel_noise(keys[1])[..., :1], 6.0) * 1.2
  image = _toward(image, jnp.array([0.66, 0.71, 0.76])[None, None], severity * (0.42 + haze))
  image = _toward(image, _blur(image, 0.8), severity)
  column = jax.random.normal(keys[2], (1, SIZE, 1)) * 0.5
  return image + severity * 0.05 * (render.pixel_noise(keys[3]) + column)


def _dermoscopy(layers: Layers, severity: jax.Array, key: jax.Array) -> jax.Array:
  """A faint patch in skin: tint, little contrast, hairs, gel highlights, a dark round frame."""
  keys = jax.random.split(key, 4)
  gray = _gray(layers.image)[..., None]
  chroma = layers.image - gray
  mottle = _blur(render.pixel_noise(keys[0])[..., :1], 2.5)
  skin = jnp.array([0.84, 0.62, 0.53])[None, None] + 0.16 * mottle
  tinted = skin + (gray - 0.6) * jnp.array([0.26, 0.32, 0.34])[None, None] + 0.3 * chroma
  image = _toward(layers.image, tinted, severity)
  image = _toward(image, _blur(image, 1.1), severity)
  grid = jnp.asarray(render.pixel_grid())
  u = jax.random.uniform(keys[1], (7, 4), minval=-1.0)
  for hair in u:
    turned = render.rotate(grid, jnp.pi * hair[0])
    middle = 0.8 * hair[1] + 0.25 * hair[2] * jnp.square(turned[..., 0] + hair[3])
    cover = jnp.clip(1.3 - jnp.abs(turned[..., 1] - middle) * 26.0, 0.0, 1.0)[..., None]
    image = _toward(image, jnp.array([0.16, 0.10, 0.08])[None, None], 0.8 * severity * cover)
  for bubble in jax.random.uniform(keys[2], (3, 2), minval=-0.8, maxval=0.8):
    spot = jnp.exp(-60.0 * jnp.sum(jnp.square(grid - bubble[None, None]), axis=-1))
    image = image + 0.35 * severity * spot[..., None]
  image = image * (1.0 - severity * 0.9 * _vignette(0.82, 1.2))[..., None]
  return image + severity * 0.03 * render.pixel_noise(keys[3])


def _closeup_view(atlas, scene, severity) -> View:
  """Moves to the thickest part of the object until its edge leaves the frame."""
  q = jnp.asarray(atlas.anchors)[scene.page] * scene.radius
  focus = scene.center + render.rotate(q, scene.angle)
  turn = jax.random.uniform(jax.random.fold_in(scene.key, 2), minval=-1.0, maxval=1.0)
  return View(
    focus=focus,
    pin=focus * (1.0 - severity),
    zoom=1.0 + 2.2 * severity,
    roll=0.8 * severity * turn,
    lattice=render.SOURCE_VIEW.lattice,
  )


def _closeup(layers: Layers, severity: jax.Array, key: jax.Array) -> jax.Array:
  """Shallow depth of field, lamp light from one side, faded color and coarse grain."""
  keys = jax.random.split(key, 3)
  image = layers.image
  u = jax.random.uniform(keys[0], (4,), minval=-1.0)
  grid = jnp.asarray(render.pixel_grid())
  away = jnp.linalg.norm(grid - 0.4 * u[None, None, :2], axis=-1)
  depth = jnp.clip(away * 0.7 + 0.35, 0.0, 1.0)[..., None]
  image = _toward(image, _blur(image, 3.0), severity * depth)
  gray = _gray(image)[..., None]
  image = _toward(image, gray, 0.45 * severity)
  lamp = jnp.sum(grid * u[None, None, 2:], axis=-1)[..., None]
  image = image * (1.0 + severity * 0.35 * lamp)
  image = _toward(image, jnp.array([0.70, 0.60, 0.46])[None, None], 0.28 * severity)
  noise = render.pixel_noise(keys[1])
  return image + severity * 0.09 * (noise[..., :1] + 0.5 * _blur(noise, 0.8))


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


def _draw(atlas, scene, severity, *, look: Look) -> jax.Array:
  layers = render.render_scene(atlas, scene, look.view(atlas, scene, severity))
  image = look.finish(layers, severity, jax.random.fold_in(scene.key, 1))
  return render.to_uint8(image)


@functools.cache
def _draw_many(domain: str):
  draw = jax.vmap(functools.partial(_draw, look=LOOKS[domain]), in_axes=(None, 0, None))

  @jax.jit
  def run(atlas, batch, severity):
    count = batch.radius.shape[0]
    pad = -count % CHUNK
    row = (jnp.arange(count + pad) % count).reshape(-1, CHUNK)
    images = jax.lax.map(
      lambda rows: draw(atlas, jax.tree.map(lambda leaf: leaf[rows], batch), severity), row
    )
    return images.reshape(-1, SIZE, SIZE, 3)[:count]

  return run


@functools.cache
def _device_atlas() -> atlas_lib.Atlas:
  return jax.tree.map(jnp.asarray, atlas_lib.atlas())


def check(domain: str, severity: float) -> None:
  """Raises ValueError unless the domain exists and the severity is in [0, 1]."""
  if domain not in LOOKS:
    raise ValueError(f"{domain=} is not in the generated world; choose from {sorted(LOOKS)}.")
  if not 0.0 <= severity <= 1.0:
    raise ValueError(f"{severity=} must be between 0 (source look) and 1.")


def render_batch(
  batch: scenes.Scene, domain: str = "source", severity: float = 0.0
) -> jax.Array:
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
  return draw(_device_atlas(), batch, jnp.float32(severity))
