"""TFRecord files and the `tf.train.Example`s in them, read without TensorFlow.

A record is its length (8 bytes), the length's checksum, the content and the content's checksum;
checksums are masked CRC-32C, little-endian as all numbers are.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import google_crc32c

_LENGTH, _CHECKSUM = 8, 4  # bytes


class Record(NamedTuple):
  """Where a record's content is, and what it must be."""

  path: Path
  start: int  # byte of the file
  size: int  # bytes
  checksum: int  # masked CRC-32C of the content


def index_records(path: Path) -> Iterator[Record]:
  """All records of a file; their lengths are checked, their contents only when read.

  Raises:
    ValueError: the file ends within a record, or a length is damaged.
  """
  end = path.stat().st_size
  with open(path, "rb") as file:
    position, head = 0, file.read(_LENGTH + _CHECKSUM)
    while position < end:
      start = position + _LENGTH + _CHECKSUM
      size, checksum = struct.unpack("<QI", head) if start <= end else (end, None)
      if checksum is not None and checksum != masked_crc(head[:_LENGTH]):
        raise ValueError(
          f"{path}: the length of the record at byte {position} does not have its checksum: the "
          "file is damaged, or is no TFRecord file. Copy or convert it again."
        )
      if start + size + _CHECKSUM > end:
        raise ValueError(
          f"{path} ends within a record, at byte {position}: it was cut short, "
          "or is no TFRecord file."
        )
      file.seek(start + size)
      position = start + size + _CHECKSUM
      tail = file.read(_CHECKSUM + _LENGTH + _CHECKSUM)  # and the next head, in one read
      head = tail[_CHECKSUM:]
      yield Record(path, start, size, *struct.unpack("<I", tail[:_CHECKSUM]))


def read_record(record: Record) -> bytes:
  """The content of a record.

  Raises:
    ValueError: it is not what was written.
  """
  with open(record.path, "rb") as file:
    file.seek(record.start)
    content = file.read(record.size)
  if masked_crc(content) != record.checksum:
    raise ValueError("the record's bytes do not have their checksum")
  return content


def masked_crc(content: bytes) -> int:
  """CRC-32C, rotated and shifted, as TFRecord files hold it."""
  crc = google_crc32c.value(content)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def bytes_feature(example: bytes, name: str) -> bytes:
  """The first value of a feature of a serialized `tf.train.Example` that holds bytes.

  Raises:
    ValueError: it has none, or is no such message.
  """
  for _, features in _fields(example):
    for _, entry in _fields(features):
      parts = dict(_fields(entry))  # 1 is the key, 2 the feature, whose field 1 is bytes
      if parts.get(1) == name.encode():
        value = dict(_fields(dict(_fields(parts.get(2, b""))).get(1, b""))).get(1)
        if value is not None:
          return value
  raise ValueError(f"the record has no feature {name!r} that holds bytes")


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
  """Number and content of each field of a protocol buffer that has no other kind but bytes."""
  position = 0
  while position < len(message):
    tag, position = _varint(message, position)
    size, position = _varint(message, position)
    if tag & 7 != 2 or position + size > len(message):
      raise ValueError("the record is no tf.train.Example")
    yield tag >> 3, message[position : position + size]
    position += size


def _varint(message: bytes, position: int) -> tuple[int, int]:
  value = shift = 0
  while position < len(message):
    byte = message[position]
    value |= (byte & 127) << shift
    shift, position = shift + 7, position + 1
    if byte < 128:
      return value, position
  raise ValueError("the record is no tf.train.Example")
