"""The eleven data sets, on small releases fabricated in their official layouts."""

import importlib
import json

import numpy as np
import pytest

from configs import fsl
from mdtrap_jax.__main__ import main
from mdtrap_jax.data import release_lists, releases
from mdtrap_jax.data.read_labeled import read_labeled
from mdtrap_jax.data.releases import RELEASES, ReleaseSource, check_release
from mdtrap_jax.data.sources import make_source
from tests.data.folders import write_image

# As the releases name their images: two classes, two images of each part.
FILES = {
  "caltech101": "{folder}/image_000{n}.jpg",
  "oxford_pets": "{folder}_{n}.jpg",
  "stanford_cars": "cars_train/{label}000{n}.jpg",
  "oxford_flowers": "image_{label}000{n}.jpg",
  "food101": "{folder}/{n}.jpg",
  "sun397": "{initial}/{folder}/sun_{n}.jpg",
  "dtd": "{folder}/{folder}_000{n}.jpg",
  "eurosat": "{folder}/{folder}_{n}.jpg",
  "ucf101": "{folder}/v_{folder}_g0{n}_c01.jpg",
}
NAMES = ("first_class", "second_class")


def coop_release(root, domain):
  """A release with CoOp's split; the second class comes first in its lists."""
  split = {}
  for part, numbers in (("train", (1, 2)), ("val", (3,)), ("test", (4, 5))):
    split[part] = []
    for label in (1, 0):
      for n in numbers:
        words = {"label": label, "n": n, "folder": f"f{label}", "initial": "f"}
        file = FILES[domain].format(**words)
        write_image(root / RELEASES[domain].folder / file)
        split[part].append([file, label, NAMES[label]])
  (root / RELEASES[domain].split).write_text(json.dumps(split))
  return root


def aircraft(root):
  (root / "variants.txt").parent.mkdir(parents=True, exist_ok=True)
  (root / "variants.txt").write_text("DC-3\nF/A-18\n")
  for part, start in (("train", 1), ("val", 5), ("test", 7)):
    lines = [f"{start + n:07d} {name}" for n, name in enumerate(("F/A-18", "DC-3"))]
    (root / f"images_variant_{part}.txt").write_text("\n".join(lines) + "\n")
    for line in lines:
      write_image(root / "images" / f"{line.split()[0]}.jpg")
  return root


def imagenet(root, flat):
  (root / "images").mkdir(parents=True)
  (root / "classnames.txt").write_text("n02 great white shark\nn01 tench\n")
  solution = ["ImageId,PredictionString"]
  for number, synset in enumerate(("n01", "n02")):
    for n in range(2):
      write_image(root / "images" / "train" / synset / f"{synset}_{n}.JPEG")
    image = f"ILSVRC2012_val_0000000{number}"
    write_image(root / "images" / "val" / ("" if flat else synset) / f"{image}.JPEG")
    solution.append(f"{image},{synset} 1 2 3 4")
  if flat:
    (root / "LOC_val_solution.csv").write_text("\n".join(solution))
  return root


@pytest.mark.parametrize("domain", FILES)
def test_releases_are_read_by_coops_split(domain, tmp_path):
  root = coop_release(tmp_path / domain, domain)
  config = fsl.get_config(f"svl_ra,{domain}")
  config.data.path, config.data.split = str(root), "test"
  source = make_source(config.data)
  assert source.class_names == NAMES
  assert source.labels.tolist() == [1, 1, 0, 0]
  assert source.image(3).shape == (6, 5, 3)
  assert source.describe(0).endswith(source.files[0])
  assert [source.content()[name][0] for name in NAMES] == [2, 2]
  assert not source.missing()


def test_splits_may_lie_elsewhere_and_are_read_by_classifiers_too(tmp_path):
  root = coop_release(tmp_path / "pets", "oxford_pets")
  found = read_labeled(root / "split_zhou_OxfordPets.json")
  assert list(found.labels) == ["second_class"] * 2 + ["first_class"] * 2
  moved = (root / "split_zhou_OxfordPets.json").rename(tmp_path / "mine.json")
  assert len(ReleaseSource("oxford_pets", root, "val", moved).labels) == 2
  with pytest.raises(FileNotFoundError, match="split_zhou_OxfordPets.json: no such file.*CoOp"):
    ReleaseSource("oxford_pets", root)


def test_aircraft_has_lists_of_its_own(tmp_path):
  source = ReleaseSource("fgvc_aircraft", aircraft(tmp_path), "test")
  assert source.class_names == ("DC-3", "F/A-18")
  assert source.labels.tolist() == [1, 0]
  assert source.files == ["0000007.jpg", "0000008.jpg"]
  (tmp_path / "images_variant_test.txt").write_text("../1 DC-3\n")
  with pytest.raises(ValueError, match="no file below the folder"):
    ReleaseSource("fgvc_aircraft", tmp_path, "test")
  (tmp_path / "images_variant_test.txt").write_text("1 Spitfire\n")
  with pytest.raises(ValueError, match="'1 Spitfire' of no variant"):
    ReleaseSource("fgvc_aircraft", tmp_path, "test")


@pytest.mark.parametrize("flat", [False, True])
def test_imagenet_is_read_from_folders_or_from_its_solution(flat, tmp_path):
  root = imagenet(tmp_path / "imagenet", flat)
  train, test = (ReleaseSource("imagenet", root, part) for part in ("train", "test"))
  assert train.class_names == test.class_names == ("great white shark", "tench")
  assert train.labels.tolist() == [1, 1, 0, 0]
  assert test.labels.tolist() == [1, 0]
  assert test.image(0).shape == (6, 5, 3)
  (root / "classnames.txt").unlink()
  with pytest.raises(FileNotFoundError, match="classnames.txt"):
    ReleaseSource("imagenet", root)


