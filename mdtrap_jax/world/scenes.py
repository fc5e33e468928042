"""Scenes of the generated world: what is in the picture, and how it happens to look.

A scene is a combination of five attributes that a caption can name (shape, texture, color,
background, size) and of nuisance that no caption names (place, pose, light, camera). Everything
about scene `i` follows from its own key, never from the scenes drawn beside it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

OUTLINES = (
  "circle", "square", "triangle", "star", "cross", "heart", "ring", "crescent", "hexagon",
  "diamond", "arrow", "drop", "flower", "lightning", "house", "leaf",
)  # fmt: skip
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SHAPES = OUTLINES + DIGITS
TEXTURES = ("plain", "striped", "dotted", "checkered", "speckled", "zigzag")
COLOR_TABLE = {
  "red": (0.84, 0.10, 0.10),
  "orange": (0.96, 0.50, 0.06),
  "yellow": (0.97, 0.88, 0.14),
  "green": (0.12, 0.60, 0.18),
  "blue": (0.12, 0.30, 0.86),
  "purple": (0.50, 0.16, 0.68),
  "pink": (0.98, 0.56, 0.74),
  "brown": (0.43, 0.24, 0.11),
  "white": (0.96, 0.96, 0.96),
  "gray": (0.50, 0.50, 0.50),
  "black": (0.06, 0.06, 0.06),
}
COLORS = tuple(COLOR_TABLE)
BACKGROUNDS = (
  "white", "black", "gray", "wooden", "grassy", "sandy", "brick", "watery", "cloudy", "tiled",
)  # fmt: skip
SIZES = ("medium", "small", "large")  # "medium" is never said.

FONTS = 5  # Pages of each digit in the shape atlas: one per font of glyphs.FONT_FILES.
SPECKS = 4  # Small distractors in a scene.

# Pairs that a person could not tell apart by color alone.
_CLASHES = {
  "white": ("white", "cloudy", "tiled"),
  "gray": ("gray",),
  "black": ("black",),
  "brown": ("wooden", "brick"),
  "green": ("grassy",),
  "blue": ("watery", "cloudy"),
  "yellow": ("sandy",),
  "red": ("brick",),
  "orange": ("brick", "wooden"),
}


def _table(names: tuple[str, ...], weights: dict[str, float], default: float) -> np.ndarray:
  return np.array([weights.get(name, default) for name in names], np.float32)


_CONTRAST = np.array(
  [[float(b not in _CLASHES.get(c, ())) for b in BACKGROUNDS] for c in COLORS], np.float32
)  # [colors, backgrounds] 1 where the pair may be drawn.
_SHAPE_WEIGHTS = np.array([1.0] * len(OUTLINES) + [0.8] * len(DIGITS), np.float32)
# A thin stroke shows little texture, so that digits are mostly plain.
_DIGIT_TEXTURES = _table(TEXTURES, {"plain": 8.0}, 1.0)
_BOARD_TEXTURES = _table(TEXTURES, {"plain": 1.0}, 0.0)
_BOARD_COLORS = _table(COLORS, {"white": 4.0, "gray": 1.0, "yellow": 0.3, "pink": 0.3}, 0.0)
_BOARD_GROUNDS = _table(BACKGROUNDS, {"black": 1.0}, 0.0)


class Attributes(NamedTuple):
  """What a caption can name, as indices into the tuples of names above; -1 is "any"."""

  shape: jax.Array  # [] int32 into SHAPES
  texture: jax.Array  # [] int32 into TEXTURES
  color: jax.Array  # [] int32 into COLORS
  background: jax.Array  # [] int32 into BACKGROUNDS
  size: jax.Array  # [] int32 into SIZES


ANY = Attributes(*(np.int32(-1),) * 5)


class Scene(NamedTuple):
  """One scene. Lengths are in half image widths, x to the right and y down, center (0, 0)."""

  attributes: Attributes  # of [] int32, none of them -1
  page: jax.Array  # [] int32, page of the shape atlas
  center: jax.Array  # [2] float32
  radius: jax.Array  # [] float32
  angle: jax.Array  # [] float32, radians
  slant: jax.Array  # [] float32, shear
  aspect: jax.Array  # [] float32, width over height
  bend: jax.Array  # [2] float32, curvature of the upright and of the level lines
  stroke: jax.Array  # [] float32, growth of the outline in radii
  color: jax.Array  # [3] float32 in [0, 1]
  tone: jax.Array  # [] float32, second tone of the texture: < 0 darker, > 0 lighter
  period: jax.Array  # [] float32, period of the texture
  texture_angle: jax.Array  # [] float32, radians
  texture_phase: jax.Array  # [2] float32, in tiles
  ground_offset: jax.Array  # [2] float32, in tiles
  ground_scale: jax.Array  # [] float32
  ground_angle: jax.Array  # [] float32, radians
  ground_gain: jax.Array  # [3] float32
  light: jax.Array  # [2] float32, direction times strength
  shadow: jax.Array  # [] float32, darkness of the cast shadow
  rim: jax.Array  # [] float32, darkness of the drawn edge
  specks: jax.Array  # [SPECKS, 5] float32: x, y, dx, dy, radius of a short stroke
  speck_colors: jax.Array  # [SPECKS, 3] float32
  softness: jax.Array  # [] float32, width of edges in pixels
  gain: jax.Array  # [3] float32, exposure and white balance
  contrast: jax.Array  # [] float32
  grain: jax.Array  # [] float32, strength of the sensor noise
  key: jax.Array  # [] typed key for noise


def named(**names: str) -> Attributes:
  """Attributes from words: `named(shape="star", color="red")`; what is not named is free.

  Raises:
    ValueError: If a word is not one of the attribute's names.
  """
  tables = dict(shape=SHAPES, texture=TEXTURES, color=COLORS, background=BACKGROUNDS, size=SIZES)
  for field, word in names.items():
    if field not in tables:
      raise ValueError(f"{field=} is not an attribute; choose from {sorted(tables)}.")
    if word not in tables[field]:
      raise ValueError(f"{field}={word!r} is not in the world; choose from {tables[field]}.")
  return ANY._replace(**{f: np.int32(tables[f].index(word)) for f, word in names.items()})


def is_digit(shape: jax.Array) -> jax.Array:
  """Whether a shape index is a digit."""
  return shape >= len(OUTLINES)


def _pick(u: jax.Array, weights: jax.Array, wanted: jax.Array) -> jax.Array:
  """Index drawn by `weights` with the uniform number `u`, or `wanted` where it is not -1."""
  edges = jnp.cumsum(weights)
  drawn = jnp.sum(u * edges[-1] >= edges[:-1])
  return jnp.where(wanted >= 0, wanted, drawn).astype(jnp.int32)


def _allowed(weights: jax.Array, mask: jax.Array) -> jax.Array:
  """`weights` where `mask` allows any of them, else the mask."""
  both = weights * mask
  return jnp.where(jnp.sum(both) > 0, both, mask)


def sample_scene(key: jax.Array, wanted: Attributes = ANY) -> Scene:
  """Draws one scene; vmap over keys (and over wanted attributes) for many.

  Args:
    key: [] typed key; it is consumed.
    wanted: attributes to keep, -1 for those to draw.

  Returns:
    The scene, whose attributes are all set.
  """
  draws = iter(jax.random.uniform(jax.random.fold_in(key, 0), (64,)))

  def between(low, high):
    return low + (high - low) * next(draws)

  def vector(low, high, size):
    return jnp.stack([between(low, high) for _ in range(size)])

  shape = _pick(next(draws), jnp.asarray(_SHAPE_WEIGHTS), wanted.shape)
  digit = is_digit(shape)
  # "Board" scenes are light, plain and soft on black, as chalk or a scanned digit is.
  board = next(draws) < jnp.where(digit, 0.4, 0.1)
  texture_weights = jnp.where(digit, _DIGIT_TEXTURES, 1.0)
  texture_weights = jnp.where(board, _BOARD_TEXTURES, texture_weights)
  texture = _pick(next(draws), texture_weights, wanted.texture)
  contrast = jnp.asarray(_CONTRAST)
  visible = jnp.where(wanted.background >= 0, contrast[:, wanted.background], 1.0)
  color_weights = _allowed(jnp.where(board, _BOARD_COLORS, 1.0), visible)
  color = _pick(next(draws), color_weights, wanted.color)
  ground_weights = _allowed(jnp.where(board, _BOARD_GROUNDS, 1.0), contrast[color])
  background = _pick(next(draws), ground_weights, wanted.background)
  size = _pick(next(draws), jnp.array([0.4, 0.25, 0.35]), wanted.size)

  low = jnp.array([0.52, 0.38, 0.70])[size]
  high = jnp.array([0.66, 0.46, 0.88])[size]
  # A scanned digit may fill the frame.
  high = high + jnp.where(board & digit & (size == SIZES.index("large")), 0.2, 0.0)
  radius = between(low, high)
  room = jnp.maximum(0.95 - radius, 0.06)
  base = jnp.asarray(np.array(list(COLOR_TABLE.values()), np.float32))[color]
  font = jnp.floor(between(0.0, FONTS)).astype(jnp.int32)
  page = jnp.where(digit, len(OUTLINES) + (shape - len(OUTLINES)) * FONTS + font, shape)
  lighter = next(draws) < 0.5
  lighter = jnp.where(color == COLORS.index("white"), False, lighter)
  lighter = jnp.where(color == COLORS.index("black"), True, lighter)
  azimuth, strength = between(0.0, 2 * np.pi), between(0.0, 0.25)
  light = strength * jnp.stack([jnp.cos(azimuth), jnp.sin(azimuth)])
  quarter = jnp.where(next(draws) < 0.5, 0.0, np.pi / 2)
  upright = (background == BACKGROUNDS.index("brick")) | (background == BACKGROUNDS.index("grassy"))
  u = jax.random.uniform(jax.random.fold_in(key, 2), (SPECKS, 8))
  low_end = jnp.array([-0.95, -0.95, -0.12, -0.12, 0.02])
  high_end = jnp.array([0.95, 0.95, 0.12, 0.12, 0.07])
  specks = low_end[None] + (high_end - low_end)[None] * u[:, :5]
  shown = jnp.where(board, 0, jnp.floor(between(0.0, SPECKS + 1.0)))
  hidden = jnp.arange(SPECKS) >= shown
  specks = specks.at[:, 4].set(jnp.where(hidden, -1.0, specks[:, 4]))
  return Scene(
    attributes=Attributes(shape, texture, color, background, size),
    page=page,
    center=vector(-1.0, 1.0, 2) * room,
    radius=radius,
    angle=between(-0.35, 0.35) * jnp.where(digit, 0.6, 1.0),
    slant=between(-1.0, 1.0) * jnp.where(digit, 0.28, 0.08),
    aspect=1.0 + between(-0.12, 0.12),
    bend=vector(-1.0, 1.0, 2) * jnp.where(digit, 0.14, 0.04),
    stroke=between(-0.02, jnp.where(digit, jnp.where(board, 0.13, 0.07), 0.02)),
    color=jnp.clip(base + between(-0.05, 0.05) + vector(-0.02, 0.02, 3), 0.0, 1.0),
    tone=jnp.where(lighter, between(0.5, 0.75), -between(0.5, 0.7)),
    period=between(0.25, 0.36),
    texture_angle=between(-0.25, 0.25) + jnp.where(next(draws) < 0.5, 0.0, np.pi / 4),
    texture_phase=vector(0.0, 1.0, 2),
    ground_offset=vector(0.0, 1.0, 2),
    ground_scale=between(0.75, 1.25),
    ground_angle=between(-0.15, 0.15) + jnp.where(upright, 0.0, quarter),
    ground_gain=between(0.85, 1.12) * (1.0 + vector(-0.06, 0.06, 3)),
    light=jnp.where(board, 0.3, 1.0) * light,
    shadow=jnp.where(board, 0.0, between(0.0, 0.6)),
    # An edge keeps a texture's lighter half from melting into a light background.
    rim=jnp.where(board, 0.0, between(jnp.where(texture > 0, 0.35, 0.0), 0.7)),
    specks=specks,
    speck_colors=0.1 + 0.8 * u[:, 5:],
    softness=jnp.where(board, between(1.0, 7.0), between(1.0, 2.0)),
    gain=between(0.85, 1.12) * (1.0 + vector(-0.03, 0.03, 3)),
    contrast=between(0.85, 1.15),
    grain=between(0.0, 0.05),
    key=jax.random.fold_in(key, 1),
  )
