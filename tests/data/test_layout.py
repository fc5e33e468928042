import inspect
import os
import re
import sys

import pytest

from mdtrap_jax.data import layout
from mdtrap_jax.data.folder_source import FolderSource
from tests.data.folders import write_tree

TWO = ("{}/blue ring/1.png", "{}/blue ring/2.png", "{}/red star/1.png")


def under(*folders):
  return [pattern.format(folder) for folder in folders for pattern in TWO]


@pytest.mark.parametrize(
  ("folders", "start"),
  [
    (("test", "train", "val"), "train"),
    (("Training", "Validation"), "Training"),
    (("train_images", "val_images"), "train_images"),
    (("test_set", "training_set"), "training_set"),
    (("seg_test", "seg_train"), "seg_train"),
    (("fold1", "fold2", "fold10"), "fold1"),
    (("Fold 1", "Fold 2"), "Fold 1"),
    (("split_0", "split_1", "other"), "split_0"),
  ],
)
def test_splits_are_no_classes(folders, start, tmp_path):
  write_tree(tmp_path, *under(*folders))
  message = rf"are splits, not classes; .*\(blue ring, red star\).*data\.path={tmp_path}/{start}\."
  with pytest.raises(ValueError, match=message):
    FolderSource(tmp_path)
  with pytest.raises(ValueError, match="are splits, not classes"):  # Names given are no proof.
    FolderSource(tmp_path, [f"class {number}" for number in range(len(folders))])
  assert FolderSource(tmp_path / start).class_names == ("blue ring", "red star")


def test_splits_of_loose_images(tmp_path):
  write_tree(tmp_path, "train/1.png", "test/1.png")
  with pytest.raises(ValueError, match="are splits, not classes; give a folder with one subfolder"):
    FolderSource(tmp_path)


@pytest.mark.parametrize("names", [("bus", "train"), ("bullet train", "train"), ("dev", "ops")])
def test_a_class_may_be_called_train(names, tmp_path):
  write_tree(tmp_path, *(f"{name}/1.png" for name in names))
  assert FolderSource(tmp_path).class_names == names


@pytest.mark.parametrize("names", [("images", "masks"), ("JPEGImages", "SegmentationClass", "txt")])
def test_images_beside_masks_are_no_classes(names, tmp_path):
  write_tree(tmp_path, *(f"{name}/1.png" for name in names))
  with pytest.raises(ValueError, match=f"{names[0]}, {names[1]} are parts of .*one subfolder per"):
    FolderSource(tmp_path)
  write_tree(tmp_path, *under(names[0]))
  with pytest.raises(
    ValueError, match=rf"data\.path={tmp_path}/{names[0]}, which has the folders b"
  ):
    FolderSource(tmp_path)


def test_a_class_may_be_called_mask(tmp_path):
  write_tree(tmp_path, "mask/1.png", "no mask/1.png")
  assert FolderSource(tmp_path).class_names == ("mask", "no mask")


def test_masks_of_a_class_are_passed_over(tmp_path, caplog):
  for name in ("covid", "normal"):
    write_tree(tmp_path, f"{name}/images/1.png", f"{name}/masks/1.png")
  write_tree(tmp_path, "odd/1.png", "odd/Masks/1.png", "face/masks/1.png", "face/hats/1.png")
  source = FolderSource(tmp_path)
  assert source.files == [
    "covid/images/1.png", "face/hats/1.png", "face/masks/1.png", "normal/images/1.png", "odd/1.png"
  ]  # fmt: skip
  assert "passed over 3 folders that hold no images of a class" in caplog.text
  assert str(tmp_path / "covid" / "masks") in caplog.text


def test_what_file_servers_leave_is_passed_over(tmp_path, caplog):
  write_tree(tmp_path, "cat/1.png", "cat/@eaDir/1.png/thumb.jpg", "dog/1.png", "@eaDir/cat/1.png")
  write_tree(tmp_path, "__MACOSX/cat/1.png", "dog/thumbnails/1.png", "#recycle/1.png")
  source = FolderSource(tmp_path)
  assert source.files == ["cat/1.png", "dog/1.png"]
  assert "passed over #recycle, @eaDir, __MACOSX, which hold no images of a class" in caplog.text
  assert str(tmp_path / "cat" / "@eaDir") in caplog.text


def test_loose_images_are_passed_over(tmp_path, caplog):
  source = FolderSource(write_tree(tmp_path, "cat/1.png", "dog/1.png", "a.png", "b.jpg"))
  assert source.files == ["cat/1.png", "dog/1.png"]
  assert "passed over 2 images beside the folders of the classes, among them a.png, b.jpg" in (
    caplog.text
  )


@pytest.mark.parametrize("outer", ["birds", "train", "a/b/c"])
def test_a_folder_around_the_classes_is_entered(outer, tmp_path, caplog):
  source = FolderSource(write_tree(tmp_path, *under(outer), "@eaDir/1.png"))
  assert source.class_names == ("blue ring", "red star")
  assert f"the 2 folders in {tmp_path}/{outer} are taken as the classes" in caplog.text
  assert source.name == str(tmp_path)


def test_one_class_is_not_entered(tmp_path):
  source = FolderSource(write_tree(tmp_path, "cat/indoors/1.png"))
  assert source.class_names == ("cat",)
  write_tree(tmp_path, "cat/outdoors/1.png", "cat/0.png")
  assert FolderSource(tmp_path).class_names == ("cat",)


