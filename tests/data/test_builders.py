import csv
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from mdtrap_jax.data import prepare, sources
from mdtrap_jax.data.builders import chestx14, isic2018
from mdtrap_jax.data.tfds_source import EUROSAT_CLASSES, TARGETS, TfdsSource

TRUTH = "ISIC2018_Task3_Training_GroundTruth"
INPUT = "ISIC2018_Task3_Training_Input"


def save(file, shape, seed=0):
  file.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
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


def test_same_data_same_identity(isic, tmp_path):
  prepare.prepare("isic", str(tmp_path / "tfds"), str(isic))
  open_source = lambda split: TfdsSource("isic2018", split, str(tmp_path / "tfds"))
  assert open_source("train").identity == open_source("train").identity
  assert open_source("train").identity != open_source("train[:7]").identity
  assert len(open_source("train[:7]").labels) == 7
  with pytest.raises(ValueError, match=r"no split 'test'; it has train"):
    open_source("test")


@pytest.mark.parametrize(
  ("name", "inner", "class_names"),
  [
    ("eurosat", "2750", tuple(EUROSAT_CLASSES.values())),
    ("cropdisease", "Plant_leave_diseases_dataset_without_augmentation", None),
  ],
)
def test_class_folders_of_a_release(name, inner, class_names, tmp_path):
  labels = tfds.builder(TARGETS[name].builder).info.features["label"].names
  for number, label in enumerate(labels):
    folder = label.replace(",", "_") if number % 2 else label
    save(tmp_path / "release" / inner / folder / f"{label}_1.jpg", (64, 64, 3), number)
  prepare.prepare(name, str(tmp_path / "tfds"), str(tmp_path / "release"))
  config = type("", (), {
    "name": name, "data_dir": str(tmp_path / "tfds"), "split": "train", "classes": ()
  })  # fmt: skip
  source = sources.make_source(config)
  assert source.class_names == (class_names or tuple(labels))
  assert sorted(source.labels.tolist()) == list(range(len(labels)))
  for file, index in images_by_file(source).items():
    label = labels[source.labels[index]].split()[-1]  # Names with a space are cut by it.
    assert file == f"{label}_1.jpg"


def test_label_names_that_do_not_fit(isic, tmp_path):
  prepare.prepare("isic", str(tmp_path / "tfds"), str(isic))
  with pytest.raises(ValueError, match="isic2018 has the labels"):
    TfdsSource("isic2018", "train", str(tmp_path / "tfds"), {"MEL": "Melanoma"})


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


def test_command_needs_no_tensorflow(isic, tmp_path):
  code = (
    "import sys\n"
    "from mdtrap_jax.data import prepare, sources\n"
    "prepare.main(sys.argv[1:])\n"
    f"source = sources.TfdsSource('isic2018', 'train', {str(tmp_path / 'tfds')!r})\n"
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