def test_clips_names_of_imagenet_are_told_apart(tmp_path):
  (tmp_path / "classnames.txt").write_text("n03773504 missile\nn04008634 missile\nn01 tench\n")
  names = release_lists._class_names(tmp_path / "classnames.txt")
  assert names == {"n03773504": "missile", "n04008634": "projectile", "n01": "tench"}


def test_content_changes_with_an_image(tmp_path):
  root = coop_release(tmp_path, "dtd")
  before = ReleaseSource("dtd", root).content()
  assert ReleaseSource("dtd", root).content() == before
  write_image(root / "images" / "f0" / "f0_0001.jpg", np.zeros((64, 64, 3), np.uint8))
  after = ReleaseSource("dtd", root).content()
  assert [name for name in NAMES if after[name] != before[name]] == ["first_class"]


@pytest.mark.parametrize(
  ("rows", "message"),
  [
    ([["a.jpg", 0, "x"], ["b.jpg", 0, "y"]], "label 0 is both 'x' and 'y'"),
    ([["a.jpg", 0, "x"], ["b.jpg", 2, "y"]], "no image has the label 1, of 3"),
    ([["a.jpg", 0, "x"], ["b.jpg", 1, "x"]], "two classes have the same name, x"),
    ([["/etc/passwd", 0, "x"]], "no file below the folder"),
    ([["a.jpg", "zero", "x"]], "no split in CoOp's format"),
    ([], "no images under 'train'"),
    ({"a": 1}, "no split in CoOp's format"),
  ],
)
def test_splits_that_cannot_be_right(rows, message, tmp_path):
  root = coop_release(tmp_path, "dtd")
  (root / RELEASES["dtd"].split).write_text(json.dumps({"train": rows}))
  with pytest.raises(ValueError, match=message):
    ReleaseSource("dtd", root)


def test_wrong_names_and_folders(tmp_path):
  with pytest.raises(ValueError, match="data.domain=pets: choose one of imagenet"):
    ReleaseSource("pets", tmp_path)
  with pytest.raises(ValueError, match="data.split=all: dtd has train, val, test"):
    ReleaseSource("dtd", tmp_path, "all")
  with pytest.raises(FileNotFoundError, match="EuroSAT: .* has no folder 2750.*EuroSAT.zip"):
    ReleaseSource("eurosat", tmp_path)
  with pytest.raises(FileNotFoundError, match="Stanford Cars: no folder is given.*cars_train.tgz"):
    ReleaseSource("stanford_cars", "")


def test_prepare_checks_what_is_there(tmp_path, capsys, monkeypatch):
  assert main(["prepare", "fsl/dtd"]) == 1
  assert "no folder is given. Give the unpacked release, https://" in capsys.readouterr().err
  root = coop_release(tmp_path, "dtd")
  assert main(["prepare", "fsl/dtd", f"--manual_dir={root}"]) == 1
  assert "has 2 classes and 4 images; published are 47 and 2820." in capsys.readouterr().err
  small = RELEASES["dtd"]._replace(classes=2, images=(4, 2, 4))
  monkeypatch.setitem(releases.RELEASES, "dtd", small)
  assert main(["prepare", "fsl/dtd", f"--manual_dir={root}"]) == 0
  assert "(val): 2 classes, 2 images" in capsys.readouterr().out
  (root / "images" / "f0" / "f0_0004.jpg").unlink()
  with pytest.raises(FileNotFoundError, match="1 of 4 images are not there: f0/f0_0004.jpg"):
    check_release("dtd", root)


def test_published_numbers_and_prompts():
  assert len(RELEASES) == 11
  counts = {name: (r.classes, r.images[0], r.images[2]) for name, r in RELEASES.items()}
  assert counts == {  # CoOp, table 6: classes, training and test images
    "imagenet": (1000, None, 50_000),
    "caltech101": (100, 4128, 2465),
    "oxford_pets": (37, 2944, 3669),
    "stanford_cars": (196, 6509, 8041),
    "oxford_flowers": (102, 4093, 2463),
    "food101": (101, 50_500, 30_300),
    "fgvc_aircraft": (100, 3334, 3333),
    "sun397": (397, 15_880, 19_850),
    "dtd": (47, 2820, 1692),
    "eurosat": (10, 13_500, 8100),
    "ucf101": (101, 7639, 3783),
  }
  prompts = {name: fsl.get_config(f"vlm,{name},coop").data.template for name in RELEASES}
  assert prompts == {
    "imagenet": "a photo of a {}.",
    "caltech101": "a photo of a {}.",
    "oxford_pets": "a photo of a {}, a type of pet.",
    "stanford_cars": "a photo of a {}.",
    "oxford_flowers": "a photo of a {}, a type of flower.",
    "food101": "a photo of {}, a type of food.",
    "fgvc_aircraft": "a photo of a {}, a type of aircraft.",
    "sun397": "a photo of a {}.",
    "dtd": "{} texture.",
    "eurosat": "a centered satellite photo of {}.",
    "ucf101": "a photo of a person doing {}.",
  }
  assert {fsl.get_config(f"vlm,{name}").data.template for name in RELEASES} == {"a photo of a {}."}
  with pytest.raises(ValueError, match=r"give METHOD\[,TUNE\],DATASET"):
    importlib.import_module("configs.fsl").get_config("svl_ra")
