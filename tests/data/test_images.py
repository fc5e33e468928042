import io
import os
import zlib

import ml_collections
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

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


def test_one_bit():
  bits = RGB[..., 0] > 127
  decoded = images.decode(encode(Image.fromarray(bits)), "bits")
  np.testing.assert_array_equal(decoded[..., 1], np.where(bits, 255, 0))


def over(rgb, alpha, background):
  """Composited by hand, in integers, half up."""
  rgb, alpha = rgb.astype(np.int64), alpha.astype(np.int64)
  return (rgb * alpha + np.array(background) * (255 - alpha) + 127) // 255


@pytest.mark.parametrize("background", [(255, 255, 255), (200, 0, 10)])
def test_transparency_shows_the_background(background):
  alpha = np.random.default_rng(1).integers(0, 256, (13, 17, 1), dtype=np.uint8)
  alpha[0, :3, 0] = 0, 255, 128
  decoding = images.Decoding(background=background)
  rgba = encode(Image.fromarray(np.concatenate([RGB, alpha], -1)))
  decoded = images.decode(rgba, "rgba", decoding)
  np.testing.assert_allclose(decoded, over(RGB, alpha, background), atol=1)
  assert decoded[0, :2].tolist() == [list(background), RGB[0, 1].tolist()]
  grey = Image.merge("LA", [Image.fromarray(RGB[..., 0]), Image.fromarray(alpha[..., 0])])
  decoded = images.decode(encode(grey), "la", decoding)
  np.testing.assert_allclose(decoded, over(RGB[..., :1], alpha, background), atol=1)


