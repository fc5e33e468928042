import csv
import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from mdtrap_jax.data import images, prepare, sources
from mdtrap_jax.data.builders import chestx14, isic2018
from mdtrap_jax.data.targets import CROPDISEASE_CLASSES, EUROSAT_CLASSES, TARGETS
from mdtrap_jax.data.tfds_source import TfdsSource

TRUTH = "ISIC2018_Task3_Training_GroundTruth"
INPUT = "ISIC2018_Task3_Training_Input"


def save(file, shape, seed=0):
  file.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
  if shape[2:] == (4,):
    pixels[..., 3] = 255
  Image.fromarray(pixels).save(file)


def write_csv(file, header, rows):
  file.parent.mkdir(parents=True, exist_ok=True)
  with file.open("w", newline="") as stream:
    csv.writer(stream).writerows([header, *rows])


@pytest.fixture
def isic(tmp_path):
  """Two images of each class, in the form of the official release."""
  release, rows = tmp_path / "isic", []
  for number in range(14):
    save(release / INPUT / f"ISIC_{number:07}.jpg", (9, 12, 3), number)
    rows.append([f"ISIC_{number:07}", *(f"{float(k == number % 7)}" for k in range(7))])
  write_csv(release / TRUTH / f"{TRUTH}.csv", ["image", *isic2018.CLASS_NAMES], rows)
  return release


@pytest.fixture
def chestx(tmp_path):
  """An image of each finding and four to leave out, over two image folders."""
  release = tmp_path / "chestx"
  findings = [*reversed(chestx14.CLASS_NAMES), "No Finding", "Mass|Nodule", "Hernia"]
  rows = []
  for number, finding in enumerate(findings):
    name = f"{number:08}_000.png"
    shape = (40, 40, 4) if number == 0 else (40, 30)  # The release has a few RGBA images.
    save(release / f"images_00{1 + number % 2}" / "images" / name, shape, number)
    rows.append([name, finding, "0", "1"])
  rows.append(["99999999_000.png", "No Finding", "0", "1"])  # Absent, but not wanted either.
  header = ["Image Index", "Finding Labels", "Follow-up #", "Patient ID"]
  write_csv(release / "Data_Entry_2017_v2020.csv", header, rows)
  return release


def images_by_file(source):
  return {source.describe(k).split()[-1]: k for k in range(len(source.labels))}


def test_isic_is_written_and_read_back(isic, tmp_path):
  prepare.prepare("isic", str(tmp_path / "tfds"), str(isic))
  source = TfdsSource("isic2018", "train", str(tmp_path / "tfds"))
  assert source.class_names == (
    "Melanoma", "Melanocytic Nevus", "Basal Cell Carcinoma", "Actinic Keratosis",
    "Benign Keratosis", "Dermatofibroma", "Vascular Lesion",
  )  # fmt: skip
  assert np.bincount(source.labels).tolist() == [2] * 7
  for file, index in images_by_file(source).items():
    assert source.labels[index] == int(file[5:12]) % 7
    np.testing.assert_array_equal(source.image(index), Image.open(isic / INPUT / file))


def test_chestx_keeps_single_findings_at_256(chestx, tmp_path):
  prepare.prepare("chestx", str(tmp_path / "tfds"), str(chestx))
  source = TfdsSource("chestx14", "train", str(tmp_path / "tfds"))
  assert source.class_names == (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumothorax"
  )  # fmt: skip
  files = images_by_file(source)
  assert sorted(files) == [f"{number:08}_000.png" for number in range(7)]
  for number in range(7):
    index = files[f"{number:08}_000.png"]
    assert source.labels[index] == 6 - number
    original = Image.open(next(chestx.glob(f"*/images/{number:08}_000.png"))).convert("RGB")
    np.testing.assert_array_equal(source.image(index), original.resize((256, 256)))


def test_chestx_in_one_image_folder(chestx):
  (chestx / "images").mkdir()
  for file in chestx.glob("images_*/images/*.png"):
    file.rename(chestx / "images" / file.name)
  assert len(chestx14.read_labels(chestx)) == 7


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """ISIC as TFDS writes it, an image a class."""
  folder = tmp_path_factory.mktemp("prepared")
  rows = []
  for number in range(7):
    save(folder / "isic" / INPUT / f"ISIC_{number:07}.png", (40, 50, 3), number)
    rows.append([f"ISIC_{number:07}", *(f"{float(k == number)}" for k in range(7))])
  header = ["image", *isic2018.CLASS_NAMES]
  write_csv(folder / "isic" / TRUTH / f"{TRUTH}.csv", header, rows)
  prepare.prepare("isic", str(folder / "tfds"), str(folder / "isic"))
  return folder / "tfds"


