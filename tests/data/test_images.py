import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mdtrap_jax.data import images

RGB = np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8)


def encode(image: Image.Image, kind: str = "png", **options) -> bytes:
  encoded = io.BytesIO()
  image.save(encoded, kind, **options)
  return encoded.getvalue()


def test_rgb_is_unchanged_from_bytes_and_file(tmp_path):
  file = tmp_path / "a.png"
  file.write_bytes(encode(Image.fromarray(RGB)))
  for given_image in (file, str(file), file.read_bytes()):
    decoded = images.decode(given_image, "a.png")
    assert decoded.dtype == np.uint8
    assert decoded.flags.writeable
    np.testing.assert_array_equal(decoded, RGB)


def test_grey_becomes_three_equal_channels():
  decoded = images.decode(encode(Image.fromarray(RGB[..., 0])), "grey")
  np.testing.assert_array_equal(decoded, np.repeat(RGB[..., :1], 3, -1))


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_16_bit_grey_is_scaled_not_clipped(kind):
  values = np.array([[0, 128, 129, 257, 32768, 65406, 65407, 65535]], np.uint16)
  decoded = images.decode(encode(Image.fromarray(values), kind), "deep")
  assert decoded[0, :, 0].tolist() == [0, 0, 1, 1, 128, 254, 255, 255]
  assert decoded.shape == (1, 8, 3)


def test_one_bit():
  bits = RGB[..., 0] > 127
  decoded = images.decode(encode(Image.fromarray(bits)), "bits")
  np.testing.assert_array_equal(decoded[..., 1], np.where(bits, 255, 0))


@pytest.mark.parametrize("transparency", [None, 3, bytes([0, 255, 128])])
def test_palette_keeps_its_colors_whatever_is_transparent(transparency):
  image = Image.fromarray(RGB).quantize(16)
  expected = np.asarray(image.convert("RGB"))
  options = {} if transparency is None else {"transparency": transparency}
  decoded = images.decode(encode(image, **options), "palette")
  np.testing.assert_array_equal(decoded, expected)


def test_gif_palette():
  image = Image.fromarray(RGB).quantize(16)
  decoded = images.decode(encode(image, "gif", transparency=2), "gif")
  np.testing.assert_array_equal(decoded, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_transparent_color_of_a_plain_image_is_dropped(mode):
  image = Image.fromarray(RGB).convert(mode)
  color = 7 if mode == "L" else tuple(int(value) for value in RGB[0, 0])
  decoded = images.decode(encode(image, transparency=color), "keyed")
  np.testing.assert_array_equal(decoded, np.asarray(image.convert("RGB")))


def test_transparency_shows_the_color_beneath():
  alpha = np.zeros_like(RGB[..., :1])
  decoded = images.decode(encode(Image.fromarray(np.concatenate([RGB, alpha], -1))), "rgba")
  np.testing.assert_array_equal(decoded, RGB)
  grey_alpha = Image.merge("LA", [Image.fromarray(RGB[..., 0]), Image.new("L", (17, 13), 0)])
  decoded = images.decode(encode(grey_alpha), "la")
  np.testing.assert_array_equal(decoded[..., 2], RGB[..., 0])


@pytest.mark.parametrize("kind", ["jpeg", "tiff"])
def test_cmyk(kind):
  image = Image.fromarray(RGB).convert("CMYK")
  encoded = encode(image, kind)
  expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
  decoded = images.decode(encoded, "cmyk")
  np.testing.assert_array_equal(decoded, expected)
  if kind == "tiff":
    np.testing.assert_array_equal(decoded, RGB)


def test_exif_orientation_is_not_applied():
  exif = Image.Exif()
  exif[0x0112] = 6  # Turned by 90 degrees.
  decoded = images.decode(encode(Image.fromarray(RGB), "jpeg", exif=exif.tobytes()), "turned")
  assert decoded.shape == RGB.shape


def test_floats_have_no_meaning_as_rgb():
  values = Image.fromarray(np.ones((3, 3), np.float32))
  with pytest.raises(images.UnreadableImageError, match="deep.tif: it holds floats"):
    images.decode(encode(values, "tiff"), "deep.tif")


def test_32_bit_values_are_not_guessed():
  values = Image.fromarray(np.array([[0, 70000]], np.int32))
  with pytest.raises(images.UnreadableImageError, match="0 to 70000, are not 16-bit"):
    images.decode(encode(values, "tiff"), "wide.tif")


@pytest.mark.parametrize("kind", ["jpeg", "png", "gif", "bmp", "tiff", "webp"])
def test_truncated_names_the_file(kind):
  encoded = encode(Image.fromarray(RGB), kind)
  with pytest.raises(images.UnreadableImageError, match=r"Cannot read the image x/y\.z: .*skip"):
    images.decode(encoded[: len(encoded) // 2], "x/y.z")


def test_empty_strange_and_missing_files_are_named(tmp_path):
  with pytest.raises(images.UnreadableImageError, match=r"e\.jpg: the file is empty"):
    images.decode(b"", "e.jpg")
  with pytest.raises(images.UnreadableImageError, match=r"t\.jpg: not an image"):
    images.decode(b"some text", "t.jpg")
  with pytest.raises(images.UnreadableImageError, match="No such file"):
    images.decode(tmp_path / "gone.png", "gone.png")


def test_a_bomb_is_refused(monkeypatch):
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
  with pytest.raises(images.UnreadableImageError, match="decompression bomb"):
    images.decode(encode(Image.fromarray(RGB)), "bomb.png")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from(["jpeg", "png", "gif", "tiff", "webp", "bmp"]), st.data())
def test_damage_is_an_image_or_the_one_error(kind, data):
  encoded = bytearray(encode(Image.fromarray(RGB), kind))
  for _ in range(data.draw(st.integers(1, 4))):
    encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
  try:
    decoded = images.decode(bytes(encoded), "damaged")
  except images.UnreadableImageError as error:
    assert "damaged" in str(error)  # noqa: PT017 (either outcome is right)
  else:
    assert decoded.dtype == np.uint8
    assert decoded.shape[-1] == 3


@pytest.mark.parametrize(("height", "width"), [(40, 61), (61, 40), (9, 64)])
def test_crop_is_torchvisions_short_side_and_center(height, width):
  image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
  cropped = images.resize(image, 8, "crop")
  if height < width:
    whole = Image.fromarray(image).resize((int(8 * width / height), 8), Image.Resampling.BILINEAR)
    start = round((whole.width - 8) / 2)
    expected = np.asarray(whole)[:, start : start + 8]
  else:
    whole = Image.fromarray(image).resize((8, int(8 * height / width)), Image.Resampling.BILINEAR)
    start = round((whole.height - 8) / 2)
    expected = np.asarray(whole)[start : start + 8]
  np.testing.assert_array_equal(cropped, expected)
  assert (cropped != images.resize(image, 8)).any()


def test_a_square_image_is_resized_alike():
  square = np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8)
  np.testing.assert_array_equal(images.resize(square, 8, "crop"), images.resize(square, 8))


def test_unknown_way_of_resizing():
  with pytest.raises(ValueError, match="resize='stretch' is none of squash, crop"):
    images.resize(RGB, 8, "stretch")


def test_resize_is_pils_bilinear_squash():
  resized = images.resize(RGB, 8)
  expected = Image.fromarray(RGB).resize((8, 8), Image.Resampling.BILINEAR)
  np.testing.assert_array_equal(resized, np.asarray(expected))
  np.testing.assert_array_equal(images.resize(RGB[:, :13], 13), RGB[:, :13])
