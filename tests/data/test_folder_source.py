import io
import json
import os
import shutil
import socket
import unicodedata

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mdtrap_jax.data import images
from mdtrap_jax.data.class_selection import check_feasible, describe_classes, keep_classes
from mdtrap_jax.data.content import describe_changes
from mdtrap_jax.data.folder_source import FolderSource
from tests.data.folders import write_image, write_tree


def test_is_sorted_and_read(folder):
  source = FolderSource(folder)
  assert source.class_names == ("ant_hill", "bird", "cat")
  assert source.labels.tolist() == [0, 1, 1, 2, 2, 2]
  assert source.labels.dtype == np.int32
  assert source.describe(3) == str(folder / "cat" / "0.png")
  np.testing.assert_array_equal(source.image(3), Image.open(folder / "cat" / "0.png"))


def test_names_for_prompts(folder):
  source = FolderSource(folder, {"cat": "house cat"})
  assert source.class_names == ("ant_hill", "bird", "house cat")
  with pytest.raises(ValueError, match="no subfolder dog to name; it has ant_hill, bird, cat"):
    FolderSource(folder, {"dog": "x"})
  with pytest.raises(ValueError, match="two classes have the same name"):
    FolderSource(folder, {"cat": "bird"})


def test_passes_over_what_is_no_image(folder, caplog):
  write_image(folder / "cat" / ".hidden.png")
  write_image(folder / ".cache" / "x.png")
  (folder / "cat" / "notes.txt").write_text("text")
  (folder / "readme.md").write_text("text")
  source = FolderSource(folder)
  assert len(source.labels) == 6
  assert "passed over 1 files that are not images" in caplog.text
  assert "notes.txt" in caplog.text


def test_recursion_links_and_loops(folder, tmp_path_factory):
  elsewhere = tmp_path_factory.mktemp("elsewhere")
  write_image(elsewhere / "deep" / "1.JPG")
  os.symlink(elsewhere, folder / "dog")
  os.symlink(folder / "dog", elsewhere / "deep" / "loop")
  os.symlink(folder / "cat" / "0.png", folder / "dog" / "linked.png")
  source = FolderSource(folder)
  assert source.class_names[-1] == "dog"
  files = [os.path.relpath(source.describe(index), folder) for index in (6, 7)]
  assert files == ["dog/deep/1.JPG", "dog/linked.png"]
  assert len(source.labels) == 8


def test_a_copied_folder_is_the_same_data(folder, tmp_path_factory):
  copy = tmp_path_factory.mktemp("copy") / "there"
  shutil.copytree(folder, copy)
  for file in copy.rglob("*.png"):
    os.utime(file, (1, 1))
  here, there = FolderSource(folder), FolderSource(copy)
  assert here.identity == there.identity
  assert here.content() == there.content()
  assert json.loads(json.dumps(here.content())).keys() == {"ant_hill", "bird", "cat"}
  assert [count for count, _ in here.content().values()] == [1, 2, 3]


def exchange(first, second):
  first.rename(first.with_suffix(".aside"))
  second.rename(first)
  first.with_suffix(".aside").rename(second)


CHANGES = {
  "replaced": (
    lambda root: write_image(root / "cat/0.png"),
    ["class 'cat': other images"],
  ),
  "renamed": (
    lambda root: (root / "cat/2.png").rename(root / "cat/9.png"),
    ["class 'cat': other images"],
  ),
  "one removed and one added": (
    lambda root: ((root / "cat/0.png").unlink(), write_image(root / "cat/9.png")),
    ["class 'cat': other images"],
  ),
  "added": (
    lambda root: write_image(root / "bird/9.png"),
    ["class 'bird': 2 images there, 3 here"],
  ),
  "moved": (
    lambda root: (root / "cat/0.png").rename(root / "bird/7.png"),
    ["class 'bird': 2 images there, 3 here", "class 'cat': 3 images there, 2 here"],
  ),
  "classes exchanged": (
    lambda root: exchange(root / "cat", root / "bird"),
    ["class 'bird': 2 images there, 3 here", "class 'cat': 3 images there, 2 here"],
  ),
  "images exchanged": (
    lambda root: exchange(root / "cat/0.png", root / "bird/0.png"),
    ["class 'bird': other images", "class 'cat': other images"],
  ),
  "class renamed": (
    lambda root: (root / "cat").rename(root / "lion"),
    ["class 'lion': was called 'cat' there"],
  ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_images_are_noticed_and_the_class_named(change, folder):
  before = FolderSource(folder)
  there = json.loads(json.dumps(before.content()))
  assert FolderSource(folder).identity == before.identity
  make, lines = CHANGES[change]
  make(folder)
  after = FolderSource(folder)
  assert after.identity != before.identity
  assert describe_changes(there, after.content()) == lines


def test_a_change_of_the_bytes_alone_is_noticed(folder):
  """Equal names, sizes and times."""
  file = folder / "cat/0.png"
  old, before = os.stat(file), FolderSource(folder).identity
  content = file.read_bytes()
  file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
  os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns))
  os.replace(shutil.copy2(file, folder / "aside"), file)  # Another inode, as a copy has.
  assert FolderSource(folder).identity != before