@pytest.fixture
def stored(prepared, tmp_path):
  """A copy of it to damage: the folder of the data set."""
  shutil.copytree(prepared, tmp_path / "tfds")
  return tmp_path / "tfds" / "isic2018" / "1.0.0"


def open_stored(folder, split="train", **options):
  return TfdsSource("isic2018", split, str(folder.parent.parent), **options)


def test_same_data_same_identity(stored, prepared, tmp_path):
  whole = open_stored(stored)
  os.utime(next(stored.glob("*array_record*")), (1, 1))
  again = TfdsSource("isic2018", "train", str(prepared))
  assert whole.identity == again.identity
  assert whole.content() == again.content()
  assert whole.content().keys() == {"train"}
  assert whole.content()["train"][0] == 7
  window = open_stored(stored, decoding=images.Decoding(window=(0, 9)))
  identities = {whole.identity, open_stored(stored, "train[:6]").identity, window.identity}
  renamed = open_stored(stored, class_names={"Melanoma": "mole"})
  assert renamed.class_names[0] == "mole"
  assert len(identities | {renamed.identity}) == 4
  record = next(stored.glob("*array_record*"))
  record.write_bytes(record.read_bytes()[:-1] + b"\1")  # In the padding: reads the same.
  assert sources.describe_changes(whole.content(), open_stored(stored).content())


def test_splits(stored):
  open_source = lambda split: open_stored(stored, split)
  assert len(open_source("train[:6]").labels) == 6
  with pytest.raises(ValueError, match=r"no split 'test'; it has train"):
    open_source("test")


@pytest.mark.parametrize(
  ("name", "inner", "suffix"),
  [
    ("eurosat", "2750", "jpg"),
    ("eurosat", ".", "png"),
    ("cropdisease", "Plant_leave_diseases_dataset_without_augmentation", "jfif"),
    ("cropdisease", "kaggle", "JPG"),
  ],
)
def test_class_folders_of_a_release(name, inner, suffix, tmp_path):
  labels = tfds.builder(TARGETS[name].builder).info.features["label"].names
  class_names = tuple(TARGETS[name].class_names.get(label, label) for label in labels)
  for number, label in enumerate(labels):
    folder = label.replace(",", "_") if number % 2 else label
    if inner == "kaggle":
      folder = class_names[number]
    file = tmp_path / "release" / inner / folder / f"{label}_1.{suffix}"
    save(file.with_suffix(".jpg"), (64, 64, 3), number)
    file.with_suffix(".jpg").rename(file)
  if inner == "kaggle":
    inner = "."
    (tmp_path / "release" / "kaggle").rename(tmp_path / "kaggle")
    shutil.rmtree(tmp_path / "release")
    (tmp_path / "kaggle").rename(tmp_path / "release")
  prepare.prepare(name, str(tmp_path / "tfds"), str(tmp_path / "release"))
  config = type("", (), {
    "name": name, "data_dir": str(tmp_path / "tfds"), "split": "train", "classes": ()
  })  # fmt: skip
  source = sources.make_source(config)
  assert source.class_names == class_names
  assert sorted(source.labels.tolist()) == list(range(len(labels)))
  for file, index in images_by_file(source).items():
    label = labels[source.labels[index]].split()[-1]  # Names with a space are cut by it.
    assert file == f"{label}_1.{suffix}"


def test_prompts_of_the_crop_diseases():
  """The six in which Kaggle's copy of PlantVillage differs from TFDS's, and no others."""
  labels = tfds.builder("plant_village").info.features["label"].names
  assert len(labels) == 38
  names = {CROPDISEASE_CLASSES.get(label, label) for label in labels}
  assert names - set(labels) == {
    "Cherry_(including_sour)___Powdery_mildew",
    "Cherry_(including_sour)___healthy",
    "Corn_(maize)___Cercospora_leaf_spot Gray_leaf_spot",
    "Corn_(maize)___Common_rust_",
    "Corn_(maize)___Northern_Leaf_Blight",
    "Corn_(maize)___healthy",
  }
  assert len(names) == 38
  assert TARGETS["cropdisease"].class_names is CROPDISEASE_CLASSES


