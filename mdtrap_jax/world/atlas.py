"""Tables that the renderer samples: signed distances of shapes, textures, backgrounds.

They are computed once, on first use, in numpy. With them every shape, texture and background
costs the renderer one bilinear look-up each, whichever it is: no branch per scene, which under
`vmap` would mean paying for all of them.
"""

import functools
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from mdtrap_jax.world import glyphs, scenes

EXTENT = 1.3  # Shape pages cover [-EXTENT, EXTENT] radii.
PAGE = 64  # Side of a shape page.
TILE = 128  # Side of a texture or background tile; a power of two, since it wraps.
TEXTURE_PERIODS = 4  # Periods of the pattern in one texture tile.
_FINE = 256  # Side of the mask a page is measured from.


class Atlas(NamedTuple):
  """The tables."""

  shapes: np.ndarray  # [pages, PAGE, PAGE] float32, distance in radii, negative inside
  anchors: np.ndarray  # [pages, 2] float32, deepest point of each shape, in radii
  textures: np.ndarray  # [textures, TILE, TILE] float32 in [0, 1]
  grounds: np.ndarray  # [3 * backgrounds, TILE, TILE] float32 in [0, 1], r, g, b of each


def _polar(radius, count=360):
  """[count, 2] points round the origin from the top, at a radius or at one radius each."""
  angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
  return np.stack([radius * np.sin(angle), -radius * np.cos(angle)], axis=1)


def _heart():
  t = np.linspace(0, 2 * np.pi, 200, endpoint=False)
  x = 16 * np.sin(t) ** 3
  y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
  return np.stack([x / 17, -(y + 2.5) / 16], axis=1)


def _star():
  return _polar(np.tile([1.0, 0.42], 5), 10)


def _drop():
  t = np.linspace(0, 2 * np.pi, 200, endpoint=False)
  return np.stack([0.95 * np.sin(t) * np.sin(t / 2) ** 1.6, -np.cos(t)], axis=1)


def _leaf():
  """A pointed oval leaning to the right, with a stalk."""
  t = np.linspace(-1, 1, 100)
  side = 0.48 * (1 - t**2)
  blade = np.concatenate([np.stack([side, t], 1), np.stack([-side, t], 1)[::-1]])
  blade = blade * [1.0, 0.85] - [0.0, 0.15]
  stalk = np.array([[-0.06, 0.6], [0.06, 0.6], [0.06, 1.05], [-0.06, 1.05]])
  turn = np.array([[np.cos(0.6), np.sin(0.6)], [-np.sin(0.6), np.cos(0.6)]])
  return [blade @ turn, stalk @ turn]


# Each shape is the union of its polygons, less the polygons of `_HOLES`.
_POLYGONS = {
  "circle": [_polar(0.9)],
  "square": [[(-0.78, -0.78), (0.78, -0.78), (0.78, 0.78), (-0.78, 0.78)]],
  "triangle": [[(0, -0.95), (0.95, 0.72), (-0.95, 0.72)]],
  "star": [_star()],
  "cross": [
    [(-0.3, -0.9), (0.3, -0.9), (0.3, 0.9), (-0.3, 0.9)],
    [(-0.9, -0.3), (0.9, -0.3), (0.9, 0.3), (-0.9, 0.3)],
  ],
  "heart": [_heart()],
  "ring": [_polar(0.95)],
  "crescent": [_polar(0.95)],
  "hexagon": [_polar(0.95, 6) @ [[0, 1], [1, 0]]],
  "diamond": [[(0, -1), (0.62, 0), (0, 1), (-0.62, 0)]],
  "arrow": [
    [(-1, -0.25), (0.15, -0.25), (0.15, -0.75), (1, 0), (0.15, 0.75), (0.15, 0.25), (-1, 0.25)]
  ],
  "drop": [_drop()],
  "flower": [_polar(0.35), *(_polar(0.34) + petal for petal in _polar(0.62, 6))],
  "lightning": [
    [(0.2, -1), (-0.6, 0.12), (-0.08, 0.12), (-0.3, 1), (0.62, -0.28), (0.08, -0.28), (0.6, -1)]
  ],
  "house": [
    [(-0.7, -0.1), (0.7, -0.1), (0.7, 0.85), (-0.7, 0.85)],
    [(-0.98, -0.05), (0, -0.95), (0.98, -0.05)],
  ],
  "leaf": _leaf(),
}
_HOLES = {
  "ring": [_polar(0.5)],
  "crescent": [_polar(0.78) + [0.5, -0.12]],
  "house": [[(-0.18, 0.4), (0.18, 0.4), (0.18, 0.85), (-0.18, 0.85)]],
}