def test_the_content_of_what_cannot_be_read(folder):
  before = FolderSource(folder).content()
  os.symlink(folder / "gone.png", folder / "bird" / "9.png")
  assert FolderSource(folder).content()["bird"][0] == before["bird"][0] + 1


def test_no_such_folder(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no such folder\. Set --config\.data\.path="):
    FolderSource(tmp_path / "gone")
  (tmp_path / "file").write_text("")
  with pytest.raises(FileNotFoundError, match="not a folder"):
    FolderSource(tmp_path / "file")


def test_without_classes(tmp_path):
  write_image(tmp_path / "a.png")
  with pytest.raises(ValueError, match=r"no images in subfolders \(subfolders: none\)"):
    FolderSource(tmp_path)


def test_dead_link_is_named_when_read(folder):
  os.symlink(folder / "gone.png", folder / "ant_hill" / "1.png")
  source = FolderSource(folder)
  with pytest.raises(images.UnreadableImageError, match=r"ant_hill/1\.png: .*No such file"):
    source.image(1)


def test_corrupt_file_is_named(folder):
  (folder / "bird" / "0.png").write_bytes(b"")
  source = FolderSource(folder)
  with pytest.raises(images.UnreadableImageError, match=r"bird/0\.png: the file is empty"):
    source.image(1)


NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.mark.parametrize("typed", [NFC, NFD])
@pytest.mark.parametrize("asked", [NFC, NFD])
def test_accents_however_they_were_typed(typed, asked, tmp_path):
  write_tree(tmp_path, f"{typed}/1.png", "tea/1.png", f"{typed}/{NFD}.png")
  source = FolderSource(tmp_path)
  assert source.class_names == (NFC, "tea")
  assert source.files == [f"{NFC}/1.png", f"{NFC}/{NFC}.png", "tea/1.png"]
  assert keep_classes(source, [asked]).labels.tolist() == [0, 0, -1]
  assert FolderSource(tmp_path, {asked: "coffee house"}).class_names == ("coffee house", "tea")
  assert FolderSource(tmp_path, [asked, "x"]).class_names == (NFC, "x")
  with pytest.raises(ValueError, match="two classes have the same name"):
    FolderSource(tmp_path, {"tea": asked})


def test_accents_make_no_other_data(tmp_path):
  pixels = np.zeros((2, 2, 3), np.uint8)
  for name in (NFC, NFD):
    for file in (f"{name}/{name}.png", "cafz/1.png"):
      write_image(tmp_path / f"typed {len(name)}" / file, pixels)
  sources = [FolderSource(tmp_path / f"typed {len(name)}") for name in (NFC, NFD)]
  assert sources[0].identity == sources[1].identity
  assert sources[0].class_names == sources[1].class_names == ("cafz", NFC)


def test_two_folders_of_one_name(tmp_path):
  write_tree(tmp_path, f"{NFC}/1.png", f"{NFD}/1.png", "tea/1.png")
  with pytest.raises(ValueError, match=f"several folders have the name {NFC}, written with other"):
    FolderSource(tmp_path)


def test_what_is_no_file_is_passed_over(folder, caplog):
  os.mkfifo(folder / "cat" / "pipe.png")
  with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(os.path.relpath(folder / "cat" / "socket.png"))
    os.symlink("/dev/zero", folder / "cat" / "zero.png")
    source = FolderSource(folder)
  assert len(source.labels) == 6
  assert "passed over 3 files that are not images" in caplog.text
  assert len(source.identity) == 64


def test_a_pipe_that_came_later_is_not_opened(folder):
  source = FolderSource(folder)
  (folder / "cat" / "0.png").unlink()
  os.mkfifo(folder / "cat" / "0.png")
  with pytest.raises(images.UnreadableImageError, match="is a pipe, device or folder"):
    source.image(3)


def test_suffixes_of_photographs(tmp_path):
  for number, suffix in enumerate((".jfif", ".JPE", ".mpo", ".dib")):
    write_image(tmp_path / "cat" / "a.jpg" if suffix != ".dib" else tmp_path / "cat" / "a.bmp")
    next((tmp_path / "cat").glob("a.*")).rename(tmp_path / "cat" / f"{number}{suffix}")
  source = FolderSource(write_tree(tmp_path, "dog/1.png"))
  assert [source.image(index).shape for index in range(5)] == [(6, 5, 3)] * 5


def test_kinds_that_other_packages_read(tmp_path, caplog):
  write_tree(tmp_path, "cat/1.png", "dog/1.png")
  (tmp_path / "cat" / "2.HEIC").write_bytes(b"x")
  FolderSource(tmp_path)
  assert ".heic is read by the package pillow-heif: convert such files to PNG first" in caplog.text
  (tmp_path / "scans" / "a").mkdir(parents=True)
  (tmp_path / "scans" / "a" / "1.dcm").write_bytes(b"x")
  with pytest.raises(ValueError, match=r"no images in subfolders .*\.dcm is read by .* pydicom"):
    FolderSource(tmp_path / "scans")


def test_names_that_are_not_utf8(tmp_path, caplog):
  write_tree(tmp_path, "cat/1.png", "dog/1.png")
  odd = os.fsencode(tmp_path / "cat") + b"/caf\xe9.png"
  with open(odd, "wb") as file:
    file.write(b"no image")
  with open(os.fsencode(tmp_path / "cat") + b"/caf\xe9.txt", "wb"):
    source = FolderSource(tmp_path)
  assert r"caf\udce9.txt" in caplog.text
  assert source.describe(1).endswith(r"caf\udce9.png")
  with pytest.raises(images.UnreadableImageError, match=r"caf\\udce9\.png: not an image"):
    source.image(1)
  assert len(source.identity) == 64
  os.rename(os.fsencode(tmp_path / "dog"), os.fsencode(tmp_path) + b"/d\xf6g")
  with pytest.raises(ValueError, match=r"the names d\\udcf6g are not UTF-8 text of one line"):
    FolderSource(tmp_path)


def test_folders_in_two_classes(folder):
  os.symlink(folder / "cat", folder / "bird" / "more")
  with pytest.raises(ValueError, match="classes bird and cat lead to one folder by links"):
    FolderSource(folder)


NAMES = st.one_of(
  st.sampled_from(
    ["cat", "dog", NFC, NFD, "train", "test", "fold1", "fold2", "images", "masks", "@eaDir", ".git",
     "a\nb", "c\udce9", "1.png", "2.jpg", "x.heic", "=1", "-", "{}"]
  ),
  st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1),
)  # fmt: skip
KINDS = st.sampled_from(["image"] * 4 + ["text", "pipe", "folder", "link", "dead link"])