def test_either_level_may_be_the_classes(tmp_path):
  write_tree(tmp_path, *under("siteA", "siteB"))
  message = (
    "each of its folders siteA, siteB has the subfolders blue ring, red star, so either may be the "
    f"classes. If the lower, give one folder, as --config.data.path={tmp_path}/siteA; if the upper"
  )
  with pytest.raises(ValueError, match=re.escape(message)):
    FolderSource(tmp_path)
  assert FolderSource(tmp_path, ["melanoma", "nevus"]).class_names == ("melanoma", "nevus")
  assert FolderSource(tmp_path, {"siteA": "site A"}).class_names == ("site A", "siteB")
  with pytest.raises(ValueError, match="either may be"):  # These are names of the lower level.
    FolderSource(tmp_path, ["Blue_ring", "Red_star"])


def test_subfolders_that_differ_are_of_the_class(tmp_path):
  write_tree(tmp_path, "cat/home/1.png", "cat/farm/1.png", "dog/home/1.png", "dog/park/1.png")
  assert FolderSource(tmp_path).class_names == ("cat", "dog")


def test_a_copy_of_the_classes_beside_them(tmp_path):
  write_tree(tmp_path, "blue ring/1.png", "red star/1.png", *under("backup"))
  with pytest.raises(ValueError, match="its folder backup has subfolders named like the classes"):
    FolderSource(tmp_path)


def test_a_folder_is_entered_once_however_many_paths_lead_there(tmp_path):
  """Twenty-seven folders that link to the next one twice: 2²⁷ paths."""
  folders = [tmp_path / "elsewhere" / str(number) for number in range(27)]
  for folder in folders:
    folder.mkdir(parents=True)
  for folder, following in zip(folders, folders[1:], strict=False):
    os.symlink(following, folder / "a")
    os.symlink(following, folder / "b")
  write_tree(folders[-1], "1.png")
  os.symlink(folders[0], folders[-1] / "back")
  (tmp_path / "data").mkdir()
  os.symlink(folders[0], tmp_path / "data" / "cat")
  write_tree(tmp_path, "data/dog/1.png")
  assert FolderSource(tmp_path / "data").labels.tolist() == [0, 1]


def test_links_to_themselves(tmp_path):
  write_tree(tmp_path, "cat/1.png", "dog/1.png")
  os.symlink(tmp_path / "cat" / "loop", tmp_path / "cat" / "loop")
  os.symlink(tmp_path / "self", tmp_path / "self")
  os.symlink(tmp_path / "cat", tmp_path / "cat" / "again")
  assert FolderSource(tmp_path).files == ["cat/1.png", "dog/1.png"]
  (tmp_path / "around" / "x").mkdir(parents=True)
  os.symlink(tmp_path / "around", tmp_path / "around" / "x" / "y")
  with pytest.raises(ValueError, match="no images in subfolders"):
    FolderSource(tmp_path / "around")


def nest(folder, name, depth):
  here = os.open(folder, os.O_RDONLY)
  for _ in range(depth):
    os.mkdir(name, dir_fd=here)
    below = os.open(name, os.O_RDONLY, dir_fd=here)
    os.close(here)
    here = below
  os.close(here)


def test_nesting_takes_no_recursion(tmp_path):
  write_tree(tmp_path, "cat/1.png", "dog/1.png", "alone/1/2/3.png")
  nest(tmp_path / "cat", "n", 300)
  nest(tmp_path / "alone" / "1" / "2", "n", 300)
  before = sys.getrecursionlimit()
  sys.setrecursionlimit(len(inspect.stack(0)) + 100)
  try:
    assert FolderSource(tmp_path).files == ["alone/1/2/3.png", "cat/1.png", "dog/1.png"]
    assert FolderSource(tmp_path / "alone").files == ["1/2/3.png"]
  finally:
    sys.setrecursionlimit(before)


def test_folders_deeper_than_a_path_can_say(tmp_path):
  write_tree(tmp_path, "cat/1.png", "dog/1.png")
  nest(tmp_path / "cat", "n" * 200, 25)
  with pytest.raises(OSError, match=r"Cannot list .*… \(\d+ folders deep\): File name too long"):
    FolderSource(tmp_path)


def test_entering_has_an_end(tmp_path, monkeypatch):
  nest(tmp_path, "n", 60)
  looked = []
  monkeypatch.setattr(layout, "_entries", lambda path, own=layout._entries: (
    looked.append(path) or own(path)))  # fmt: skip
  with pytest.raises(ValueError, match="no images in subfolders"):
    FolderSource(tmp_path)
  assert len(looked) < 80


def test_images_of_subfolders_alone_are_pointed_out(tmp_path, caplog):
  source = FolderSource(write_tree(tmp_path, "a/x/1.png", "a/y/1.png", "b/z/1.png", "b/w/1.png"))
  assert source.class_names == ("a", "b")
  assert "the folders a, b are taken as the classes, not those in them (x, y, w, z)" in caplog.text
  caplog.clear()
  FolderSource(write_tree(tmp_path, "b/1.png"))
  assert not caplog.text


def test_a_folder_that_went_away(tmp_path):
  with pytest.raises(OSError, match="Cannot list the folder .*gone: No such file"):
    layout.class_files(str(tmp_path / "gone"))
