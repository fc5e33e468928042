"""Meta-Dataset's records as others write them: tensorboardX the files, protobuf the examples."""

import io
import json

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from PIL import Image
from tensorboardX.record_writer import RecordWriter

from mdtrap_jax.data.meta_dataset import RecordSource, split_classes

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
  alphabets = {
    "superclasses_per_split": {"TRAIN": 2, "VALID": 1, "TEST": 1},
    "classes_per_superclass": {"0": 14, "1": 20, "2": 5, "3": 7},
  }
  assert split_classes(alphabets, "TEST") == range(39, 46)
  assert split_classes({"split_subgraphs": {}}, "TEST") == range(870, 1000)
  with pytest.raises(ValueError, match="classes_per_split"):
    split_classes({"name": "x"}, "TEST")


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
