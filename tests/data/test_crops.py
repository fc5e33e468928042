import jax
import jax.numpy as jnp
import numpy as np

from mdtrap_jax.data import crops

KEYS = jax.random.split(jax.random.key(0), 2000)


def test_boxes_lie_within_the_image_and_have_torchvisions_distribution():
  sizes, corners, mirrored = jax.vmap(crops._draw_box)(KEYS)
  assert (corners >= 0).all()
  assert (corners + sizes <= 1 + 1e-6).all()
  area, aspect = sizes.prod(-1), sizes[:, 1] / sizes[:, 0]
  assert area.min() >= 0.08 - 1e-6
  assert aspect.min() >= 3 / 4 - 1e-4
  assert aspect.max() <= 4 / 3 + 1e-4
  assert abs(mirrored.mean() - 0.5) < 0.05
  # Where any box fits the area is uniform; those that stick out are drawn again, so that the
  # largest are rarer. Of boxes up to half the area none does.
  small = np.sort(np.asarray(area[area < 0.5]))
  uniform = np.linspace(0.08, 0.5, len(small))
  assert abs(small - uniform).max() < 0.03


def test_the_whole_image_stays_as_it_is_and_boxes_are_enlarged():
  image = jnp.asarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3)), jnp.uint8)
  whole = crops._crop(image, jnp.ones(2), jnp.zeros(2), jnp.array(False))
  np.testing.assert_array_equal(whole, image)
  mirrored = crops._crop(image, jnp.ones(2), jnp.zeros(2), jnp.array(True))
  np.testing.assert_array_equal(mirrored, image[:, ::-1])
  halves = jnp.zeros((8, 8, 3), jnp.uint8).at[:, 4:].set(200)  # the right half alone is bright
  right = crops._crop(halves, jnp.array([1.0, 0.25]), jnp.array([0.0, 0.75]), jnp.array(False))
  np.testing.assert_array_equal(right, np.full((8, 8, 3), 200))


def test_each_image_has_a_box_of_its_own():
  image = jnp.asarray(np.random.default_rng(1).integers(0, 256, (16, 16, 3)), jnp.uint8)
  made = crops.random_crops(jax.random.key(1), jnp.stack([image] * 3))
  assert made.dtype == jnp.uint8
  assert made.shape == (3, 16, 16, 3)
  assert (made[0] != made[1]).any()
  assert (made[1] != made[2]).any()
