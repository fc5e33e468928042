import os
from types import SimpleNamespace

import ml_collections
import numpy as np
import pytest
from PIL import Image

from mdtrap_jax.data import images, sources

RANDOM = np.random.default_rng(0)


def write_image(file, shape=(6, 5)):
  file.parent.mkdir(parents=True, exist_ok=True)
  pixels = RANDOM.integers(0, 256, (*shape, 3), dtype=np.uint8)
  Image.fromarray(pixels).save(file)
  return pixels


@pytest.fixture
def folder(tmp_path):
  """Three classes with 3, 2 and 1 images."""
  for name, count in (("cat", 3), ("bird", 2), ("ant_hill", 1)):
    for number in range(count):
      write_image(tmp_path / name / f"{number}.png")
  return tmp_path


def config(**changes):
  fields = {
    "name": "folder",
    "path": "",
    "data_dir": "",
    "split": "train",
    "classes": (),
    "class_names": (),
  }
  return ml_collections.ConfigDict({**fields, **changes})


def test_folder_is_sorted_and_read(folder):
  source = sources.FolderSource(folder)
  assert source.class_names == ("ant_hill", "bird", "cat")
  assert source.labels.tolist() == [0, 1, 1, 2, 2, 2]
  assert source.labels.dtype == np.int32
  assert source.describe(3) == str(folder / "cat" / "0.png")
  np.testing.assert_array_equal(source.image(3), Image.open(folder / "cat" / "0.png"))


def test_folder_names_for_prompts(folder):
  source = sources.FolderSource(folder, {"cat": "house cat"})
  assert source.class_names == ("ant_hill", "bird", "house cat")
  with pytest.raises(ValueError, match="no subfolder dog to name; it has ant_hill, bird, cat"):
    sources.FolderSource(folder, {"dog": "x"})
  with pytest.raises(ValueError, match="two classes have the same name"):
    sources.FolderSource(folder, {"cat": "bird"})


def test_folder_passes_over_what_is_no_image(folder, caplog):
  write_image(folder / "cat" / ".hidden.png")
  write_image(folder / ".cache" / "x.png")
  (folder / "cat" / "notes.txt").write_text("text")
  (folder / "readme.md").write_text("text")
  source = sources.FolderSource(folder)
  assert len(source.labels) == 6
  assert "passed over 1 files that are not images" in caplog.text
  assert "notes.txt" in caplog.text


def test_folder_recursion_links_and_loops(folder, tmp_path_factory):
  elsewhere = tmp_path_factory.mktemp("elsewhere")
  write_image(elsewhere / "deep" / "1.JPG")
  os.symlink(elsewhere, folder / "dog")
  os.symlink(folder / "dog", elsewhere / "deep" / "loop")
  os.symlink(folder / "cat" / "0.png", folder / "dog" / "linked.png")
  source = sources.FolderSource(folder)
  assert source.class_names[-1] == "dog"
  files = [os.path.relpath(source.describe(index), folder) for index in (6, 7)]
  assert files == ["dog/deep/1.JPG", "dog/linked.png"]
  assert len(source.labels) == 8


def test_folder_identity_follows_the_files(folder):
  before = sources.FolderSource(folder).identity
  assert sources.FolderSource(folder).identity == before
  os.utime(folder / "cat" / "0.png", (1, 1))
  touched = sources.FolderSource(folder).identity
  (folder / "cat" / "0.png").rename(folder / "cat" / "00.png")
  assert len({before, touched, sources.FolderSource(folder).identity}) == 3