def _outline_mask(name: str) -> np.ndarray:
  image = Image.new("L", (_FINE, _FINE))
  draw = ImageDraw.Draw(image)
  for polygons, fill in ((_POLYGONS[name], 1), (_HOLES.get(name, ()), 0)):
    for polygon in polygons:
      place = (np.asarray(polygon) / EXTENT + 1) * _FINE / 2
      draw.polygon([tuple(point) for point in place], fill=fill)
  return np.asarray(image) > 0


def _signed_distance(mask: np.ndarray) -> np.ndarray:
  """[PAGE, PAGE] float32 distances in radii to the edge of a [_FINE, _FINE] mask."""
  distance = ndimage.distance_transform_edt(~mask) - ndimage.distance_transform_edt(mask)
  block = _FINE // PAGE
  coarse = distance.reshape(PAGE, block, PAGE, block).mean(axis=(1, 3))
  return (coarse * (2 * EXTENT / _FINE)).astype(np.float32)


def _noise(rng, slope: float, stretch: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
  """[TILE, TILE] noise that wraps, with a power-law spectrum, scaled to about [0, 1]."""
  fy, fx = np.meshgrid(np.fft.fftfreq(TILE), np.fft.fftfreq(TILE), indexing="ij")
  frequency = np.hypot(fx * stretch[0], fy * stretch[1]) + 1 / TILE
  spectrum = np.fft.fft2(rng.standard_normal((TILE, TILE))) * frequency**-slope
  spectrum[0, 0] = 0
  field = np.fft.ifft2(spectrum).real
  return np.clip(0.5 + 0.2 * field / field.std(), 0, 1)


def _step(distance, width=0.12):
  """Smooth step over `width` periods, so that patterns do not alias."""
  return np.clip(0.5 + distance / width, 0, 1)


def _textures(rng) -> np.ndarray:
  y, x = np.meshgrid(*(np.arange(TILE) * TEXTURE_PERIODS / TILE,) * 2, indexing="ij")

  def triangle(t):  # In [0, 0.5], distance to the nearest integer.
    return np.abs(t - np.round(t))

  blobs = _noise(rng, 0.0)
  blobs = ndimage.gaussian_filter(blobs, TILE / TEXTURE_PERIODS / 10, mode="wrap")
  blobs = (blobs - blobs.mean()) / blobs.std()
  patterns = {
    "plain": np.zeros_like(x),
    "striped": _step(triangle(x) - 0.25),
    "dotted": _step(0.31 - np.hypot(triangle(x), triangle(y))),
    "checkered": _step(2 * (triangle(x * 0.5) - 0.25))
    + _step(2 * (triangle(y * 0.5) - 0.25))
    - 2 * _step(2 * (triangle(x * 0.5) - 0.25)) * _step(2 * (triangle(y * 0.5) - 0.25)),
    "speckled": np.clip(0.5 + 1.5 * (blobs - 0.6), 0, 1),
    "zigzag": _step(triangle(x + 1.1 * triangle(y)) - 0.25, 0.2),
  }
  return np.stack([patterns[name] for name in scenes.TEXTURES]).astype(np.float32)


def _blend(low, high, amount):
  return np.asarray(low) + (np.asarray(high) - np.asarray(low)) * amount[..., None]


def _masonry(rng, rows: int, columns: int, shift: float, joint: float):
  """Joint mask and a tone for each stone, both [TILE, TILE], of a wall that wraps."""
  y, x = np.meshgrid(*(np.arange(TILE) / TILE,) * 2, indexing="ij")
  row = np.floor(y * rows)
  u = x * columns + shift * (row % 2)
  tone = rng.random((rows, columns))[row.astype(int), np.floor(u).astype(int) % columns]
  edge_x = np.abs(u - np.round(u)) / columns
  edge_y = np.abs(y * rows - np.round(y * rows)) / rows
  return np.clip(1.5 - np.minimum(edge_x, edge_y) * TILE / joint, 0, 1), tone


def _grounds(rng) -> np.ndarray:
  fine, soft, clouds = _noise(rng, 0.5), _noise(rng, 1.5), _noise(rng, 2.2)
  grain = _noise(rng, 1.2, stretch=(6.0, 1.0))
  blades = _noise(rng, 0.9, stretch=(1.0, 4.0))
  plank, plank_tone = _masonry(rng, 4, 1, 0.4, 1.6)
  joint, brick_tone = _masonry(rng, 8, 4, 0.5, 2.0)
  grout, tile_tone = _masonry(rng, 4, 4, 0.0, 2.0)
  wood = _blend((0.36, 0.21, 0.10), (0.80, 0.58, 0.36), 0.7 * grain + 0.3 * plank_tone)
  brick = _blend((0.48, 0.17, 0.12), (0.72, 0.34, 0.24), 0.7 * brick_tone + 0.3 * fine)
  tile = _blend((0.70, 0.80, 0.82), (0.86, 0.93, 0.94), 0.7 * tile_tone + 0.3 * soft)
  waves = _noise(rng, 2.0, stretch=(0.7, 2.0))
  ridge = np.clip(1 - 6 * np.abs(waves - 0.5), 0, 1) ** 2
  water = _blend((0.03, 0.22, 0.42), (0.12, 0.52, 0.66), soft)
  grounds = {
    "white": _blend((0.90, 0.90, 0.90), (0.99, 0.99, 0.99), clouds),
    "black": _blend((0.01, 0.01, 0.01), (0.09, 0.09, 0.09), clouds),
    "gray": _blend((0.40, 0.40, 0.40), (0.62, 0.62, 0.62), clouds),
    "wooden": wood * (1 - 0.6 * plank[..., None]),
    "grassy": _blend((0.06, 0.22, 0.03), (0.50, 0.70, 0.20), blades),
    "sandy": _blend((0.66, 0.54, 0.34), (0.97, 0.88, 0.66), 0.6 * fine + 0.4 * soft),
    "brick": brick + ((0.76, 0.72, 0.68) - brick) * joint[..., None],
    "watery": water + ((0.65, 0.90, 0.95) - water) * 0.7 * ridge[..., None],
    "cloudy": _blend((0.33, 0.56, 0.88), (0.98, 0.98, 1.0), np.clip(2.2 * clouds - 0.7, 0, 1)),
    "tiled": tile + ((0.34, 0.40, 0.44) - tile) * grout[..., None],
  }
  stack = np.stack([grounds[name] for name in scenes.BACKGROUNDS])
  return np.moveaxis(stack, -1, 1).reshape(-1, TILE, TILE).astype(np.float32)


@functools.cache
def atlas() -> Atlas:
  """Computes the tables, about a second; later calls return the same arrays."""
  masks = [_outline_mask(name) for name in scenes.OUTLINES]
  height = round(1.75 / EXTENT * _FINE / 2)
  for digit in range(len(scenes.DIGITS)):
    masks += [glyphs.digit_mask(digit, font, _FINE, height) for font in glyphs.FONT_FILES]
  shapes = np.stack([_signed_distance(mask) for mask in masks])
  deepest = shapes.reshape(len(shapes), -1).argmin(axis=1)
  row, column = np.divmod(deepest, PAGE)
  anchors = (np.stack([column, row], axis=1) + 0.5) * (2 * EXTENT / PAGE) - EXTENT
  rng = np.random.Generator(np.random.PCG64(20))
  return Atlas(shapes, anchors.astype(np.float32), _textures(rng), _grounds(rng))
