import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mdtrap_jax.data import images

DEEP = np.random.default_rng(0).integers(0, 4096, (5, 7, 3)).astype(np.uint16)
DEEP[0, 0] = 0, 4095, 2048


def png(values: np.ndarray, key: bytes = b"") -> bytes:
  """A PNG of 16 bits by hand, as Pillow writes none of color: [H, W, 1 to 4] uint16."""
  height, width, channels = values.shape
  kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
  header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
  rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
  chunks = [(b"IHDR", header), (b"tRNS", key), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
  return b"\x89PNG\r\n\x1a\n" + b"".join(
    struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    for name, data in chunks
    if data or name == b"IEND"
  )


def tiff(values: np.ndarray, order: str, deflate: bool = False, planes: int = 1) -> bytes:
  """A TIFF of 16-bit color by hand, [H, W, 3] uint16; order "<" or ">"."""
  height, width, _ = values.shape
  strip = values.astype(order + "u2").tobytes()
  strip = zlib.compress(strip) if deflate else strip
  entries = {
    256: (3, width), 257: (3, height), 258: (3, (16, 16, 16)), 259: (3, 8 if deflate else 1),
    262: (3, 2), 273: (4, 200), 277: (3, 3), 278: (3, height), 279: (4, len(strip)),
    284: (3, planes),
  }  # fmt: skip
  head = struct.pack(order + "2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(entries))
  bits = 10 + 12 * len(entries) + 4
  for tag, (form, value) in entries.items():
    if isinstance(value, tuple):
      head += struct.pack(order + "HHII", tag, form, len(value), bits)
    else:
      head += struct.pack(order + ("HHIHH" if form == 3 else "HHII"), tag, form, 1, value,
                          *([0] if form == 3 else []))  # fmt: skip
  head += struct.pack(order + "IHHH", 0, 16, 16, 16)
  return head.ljust(200, b"\0") + strip


def encode(values, kind: str) -> bytes:
  encoded = io.BytesIO()
  Image.fromarray(values).save(encoded, kind)
  return encoded.getvalue()


def expected(values: np.ndarray, white: int) -> np.ndarray:
  """By integers: the nearest byte, half up."""
  return (values.astype(np.int64) * 510 + white) // (2 * white)


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_16_bit_grey_is_scaled_not_clipped(kind):
  values = np.array([[0, 128, 129, 257, 32768, 65406, 65407, 65535]], np.uint16)
  decoded = images.decode(encode(values, kind), "deep")
  assert decoded[0, :, 0].tolist() == [0, 0, 1, 1, 128, 254, 255, 255]
  assert decoded.shape == (1, 8, 3)


@pytest.mark.parametrize(
  ("largest", "white"),
  [(3, 255), (255, 255), (256, 511), (4095, 4095), (4096, 8191), (9999, 16383)],
)
def test_white_is_what_the_bits_in_use_reach(largest, white, caplog):
  values = np.linspace(0, largest, 30).astype(np.uint16).reshape(5, 6)
  decoded = images.decode(encode(values, "png"), "scan", notes=images.Notes("scans"))
  np.testing.assert_array_equal(decoded[..., 1], expected(values, white))
  assert f"scans: scan uses {white.bit_length()} of 16 bits" in caplog.text
  assert "--config.data.window=(low, high)" in caplog.text


def test_black_is_black_and_says_nothing(caplog):
  decoded = images.decode(encode(np.zeros((2, 2), np.uint16), "png"), "n", notes=images.Notes("s"))
  assert not decoded.any()
  assert not caplog.text


@pytest.mark.parametrize(
  "encoded",
  [png(DEEP), tiff(DEEP, "<"), tiff(DEEP, ">"), tiff(DEEP, "<", True), tiff(DEEP, ">", True)],
  ids=["png", "little", "big", "little deflated", "big deflated"],
)
def test_12_bit_color_in_16_bits(encoded):
  """Pillow alone keeps the high bytes, 0 to 15."""
  np.testing.assert_array_equal(images.decode(encoded, "deep"), expected(DEEP, 4095))


def test_planes_that_pillow_reads_wrongly_are_refused():
  with pytest.raises(images.UnreadableImageError, match="each color in a plane of its own"):
    images.decode(tiff(DEEP, "<", planes=2), "planes.tif")


def test_12_bits_with_alpha():
  alpha = np.full((5, 7, 1), 65535, np.uint16)
  decoded = images.decode(png(np.concatenate([DEEP, alpha], -1)), "rgba")
  np.testing.assert_array_equal(decoded, expected(DEEP, 4095))
  grey = DEEP[..., :1].copy()
  grey[0, 0] = 4095
  alpha[1, 1] = 0
  decoded = images.decode(png(np.concatenate([grey, alpha], -1)), "la")
  scaled = np.repeat(expected(grey, 4095), 3, -1)
  scaled[1, 1] = 255  # White shows through.
  np.testing.assert_array_equal(decoded, scaled)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_value_of_16_bits(channels):
  values = DEEP[..., :channels].copy()
  values[0, 0], values[0, 1] = 4095, 4094
  key = struct.pack(">H", 4095) * channels
  decoded = images.decode(png(values, key), "keyed", images.Decoding(background=(9, 8, 7)))
  assert decoded[0, 0].tolist() == [9, 8, 7]
  assert decoded[0, 1].tolist() == [255, 255, 255]


def test_color_that_uses_all_16_bits_is_as_pillow_reads_it():
  """So that a run is repeated with equal numbers."""
  values = DEEP * 16
  decoded = images.decode(png(values), "deep", notes=images.Notes("quiet"))
  np.testing.assert_array_equal(decoded, values >> 8)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_window_holds_for_all_images(channels):
  values = DEEP[..., :channels]
  decoded = images.decode(png(values), "deep", images.Decoding(window=(1000, 3000)))
  clipped = np.clip(values.astype(int), 1000, 3000) - 1000
  np.testing.assert_array_equal(decoded, np.broadcast_to(expected(clipped, 2000), DEEP.shape))


def test_pgm_states_its_white():
  values = np.array([[0, 500, 1000]])
  encoded = b"P5 3 1 4095\n" + values.astype(">u2").tobytes()
  np.testing.assert_array_equal(images.decode(encoded, "pgm")[..., 0], expected(values, 4095))


def test_floats_need_a_window():
  values = np.array([[-1.0, 0.0, 0.5, 2.0, np.nan]], np.float32)
  with pytest.raises(images.UnreadableImageError, match=r"deep.tif: it holds floats.*window="):
    images.decode(encode(values, "tiff"), "deep.tif")
  decoded = images.decode(encode(values, "tiff"), "deep.tif", images.Decoding(window=(0.0, 1.0)))
  assert decoded[0, :, 0].tolist() == [0, 0, 128, 255, 0]


def test_32_bit_values_need_a_window():
  encoded = encode(np.array([[0, 35000, 70000]], np.int32), "tiff")
  with pytest.raises(images.UnreadableImageError, match=r"0 to 70000, are not 16-bit.*window="):
    images.decode(encoded, "wide.tif")
  decoded = images.decode(encoded, "wide.tif", images.Decoding(window=(0, 70000)))
  assert decoded[0, :, 0].tolist() == [0, 128, 255]
