"""Meta-Dataset's resizing, by hand and against torch's."""

import numpy as np
import pytest
import torch

from mdtrap_jax.data.align_corners import resize_align_corners


def test_values_by_hand():
  image = np.zeros((2, 3, 3), np.uint8)
  image[..., 0] = [[0, 10, 20], [100, 110, 121]]
  image[..., 1] = 255
  out = resize_align_corners(image, 4)
  assert out.dtype == np.float32
  # Rows at 0, 1/3, 2/3, 1 and columns at 0, 2/3, 4/3, 2 of the image.
  first, last = np.array([0, 20 / 3, 40 / 3, 20]), np.array([100, 320 / 3, 341 / 3, 121])
  third = (last - first) / 3
  np.testing.assert_allclose(
    out[..., 0], [first, first + third, first + 2 * third, last], rtol=1e-6
  )
  np.testing.assert_array_equal(out[..., 1], 255)


def test_shrinking_takes_single_pixels_without_antialiasing():
  image = np.zeros((5, 5, 3), np.uint8)
  image[::2, ::2] = 200  # of nine rows and columns, 0, 2 and 4 are met exactly
  np.testing.assert_array_equal(resize_align_corners(image, 3), 200)


# In float32, 83 · (84/83) is more than 84 and 83 · (21/83) more than 21.
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (84, 84), (85, 22), (9, 400)])
def test_corners_stay_and_torch_agrees(shape):
  image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
  out = resize_align_corners(image, 84)
  np.testing.assert_allclose(out[-1, -1], image[-1, -1], atol=1e-2)
  rows = torch.from_numpy(image).permute(2, 0, 1)[None].float()
  twin = torch.nn.functional.interpolate(rows, (84, 84), mode="bilinear", align_corners=True)
  np.testing.assert_allclose(out, twin[0].permute(1, 2, 0).numpy(), atol=5e-3)


def test_sizes_at_the_edge():
  image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
  np.testing.assert_array_equal(resize_align_corners(image, 1)[0, 0], image[0, 0])
  np.testing.assert_array_equal(resize_align_corners(image, 2), image)
  with pytest.raises(ValueError, match="0×2 pixels"):
    resize_align_corners(image[:0], 2)
