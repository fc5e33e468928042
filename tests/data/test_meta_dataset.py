"""Meta-Dataset's records as others write them: tensorboardX the files, protobuf the examples."""

import io
import json
import os

import numpy as np
import pytest
from absl import logging
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from PIL import Image
from tensorboardX.record_writer import RecordWriter

from mdtrap_jax.data.images import UnreadableImageError
from mdtrap_jax.data.meta_dataset import RecordSource, split_classes
from tests.data.test_hierarchy import ALPHABETS, WORDNET

COUNTS = (3, 2, 4, 12, 11)  # images of the classes; the last two are for testing


def example_class():
  """`tf.train.Example`, from its published field numbers."""
  file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")
  kinds = descriptor_pb2.FieldDescriptorProto

  def message(name, *fields):
    entry = file.message_type.add(name=name)
    for number, field, label, kind, of in fields:
      entry.field.add(name=field, number=number, label=label, type=kind, type_name=of)
    return entry

  one, many = kinds.LABEL_OPTIONAL, kinds.LABEL_REPEATED
  message("BytesList", (1, "value", many, kinds.TYPE_BYTES, None))
  message("Int64List", (1, "value", many, kinds.TYPE_INT64, None))
  message(
    "Feature",
    (1, "bytes_list", one, kinds.TYPE_MESSAGE, ".t.BytesList"),
    (3, "int64_list", one, kinds.TYPE_MESSAGE, ".t.Int64List"),
  )
  features = message(
    "Features", (1, "feature", many, kinds.TYPE_MESSAGE, ".t.Features.FeatureEntry")
  )
  entry = features.nested_type.add(name="FeatureEntry")
  entry.options.map_entry = True
  entry.field.add(name="key", number=1, label=one, type=kinds.TYPE_STRING)
  entry.field.add(
    name="value", number=2, label=one, type=kinds.TYPE_MESSAGE, type_name=".t.Feature"
  )
  message("Example", (1, "features", one, kinds.TYPE_MESSAGE, ".t.Features"))
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


def pixels(number, copy):
  return np.full((6, 5, 3), 20 * number + copy, np.uint8)


def write_records(root, name="birds"):
  """A small data set as Meta-Dataset's conversion leaves it."""
  make = example_class()
  (root / name).mkdir(parents=True)
  for number, count in enumerate(COUNTS):
    writer = RecordWriter(str(root / name / f"{number}.tfrecords"))
    for copy in range(count):
      encoded = io.BytesIO()
      Image.fromarray(pixels(number, copy)).save(encoded, "PNG")
      example = make()
      example.features.feature["label"].int64_list.value.append(number)
      example.features.feature["image"].bytes_list.value.append(encoded.getvalue())
      writer.write(example.SerializeToString())
    writer.close()
  spec = {
    "name": name,
    "classes_per_split": {"TRAIN": 2, "VALID": 1, "TEST": 2},
    "images_per_class": {str(n): count for n, count in enumerate(COUNTS)},
    "class_names": {str(n): f"bird {n}" for n in range(len(COUNTS))},
    "file_pattern": "{}.tfrecords",
  }
  (root / name / "dataset_spec.json").write_text(json.dumps(spec))
  return root


@pytest.fixture(scope="module")
def records(tmp_path_factory):
  return write_records(tmp_path_factory.mktemp("records"))


def test_the_images_of_a_split(records):
  source = RecordSource(records, "birds")
  assert source.class_names == ("bird 3", "bird 4")
  np.testing.assert_array_equal(source.labels, [0] * 12 + [1] * 11)
  np.testing.assert_array_equal(source.image(2), pixels(3, 2))
  np.testing.assert_array_equal(source.image(22), pixels(4, 10))
  assert "4.tfrecords" in source.describe(22)
  train = RecordSource(records, "birds", "train")
  assert train.class_names == ("bird 0", "bird 1")
  assert train.identity != source.identity


def test_the_three_kinds_of_specification():
  plain = {"classes_per_split": {"TRAIN": 70, "VALID": 15, "TEST": 15}}
  assert split_classes(plain, "VALID") == range(70, 85)
  assert split_classes(ALPHABETS, "TEST") == range(39, 46)
  assert split_classes(WORDNET, "TRAIN") == range(0, 2)
  assert split_classes(WORDNET, "TEST") == range(3, 7)


def test_what_is_wrong_is_named(records, tmp_path):
  with pytest.raises(FileNotFoundError, match=r"config\.data\.records="):
    RecordSource("", "birds")
  with pytest.raises(FileNotFoundError, match=r"fish/dataset_spec\.json"):
    RecordSource(records, "fish")
  with pytest.raises(ValueError, match="train, valid or test"):
    RecordSource(records, "birds", "all")
  write_records(tmp_path)
  file = tmp_path / "birds" / "4.tfrecords"
  file.write_bytes(file.read_bytes()[:-5])
  with pytest.raises(ValueError, match="cut short"):
    RecordSource(tmp_path, "birds")
  file.unlink()
  with pytest.raises(FileNotFoundError, match=r"4\.tfrecords is missing"):
    RecordSource(tmp_path, "birds")