@settings(
  max_examples=60, deadline=None, derandomize=True,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(st.lists(st.tuples(st.lists(NAMES, min_size=1, max_size=4), KINDS), max_size=12))
def test_any_folder_is_a_source_or_one_line(tmp_path, entries):
  shutil.rmtree(tmp_path)
  tmp_path.mkdir()
  picture = images_bytes()
  for parts, kind in entries:
    path = os.path.join(tmp_path, *parts)
    try:
      os.makedirs(path if kind == "folder" else os.path.dirname(path), exist_ok=True)
      if kind in ("image", "text"):
        with open(path, "xb") as file:
          file.write(picture if kind == "image" else b"text")
      elif kind == "pipe":
        os.mkfifo(path)
      elif "link" in kind:
        os.symlink(tmp_path if kind == "link" else "gone", path)
    except OSError:
      continue  # The name is taken, or means no file.
  try:
    source = check_feasible(FolderSource(tmp_path), 2, 1, 0, "drop")
    describe_classes(source).encode()
    assert len(source.identity) == 64
    for index in range(len(source.labels)):
      source.describe(index).encode()
      source.image(index)
  except (ValueError, OSError) as error:
    assert len(str(error).splitlines()) == 1, str(error)  # noqa: PT017 (either outcome is right)
    str(error).encode()


def images_bytes():
  encoded = io.BytesIO()
  Image.new("RGB", (1, 1)).save(encoded, "png")
  return encoded.getvalue()