def test_the_pool_is_a_list_of_files(stored, tmp_path):
  source = open_stored(stored)
  by_name = dict(zip(source.files, range(7), strict=True))
  chosen = ["Melanoma/ISIC_0000000.png", "Vascular Lesion/ISIC_0000006.png"]
  (tmp_path / "list.txt").write_text(f"train/{chosen[0]}\n\n{chosen[1]}\n")
  config = SimpleNamespace(
    name="isic", data_dir=str(stored.parent.parent), split="train", classes=(),
    files=str(tmp_path / "list.txt"),
  )  # fmt: skip
  kept = sources.make_source(config)
  assert np.flatnonzero(kept.labels >= 0).tolist() == sorted(by_name[name] for name in chosen)
  assert kept.identity != source.identity


def test_label_names_that_do_not_fit(stored):
  with pytest.raises(ValueError, match="isic2018 has the labels"):
    open_stored(stored, class_names={"MEL": "Melanoma"})


def damage(record, kind):
  content = record.read_bytes()
  if kind == "flipped":
    record.write_bytes(content[:1000] + bytes([content[1000] ^ 4]) + content[1001:])
  elif kind == "cut":
    record.write_bytes(content[: len(content) // 2])
  elif kind == "emptied":
    record.write_bytes(b"")
  elif kind == "gone":
    record.unlink()
  else:  # Examples that hold nothing.
    writer = ArrayRecordWriter(str(record), "group_size:1")
    for _ in range(7):
      writer.write(b"")
    writer.close()


@pytest.mark.parametrize("kind", ["flipped", "cut", "emptied", "gone", "without images"])
def test_damaged_records_are_named(kind, stored):
  record = next(stored.glob("*array_record*"))
  damage(record, kind)
  with pytest.raises(OSError, match="Delete the folder .* prepare it again with: mdtrap") as caught:
    open_stored(stored)
  assert str(record) in str(caught.value)
  assert "\n" not in str(caught.value)


def test_records_damaged_while_open_are_named(stored):
  source = open_stored(stored)
  source._examples = [{}] * 7
  with pytest.raises(OSError, match="records without an image"):
    source.image(0)


@pytest.mark.parametrize("text", ["", "[]", "5", '{"name": 5}', "{}", "[" * 100000])
def test_damaged_information_is_named(text, stored, tmp_path):
  (stored / "dataset_info.json").write_text(text)
  for attempt in (
    lambda: open_stored(stored),
    lambda: prepare.prepare("isic", str(tmp_path / "tfds"), str(tmp_path)),
  ):
    with pytest.raises(ValueError, match="Delete that folder and prepare it again") as caught:
      attempt()
    assert str(stored / "dataset_info.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_isic_release_that_is_incomplete(isic):
  table = isic / TRUTH / f"{TRUTH}.csv"
  complete = table.read_text()
  (isic / INPUT / "ISIC_0000003.jpg").unlink()
  with pytest.raises(FileNotFoundError, match=r"1 images listed .* first is ISIC_0000003\.jpg"):
    isic2018.read_labels(isic)
  table.write_text(complete.replace("1.0", "0.0", 1))
  with pytest.raises(ValueError, match="image ISIC_0000000 has 0 classes instead of one"):
    isic2018.read_labels(isic)
  table.write_text(complete.replace("AKIEC", "AK"))
  with pytest.raises(ValueError, match="no column AKIEC; it has image, MEL"):
    isic2018.read_labels(isic)
  table.unlink()
  with pytest.raises(FileNotFoundError, match=r"GroundTruth\.csv is missing\. Download"):
    isic2018.read_labels(isic)


def test_chestx_release_that_is_incomplete(chestx):
  table = chestx / "Data_Entry_2017_v2020.csv"
  next(chestx.glob("*/images/00000002_000.png")).unlink()
  with pytest.raises(FileNotFoundError, match=r"1 images listed .* first is 00000002_000\.png"):
    chestx14.read_labels(chestx)
  complete = table.read_text()
  table.write_text(complete.replace("Finding Labels", "Findings"))
  with pytest.raises(ValueError, match="no column Finding Labels; it has Image Index, Findings"):
    chestx14.read_labels(chestx)
  (chestx / "Data_Entry_2017.csv").write_text(complete)
  with pytest.raises(ValueError, match="several label files"):
    chestx14.read_labels(chestx)
  for file in chestx.glob("*.csv"):
    file.unlink()
  with pytest.raises(FileNotFoundError, match=r"no Data_Entry_2017\*\.csv\. Download"):
    chestx14.read_labels(chestx)


def test_preparation_without_its_release(tmp_path):
  with pytest.raises(ValueError, match=r"isic needs --manual_dir\. Download"):
    prepare.prepare("isic", str(tmp_path))
  with pytest.raises(FileNotFoundError, match="gone: no such folder"):
    prepare.prepare("chestx", str(tmp_path), str(tmp_path / "gone"))
  (tmp_path / "release" / "Forest").mkdir(parents=True)
  with pytest.raises(FileNotFoundError, match="no folder AnnualCrop, Herbaceous"):
    prepare.prepare("eurosat", str(tmp_path), str(tmp_path / "release"))


def nothing_kept(folder):
  return not [file for file in folder.rglob("*") if "array_record" in file.name or
              "incomplete" in file.name or file.name == "dataset_info.json"]  # fmt: skip


def eurosat(tmp_path, change):
  """A release of EuroSAT with one thing changed in its folder Forest."""
  for label in EUROSAT_CLASSES:
    save(tmp_path / "release" / label / "1.png", (64, 64, 3))
  change(tmp_path / "release" / "Forest")
  return "eurosat", str(tmp_path / "tfds"), str(tmp_path / "release")


def only_heic(folder):
  (folder / "1.png").rename(folder / "1.heic")


def test_a_pipe_in_a_release_is_not_opened(tmp_path):
  release = eurosat(tmp_path, lambda folder: os.mkfifo(folder / "2.jpg"))
  with pytest.raises(OSError, match=r"Forest/2\.jpg is a pipe, device or folder, not a file"):
    prepare.prepare(*release)
  assert nothing_kept(tmp_path / "tfds")


def test_a_class_without_images_we_can_read(tmp_path):
  release = eurosat(tmp_path, only_heic)
  message = r"Forest holds no images, but .*1\.heic \(\.heic is read by the package pillow-heif"
  with pytest.raises(FileNotFoundError, match=message):
    prepare.prepare(*release)


def test_two_preparations_at_once(tmp_path):
  release = eurosat(tmp_path, lambda folder: None)
  (tmp_path / "tfds" / "eurosat").mkdir(parents=True)
  descriptor = os.open(tmp_path / "tfds" / "eurosat", os.O_RDONLY)
  fcntl.flock(descriptor, fcntl.LOCK_EX)
  with pytest.raises(OSError, match=r"Another process is preparing .*eurosat\. Wait for it"):
    prepare.prepare(*release)
  os.close(descriptor)
  prepare.prepare(*release)


def test_a_full_disk(tmp_path):
  release = eurosat(tmp_path, lambda folder: None)
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
  try:
    with pytest.raises(OSError, match="Could not prepare .* has space, then start again") as caught:
      prepare.prepare(*release)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert "\n" not in str(caught.value)
  assert nothing_kept(tmp_path / "tfds")


def test_a_folder_that_cannot_be_written(tmp_path):
  release = eurosat(tmp_path, lambda folder: None)
  (tmp_path / "tfds").write_text("a file")
  with pytest.raises(OSError, match="Could not prepare .*Not a directory.*--data_dir be written"):
    prepare.prepare(*release)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_with_one_line_and_keeps_nothing(number, tmp_path, monkeypatch, capsys):
  name, data_dir, manual_dir = eurosat(tmp_path, lambda folder: None)
  monkeypatch.setattr(prepare.images, "read_file", lambda file: os.kill(os.getpid(), number))
  handler = signal.getsignal(number)
  with pytest.raises(SystemExit) as caught:
    prepare.main([name, f"--data_dir={data_dir}", f"--manual_dir={manual_dir}"])
  assert caught.value.code == 130
  assert capsys.readouterr().err.splitlines()[-1] == "Stopped; nothing of eurosat was kept."
  assert signal.getsignal(number) is handler
  assert nothing_kept(tmp_path / "tfds")


def test_command_needs_no_tensorflow(isic, tmp_path):
  code = (
    "import sys\n"
    "from mdtrap_jax.data import prepare, tfds_source\n"
    "prepare.main(sys.argv[1:])\n"
    f"source = tfds_source.TfdsSource('isic2018', 'train', {str(tmp_path / 'tfds')!r})\n"
    "print(source.image(0).shape, 'tensorflow' in sys.modules)"
  )
  options = ["isic", f"--data_dir={tmp_path / 'tfds'}", f"--manual_dir={isic}"]
  command = [sys.executable, "-c", code, *options]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert "Prepared " in done.stdout
  assert "(9, 12, 3) False" in done.stdout


def test_command_ends_in_one_message(tmp_path):
  with pytest.raises(SystemExit, match="error: isic needs --manual_dir"):
    prepare.main(["isic", f"--data_dir={tmp_path}"])