@pytest.mark.parametrize("kind", ["png", "gif"])
def test_a_palette_with_a_transparent_entry(kind):
  image = Image.fromarray(RGB).quantize(16)
  entries, colors = np.asarray(image), np.asarray(image.convert("RGB"))
  decoded = images.decode(encode(image, kind), "opaque")
  np.testing.assert_array_equal(decoded, colors)
  decoded = images.decode(encode(image, kind, transparency=3), "keyed")
  np.testing.assert_array_equal(decoded, np.where((entries == 3)[..., None], 255, colors))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_transparent_color_of_a_plain_image(mode):
  image = Image.fromarray(RGB).convert(mode)
  pixels = np.asarray(image.convert("RGB"))
  key = tuple(pixels[0, 0].tolist())
  color = key[0] if mode == "L" else key
  decoded = images.decode(encode(image, transparency=color), "keyed")
  expected = np.where((pixels == key).all(-1, keepdims=True), 255, pixels)
  np.testing.assert_array_equal(decoded, expected)
  assert decoded[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("kind", ["jpeg", "tiff"])
def test_cmyk(kind):
  image = Image.fromarray(RGB).convert("CMYK")
  encoded = encode(image, kind)
  expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
  decoded = images.decode(encoded, "cmyk")
  np.testing.assert_array_equal(decoded, expected)
  if kind == "tiff":
    np.testing.assert_array_equal(decoded, RGB)


# How a stored picture is turned to be seen upright (EXIF 2.3, tag 0x0112).
UPRIGHT = {
  1: lambda x: x,
  2: lambda x: x[:, ::-1],
  3: lambda x: x[::-1, ::-1],
  4: lambda x: x[::-1],
  5: lambda x: x.swapaxes(0, 1),
  6: lambda x: np.rot90(x, -1),
  7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
  8: np.rot90,
}


@pytest.mark.parametrize("kind", ["png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(orientation, kind, caplog):
  exif = Image.Exif()
  exif[0x0112] = orientation
  options = {"exif": exif.tobytes()} | ({"lossless": True} if kind == "webp" else {})
  encoded = encode(Image.fromarray(RGB), kind, **options)
  decoded = images.decode(encoded, "turned", notes=images.Notes("photos"))
  np.testing.assert_array_equal(decoded, UPRIGHT[orientation](RGB))
  assert ("photos: turned was taken with the camera turned" in caplog.text) == (orientation > 1)


def test_damaged_metadata_do_not_cost_the_picture():
  exif = Image.Exif()
  exif[0x0112] = 6
  encoded = encode(Image.fromarray(RGB), exif=exif.tobytes()[:9])
  np.testing.assert_array_equal(images.decode(encoded, "odd"), RGB)


def test_a_note_is_said_once_a_kind(caplog):
  notes = images.Notes("photos")
  clear = encode(Image.new("RGBA", (2, 2)))
  for name in ("first", "second"):
    images.decode(clear, name, notes=notes)
  assert caplog.text.count("is transparent") == 1
  assert "photos: first is transparent" in caplog.text


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


def test_postscript_starts_no_program(tmp_path, monkeypatch):
  started = tmp_path / "started"
  for name in ("gs", "gswin64c"):
    (tmp_path / name).write_text(f"#!/bin/sh\n: > {started}\n")
    (tmp_path / name).chmod(0o755)
  monkeypatch.setenv("PATH", str(tmp_path))
  with pytest.raises(images.UnreadableImageError, match=r"a\.png: it is PostScript, a program"):
    images.decode(EPS, "a.png")
  assert not started.exists()


def test_only_photographs_are_opened():
  """Whatever Pillow has a decoder for; these would have been read."""
  for kind in ("ico", "pcx", "tga", "icns", "sgi", "dds", "msp"):
    image = Image.fromarray(RGB).convert("1" if kind == "msp" else "RGB")
    with pytest.raises(images.UnreadableImageError, match="not an image, or"):
      images.decode(encode(image, kind), "odd.png")


@pytest.mark.parametrize(
  ("encoded", "reason"),
  [
    (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "it is HEIC, which the package pillow-heif reads"),
    (bytes(128) + b"DICM" + bytes(20), "it is DICOM, which the package pydicom reads"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    (b"<!DOCTYPE html><html>", "the web page of a failed download"),
    pytest.param(
      b"II*\0\x08\0\0\0",
      "a TIFF whose first bytes are damaged",
      marks=pytest.mark.filterwarnings("ignore:Corrupt EXIF"),
    ),
  ],
)
def test_other_kinds_are_named(encoded, reason):
  with pytest.raises(images.UnreadableImageError, match=reason):
    images.decode(encoded, "odd.jpg")


def test_a_tiff_of_many_bands_is_named():
  tags = TiffImagePlugin.ImageFileDirectory_v2()
  values = {256: 4, 257: 4, 258: (16,) * 13, 259: 1, 262: 1, 273: 400, 277: 13, 279: 416}
  for tag, value in values.items():
    tags[tag] = value
  stream = io.BytesIO()
  stream.write(b"II*\0\x08\0\0\0")
  tags.save(stream)
  with pytest.raises(images.UnreadableImageError, match="TIFF of 13 bands of 16 bits, a kind that"):
    images.decode(stream.getvalue() + bytes(900), "sentinel.tif")


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_file_is_not_opened(kind, tmp_path):
  path = tmp_path / "a.png"
  os.mkfifo(path) if kind == "pipe" else path.mkdir()
  with pytest.raises(images.UnreadableImageError, match="is a pipe, device or folder, not a file"):
    images.decode(path, "a.png")


def test_names_of_many_lines_are_shown_on_one():
  with pytest.raises(images.UnreadableImageError) as caught:
    images.decode(b"", "a\nb\udcff.png")
  assert r"image a\nb\udcff.png: the file is empty" in str(caught.value)
  str(caught.value).encode()


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


def test_the_limit_of_pixels_is_the_sources_own():
  encoded = encode(Image.fromarray(RGB))
  assert images.decode(encoded, "fits", images.Decoding(max_pixels=13 * 17)).shape == RGB.shape
  with pytest.raises(images.UnreadableImageError, match=r"17x13 pixels are more than 220, .*max_p"):
    images.decode(encoded, "bomb.png", images.Decoding(max_pixels=220))
  header = bytearray(encode(Image.new("1", (1, 1))))
  header[16:24] = (20000).to_bytes(4) * 2  # Pillow alone would refuse, or warn, by its header.
  header[29:33] = zlib.crc32(header[12:29]).to_bytes(4)
  with pytest.raises(images.UnreadableImageError, match="20000x20000 pixels are more than 17895"):
    images.decode(bytes(header), "bomb.png")
  with pytest.raises(images.UnreadableImageError, match="truncated"):  # So its header was let in.
    images.decode(bytes(header), "large.png", images.Decoding(max_pixels=400_000_000))


def test_decoding_of_a_config():
  bare = ml_collections.ConfigDict({"name": "folder"})
  assert images.decoding_of(bare) == images.Decoding((255, 255, 255), None, None)
  fields = {"background": (0, 1, 2), "window": (-5.0, 300.0), "max_pixels": 7}
  assert images.decoding_of(ml_collections.ConfigDict(fields)) == tuple(fields.values())
  empty = {"background": (255, 255, 255), "window": (), "max_pixels": 0}  # as configs have it
  assert images.decoding_of(ml_collections.ConfigDict(empty)) == images.Decoding()


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


@pytest.mark.parametrize(("height", "width"), [(1, 60000), (60000, 1), (3, 9000), (9000, 2)])
def test_of_a_strip_the_center_alone_is_enlarged(height, width, monkeypatch):
  made, original = [], Image.Image.resize
  record = lambda picture, size, *args: made.append(size) or original(picture, size, *args)
  monkeypatch.setattr(Image.Image, "resize", record)
  image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
  cropped = images.resize(image, 224, "crop")
  assert made == [(224, 224)]  # The whole would be up to 224 by 13 million pixels.
  # By hand: what the enlarged whole would show in its middle 224 columns are these few pixels.
  side, length = sorted((height, width))
  long = image if width > height else image.swapaxes(0, 1)
  middle = long[:, length // 2 - 2 * side - 8 : length // 2 + 2 * side + 8]
  expected = images.resize(middle, 224, "crop")
  expected = expected if width > height else expected.swapaxes(0, 1)
  assert np.abs(cropped.astype(int) - expected).max() <= 2


def test_the_strips_way_gives_the_pixels_of_the_other(monkeypatch):
  image = np.random.default_rng(0).integers(0, 256, (50, 300, 3), np.uint8)
  whole = images.resize(image, 32, "crop")
  monkeypatch.setattr(images, "_LARGE", 0)
  assert np.abs(images.resize(image, 32, "crop").astype(int) - whole).max() <= 1


@pytest.mark.parametrize("mode", images.RESIZE_MODES)
def test_interpolation_is_pils(mode):
  square = RGB[:, :13]
  expected = Image.fromarray(square).resize((32, 32), Image.Resampling.BICUBIC)
  resized = images.resize(square, 32, mode, "bicubic")
  np.testing.assert_array_equal(resized, np.asarray(expected))
  assert (resized != images.resize(square, 32, mode)).any()
  with pytest.raises(ValueError, match="interpolation='lanczos' is none of bilinear, bicubic"):
    images.resize(square, 32, mode, "lanczos")


def test_unknown_way_of_resizing():
  with pytest.raises(ValueError, match="resize='stretch' is none of squash, crop"):
    images.resize(RGB, 8, "stretch")


def test_resize_is_pils_bilinear_squash():
  resized = images.resize(RGB, 8)
  expected = Image.fromarray(RGB).resize((8, 8), Image.Resampling.BILINEAR)
  np.testing.assert_array_equal(resized, np.asarray(expected))
  np.testing.assert_array_equal(images.resize(RGB[:, :13], 13), RGB[:, :13])