def test_no_such_folder(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no such folder\. Set --config\.data\.path="):
    sources.FolderSource(tmp_path / "gone")
  (tmp_path / "file").write_text("")
  with pytest.raises(FileNotFoundError, match="not a folder"):
    sources.FolderSource(tmp_path / "file")


def test_folder_without_classes(tmp_path):
  write_image(tmp_path / "a.png")
  with pytest.raises(ValueError, match=r"no images in subfolders \(subfolders: none\)"):
    sources.FolderSource(tmp_path)


def test_dead_link_is_named_when_read(folder):
  os.symlink(folder / "gone.png", folder / "ant_hill" / "1.png")
  source = sources.FolderSource(folder)
  with pytest.raises(images.UnreadableImageError, match=r"ant_hill/1\.png: .*No such file"):
    source.image(1)


def test_corrupt_file_is_named(folder):
  (folder / "bird" / "0.png").write_bytes(b"")
  source = sources.FolderSource(folder)
  with pytest.raises(images.UnreadableImageError, match=r"bird/0\.png: the file is empty"):
    source.image(1)


def make_arrays(counts=(3, 5, 8)):
  labels = np.repeat(np.arange(len(counts)), counts)
  pixels = RANDOM.integers(0, 256, (len(labels), 4, 4, 3), dtype=np.uint8)
  return sources.ArraySource(pixels, labels, [f"class {label}" for label in range(len(counts))])


def test_arrays():
  source = make_arrays()
  assert source.labels.dtype == np.int32
  assert source.describe(2) == "image 2"
  assert source.image(2).shape == (4, 4, 3)
  assert source.identity != make_arrays().identity  # Drawn anew.
  ragged = [np.zeros((2, 3, 3), np.uint8), np.zeros((4, 2, 3), np.uint8)]
  assert sources.ArraySource(ragged, np.array([0, 0]), ["a"]).image(1).shape == (4, 2, 3)


@pytest.mark.parametrize(
  ("pixels", "labels", "message"),
  [
    (np.zeros((2, 4, 4, 3), np.float32), [0, 0], r"Image 0 is float32 \[4, 4, 3\], not uint8"),
    (np.zeros((2, 4, 4), np.uint8), [0, 0], r"Image 0 is uint8 \[4, 4\]"),
    (np.zeros((2, 4, 4, 3), np.uint8), [0], r"Labels of shape \(1,\) for 2 images"),
    (np.zeros((2, 4, 4, 3), np.uint8), [0, 2], "Labels go from 0 to 2, but 2 class names"),
  ],
)
def test_arrays_that_do_not_fit(pixels, labels, message):
  with pytest.raises(ValueError, match=message):
    sources.ArraySource(pixels, np.array(labels), ["a", "b"])


def test_kept_classes_keep_the_indices():
  source = make_arrays()
  kept = sources.keep_classes(source, ["class 2", "class 1"])
  assert kept.class_names == ("class 1", "class 2")
  assert kept.labels.tolist() == [-1] * 3 + [0] * 5 + [1] * 8
  np.testing.assert_array_equal(kept.image(4), source.image(4))
  assert kept.identity == source.identity
  again = sources.keep_classes(kept, ["class 2"])
  assert again.labels.tolist() == [-1] * 8 + [0] * 8
  assert sources.keep_classes(source, ()) is source


def test_unknown_class_suggests():
  with pytest.raises(ValueError, match=r"no class 'clas 2'\. Did you mean 'class 2'\? Its"):
    sources.keep_classes(make_arrays(), ["clas 2"])


def test_feasible():
  source = make_arrays()
  assert sources.check_feasible(source, ways=3, shots=1, queries=2) is source
  with pytest.raises(ValueError, match=r"1 \+ 4 = 5 images in class 0 \(3\)\. Ask for fewer"):
    sources.check_feasible(source, ways=2, shots=1, queries=4)
  with pytest.raises(ValueError, match=r"6 images in class 0 \(3\), class 1 \(5\)\. .*=drop"):
    sources.check_feasible(source, ways=1, shots=1, queries=5)
  with pytest.raises(ValueError, match=r"4 ways .* there are 3 \(class 0, .*data\.ways="):
    sources.check_feasible(source, ways=4, shots=1, queries=1)


def test_small_classes_dropped(caplog):
  kept = sources.check_feasible(make_arrays(), 2, 1, 4, small_classes="drop")
  assert kept.class_names == ("class 1", "class 2")
  assert kept.labels.tolist() == [-1] * 3 + [0] * 5 + [1] * 8
  assert "class 0 (3). Left out of all episodes" in caplog.text
  with pytest.raises(ValueError, match="an episode of 3 ways"):
    sources.check_feasible(make_arrays(), 3, 1, 4, small_classes="drop")
  with pytest.raises(ValueError, match="small_classes='skip' is neither"):
    sources.check_feasible(make_arrays(), 2, 1, 4, small_classes="skip")


def test_empty_class_folder_is_named(folder):
  (folder / "dodo").mkdir()
  with pytest.raises(ValueError, match=r"images in dodo \(0\)"):
    sources.check_feasible(sources.FolderSource(folder), 2, 1, 0)


def test_make_source_from_config(folder):
  source = sources.make_source(config(path=str(folder), classes=("cat", "bird")))
  assert source.class_names == ("bird", "cat")
  plain = SimpleNamespace(name="folder", path=str(folder), classes=(), class_names=())
  assert sources.make_source(plain).class_names == ("ant_hill", "bird", "cat")


def test_make_source_with_prompt_names(folder):
  names = ("ant hill", "small bird", "house cat")
  assert sources.make_source(config(path=str(folder), class_names=names)).class_names == names
  with pytest.raises(ValueError, match="has 1 names and .* 3 classes: ant_hill, bird, cat"):
    sources.make_source(config(path=str(folder), class_names=("cat",)))


def test_make_source_of_the_generated_world():
  source = sources.make_source(
    config(name="world", domain="satellite", severity=0.5, images_per_class=3)
  )
  assert (source.name, len(source.labels)) == ("satellite-0.5", 3 * len(source.class_names))
  assert sources.make_source(config(name="digits")).class_names[3] == "digit three"


def test_make_source_errors(folder, tmp_path):
  with pytest.raises(ValueError, match=r"data\.name=foldr\. Did you mean 'folder'\? Known: "):
    sources.make_source(config(name="foldr"))
  with pytest.raises(ValueError, match=r"No image folder is given\. Set --config\.data\.path="):
    sources.make_source(config())
  with pytest.raises(ValueError, match=r"no class 'cow'"):
    sources.make_source(config(path=str(folder), classes=("cow",)))


@pytest.mark.parametrize(
  ("name", "manual"), [("eurosat", ""), ("cropdisease", ""), ("isic", "m"), ("chestx", "m")]
)
def test_unprepared_target_tells_the_command(name, manual, tmp_path):
  with pytest.raises(FileNotFoundError) as caught:
    sources.make_source(config(name=name, data_dir=str(tmp_path)))
  command = f"python -m mdtrap_jax.data.prepare {name} --data_dir={tmp_path}"
  assert command in str(caught.value)
  assert ("--manual_dir=" in str(caught.value)) == bool(manual)
