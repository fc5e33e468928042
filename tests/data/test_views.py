import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from mdtrap_jax.data import views


def noise(height: int, width: int) -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photo(height: int, width: int) -> np.ndarray:
  """Smooth shading, an object with an edge, clipped lights and a little grain."""
  y, x = np.mgrid[:height, :width] / max(height, width)
  shade = np.stack([200 * x + 90 * y, 120 + 80 * np.sin(7 * x * y), 300 * y], -1)
  disc = ((x - 0.4) ** 2 + (y - 0.5) ** 2 < 0.04)[..., None]
  grain = np.random.default_rng(1).normal(0, 4, (height, width, 3))
  return np.clip(np.where(disc, [150, 60, 40], shade) + grain, 0, 255).astype(np.uint8)


IMAGES = {
  "noise": noise(224, 224), "photo": photo(224, 224), "odd": noise(33, 47),
  "dark": photo(64, 64) // 9, "white": np.full((16, 16, 3), 255, np.uint8),
}  # fmt: skip
FACTORS = [
  0.0, 0.5, 0.6, 0.8, 1.0, 1.2, 1.4, 2.0, *np.random.default_rng(2).uniform(0.6, 1.4, 12)
]  # fmt: skip
ENHANCERS = {
  views.adjust_brightness: ImageEnhance.Brightness,
  views.adjust_contrast: ImageEnhance.Contrast,
  views.adjust_color: ImageEnhance.Color,
}


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("adjust", ENHANCERS)
def test_jitter_is_pils(adjust, name):
  compiled = jax.jit(adjust)
  differing = 0
  for factor in np.float32(FACTORS):
    ours = np.asarray(compiled(IMAGES[name], factor)).astype(int)
    theirs = ENHANCERS[adjust](Image.fromarray(IMAGES[name])).enhance(float(factor))
    difference = np.abs(ours - np.asarray(theirs))
    # A fused multiply-add may round the other way where the exact value is a whole number,
    # which the round factors hit and drawn ones do not.
    assert difference.max() <= 1, factor
    if factor in np.float32(FACTORS[8:]):
      differing += np.count_nonzero(difference)
  assert differing == 0


@pytest.mark.parametrize("name", IMAGES)
def test_rotation_is_pils_to_the_pixel(name):
  rotate = jax.jit(views.rotate)
  drawn = np.random.default_rng(3).uniform(-45, 45, 60)
  far = np.random.default_rng(4).uniform(-800, 800, 20)
  for degrees in np.float32([0, 90, -90, 180, 270, 360, 45, -45, 30, 1e-3, *drawn, *far]):
    ours = np.asarray(rotate(IMAGES[name], degrees))
    theirs = np.asarray(Image.fromarray(IMAGES[name]).rotate(float(degrees)))
    np.testing.assert_array_equal(ours, theirs, err_msg=f"{degrees}")


def test_flip_is_pils():
  theirs = Image.fromarray(IMAGES["odd"]).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  np.testing.assert_array_equal(views.flip(jnp.asarray(IMAGES["odd"])), np.asarray(theirs))


def batch(count: int = 3) -> np.ndarray:
  return np.stack([np.roll(photo(32, 32), 5 * shift, axis=1) for shift in range(count)])


make_views = jax.jit(views.make_views, static_argnames="views")


def test_views_are_the_recipes_in_order():
  """Every view is remade with PIL from the draws of its own key."""
  key, images = jax.random.key(4), batch()
  made = np.asarray(make_views(key, images))
  draw = jax.jit(views._draw)
  assert made.dtype == np.uint8
  assert made.shape == (5, 3, 32, 32, 3)
  mirrored = 0
  for view in range(5):
    for number, pixels in enumerate(images):
      draws = draw(jax.random.fold_in(jax.random.fold_in(key, view), number))
      image = Image.fromarray(pixels)
      if view in (1, 2):
        image = image.rotate(float(draws.degrees))
      if view in (1, 3):
        for enhancer, factor in zip(ENHANCERS.values(), draws.factors, strict=True):
          image = enhancer(image).enhance(float(factor))
      if view in (1, 4) and draws.mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        mirrored += 1
      np.testing.assert_allclose(made[view, number].astype(int), np.asarray(image), atol=1)
  assert 0 < mirrored < 6


def test_an_image_depends_neither_on_the_others_nor_on_the_number_of_views():
  key, images = jax.random.key(6), batch()
  made = make_views(key, images)
  np.testing.assert_array_equal(make_views(key, images, views=2), made[:2])
  np.testing.assert_array_equal(make_views(key, images[:2]), made[:, :2])
  changed = images.copy()
  changed[0] = 0
  np.testing.assert_array_equal(make_views(key, changed)[:, 1:], made[:, 1:])
  assert np.any(make_views(jax.random.key(7), images) != made)


def test_vmapped_episodes_are_the_episodes_alone():
  keys = jax.random.split(jax.random.key(8), 3)
  images = np.stack([batch(2), batch(2)[::-1], 255 - batch(2)])
  together = jax.jit(jax.vmap(views.make_views))(keys, images)
  for key, image, made in zip(keys, images, together, strict=True):
    alone = make_views(key, image)
    assert np.abs(np.asarray(alone).astype(int) - np.asarray(made)).max() <= 1


def test_draws_fill_their_ranges():
  draws = jax.jit(jax.vmap(views._draw))(jax.random.split(jax.random.key(9), 4000))
  for values, low, high in ((draws.degrees, -45, 45), (draws.factors, 0.6, 1.4)):
    width = high - low
    assert low <= values.min() < low + 0.02 * width
    assert high - 0.02 * width < values.max() <= high
    np.testing.assert_allclose(values.mean(), (low + high) / 2, atol=0.02 * width)
  np.testing.assert_allclose(draws.mirrored.mean(), 0.5, atol=0.04)
  columns = [draws.degrees, *draws.factors.T, draws.mirrored]
  np.testing.assert_allclose(np.corrcoef(np.stack(columns)), np.eye(5), atol=0.08)


@pytest.mark.parametrize("count", [0, 6, -1])
def test_number_of_views_out_of_range(count):
  with pytest.raises(ValueError, match=f"views={count}, but an image has 1 to 5"):
    views.make_views(jax.random.key(0), batch(), views=count)


def test_views_of_floats_are_refused():
  with pytest.raises(ValueError, match="uint8 images .* not float32"):
    views.make_views(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))


def test_normalize():
  mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 1.0)
  images = batch()[None]
  expected = (images / 255 - np.array(mean)) / np.array(std)
  normal = views.normalize(images, mean, std)
  assert normal.dtype == jnp.float32
  np.testing.assert_allclose(normal, expected, atol=1e-6)
  assert views.normalize(images, mean, std, jnp.bfloat16).dtype == jnp.bfloat16


def test_single_views_are_those_of_the_whole():
  images = np.random.default_rng(2).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
  key = jax.random.key(5)
  whole = views.make_views(key, images)  # [V, M, ...]
  recipes, numbers = np.array([4, 0, 1, 3, 2, 1]), np.array([2, 1, 0, 0, 2, 1])
  rows = views.view_rows(key, images[numbers], recipes, numbers)
  np.testing.assert_array_equal(rows, whole[recipes, numbers])