@pytest.mark.parametrize(
  "content",
  [
    "{",
    "[]",
    "5",
    "\xff",
    "[" * 10_000,
    "{}",
    '{"classes_per_split": 3}',
    '{"classes_per_split": {"TRAIN": 2}}',
    '{"classes_per_split": {"TRAIN": 0, "VALID": 0, "TEST": "2"}}',
    '{"classes_per_split": {"TRAIN": -5, "VALID": 0, "TEST": 5}}',
    '{"classes_per_split": {"TRAIN": 0, "VALID": 0, "TEST": 1000000000000}}',
    '{"classes_per_split": {"TRAIN": 3, "VALID": 0, "TEST": 2}, "class_names": []}',
    '{"superclasses_per_split": {"TRAIN": 1, "VALID": 1, "TEST": 9}, "classes_per_superclass": {}}',
    '{"split_subgraphs": {"TRAIN": [], "VALID": [], "TEST": [{"wn_id": "a"}]}}',
    '{"split_subgraphs": {"TRAIN": [], "VALID": [], "TEST": '
    '[{"wn_id": "a", "children_ids": ["b"]}]}}',
  ],
)
def test_damaged_specifications_end_in_one_line(tmp_path, content):
  write_records(tmp_path)
  (tmp_path / "birds" / "dataset_spec.json").write_text(content, encoding="latin-1")
  with pytest.raises(ValueError, match=r"dataset_spec\.json is damaged .* Convert birds") as caught:
    RecordSource(tmp_path, "birds")
  assert "\n" not in str(caught.value)


def damage(file, byte, value=None):
  content = bytearray(file.read_bytes())
  content[byte] = content[byte] ^ 1 if value is None else value
  file.write_bytes(content)


def test_a_damaged_length_is_found_at_once(tmp_path):
  write_records(tmp_path)
  damage(tmp_path / "birds" / "3.tfrecords", 0)
  with pytest.raises(ValueError, match=r"3\.tfrecords: the length .* at byte 0 .* checksum"):
    RecordSource(tmp_path, "birds")
  (tmp_path / "birds" / "3.tfrecords").write_bytes(bytes(range(256)))
  with pytest.raises(ValueError, match=r"3\.tfrecords: the length .* no TFRecord file"):
    RecordSource(tmp_path, "birds")


@pytest.mark.parametrize("place", ["content", "checksum"])
def test_a_damaged_image_is_found_when_it_is_read(tmp_path, place):
  write_records(tmp_path)
  record = RecordSource(tmp_path, "birds")._records[2]
  damage(record.path, record.start + (record.size if place == "checksum" else record.size // 2))
  source = RecordSource(tmp_path, "birds")
  with pytest.raises(UnreadableImageError, match=r"3\.tfrecords, byte \d+: .*checksum.*=skip"):
    source.image(2)
  np.testing.assert_array_equal(source.image(1), pixels(3, 1))
  record.path.write_bytes(b"")  # a file that was cut short after it was indexed
  with pytest.raises(UnreadableImageError, match="checksum"):
    source.image(1)


def test_records_without_an_image_are_named(tmp_path):
  write_records(tmp_path)
  make = example_class()
  label, other, empty = make(), make(), make()
  label.features.feature["label"].int64_list.value.append(3)
  other.features.feature["image"].int64_list.value.append(3)
  empty.features.feature["image"].bytes_list.SetInParent()
  writer = RecordWriter(str(tmp_path / "birds" / "3.tfrecords"))
  for content in (*(m.SerializeToString() for m in (label, other, empty)), b"", b"text", b"\n\xff"):
    writer.write(content)
  writer.close()
  source = RecordSource(tmp_path, "birds")
  for index in range(6):
    with pytest.raises(UnreadableImageError, match=r"3\.tfrecords, byte \d+: the record"):
      source.image(index)


def test_content_and_identity_follow_the_images_alone(tmp_path):
  write_records(tmp_path)
  before = RecordSource(tmp_path, "birds")
  for file in (tmp_path / "birds").iterdir():
    os.utime(file, (1, 1))
  assert RecordSource(tmp_path, "birds").identity == before.identity
  assert {name: count for name, (count, _) in before.content().items()} == {
    "bird 3": 12,
    "bird 4": 11,
  }
  (tmp_path / "birds" / "4.tfrecords").write_bytes(
    (tmp_path / "birds" / "3.tfrecords").read_bytes()
  )
  after = RecordSource(tmp_path, "birds")
  assert after.identity != before.identity
  assert after.content()["bird 3"] == before.content()["bird 3"]
  assert after.content()["bird 4"] == (12, before.content()["bird 3"][1])


def test_a_file_cut_after_a_record_is_said(tmp_path, monkeypatch):
  said = []
  monkeypatch.setattr(logging, "warning", lambda message, *args: said.append(message % args))
  write_records(tmp_path)
  record = RecordSource(tmp_path, "birds")._records[11]
  assert not said
  os.truncate(record.path, record.start - 12)
  assert len(RecordSource(tmp_path, "birds").labels) == 22
  assert "class 3 has 12 images, but its records hold 11" in said[0]
