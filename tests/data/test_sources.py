import unicodedata
from types import SimpleNamespace

import ml_collections
import numpy as np
import pytest

from mdtrap_jax.data import sources
from mdtrap_jax.world.digits import DigitsSource
from mdtrap_jax.world.source import WorldSource
from tests.data.folders import write_image

RANDOM = np.random.default_rng(0)


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


def make_arrays(counts=(3, 5, 8)):
  labels = np.repeat(np.arange(len(counts)), counts)
  pixels = RANDOM.integers(0, 256, (len(labels), 4, 4, 3), dtype=np.uint8)
  return sources.ArraySource(pixels, labels, [f"class {label}" for label in range(len(counts))])


def test_arrays():
  source = make_arrays()
  assert source.labels.dtype == np.int32
  assert source.describe(2) == "image 2"
  assert source.image(2).shape == (4, 4, 3)
  other = make_arrays()  # Drawn anew.
  assert source.identity != other.identity
  assert sources.describe_changes(source.content(), other.content()) == [
    f"class 'class {label}': other images" for label in range(3)
  ]
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
    sources.check_feasible(source, ways=2, shots=1, queries=5)
  with pytest.raises(ValueError, match=r"4 ways .* there are 3 \(class 0, .*data\.ways="):
    sources.check_feasible(source, ways=4, shots=1, queries=1)


@pytest.mark.parametrize("ways", [1, 0, -3])
def test_an_episode_has_several_classes(ways):
  with pytest.raises(ValueError, match=rf"ways={ways}: with a single class every answer is right"):
    sources.check_feasible(make_arrays(), ways=ways, shots=1, queries=1)


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
  command = f"mdtrap prepare {name} --data_dir={tmp_path}"
  assert command in str(caught.value)
  assert ("--manual_dir=" in str(caught.value)) == bool(manual)


NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def test_names_are_compared_in_one_form():
  assert NFC != NFD
  for typed, asked in ((NFC, NFD), (NFD, NFC)):
    source = sources.ArraySource(np.zeros((2, 1, 1, 3), np.uint8), np.arange(2), [typed, "tea"])
    assert source.class_names == (NFC, "tea")
    assert sources.keep_classes(source, [asked]).class_names == (NFC,)


def test_classes_are_described():
  lines = sources.describe_classes(sources.keep_classes(make_arrays(), ["class 2", "class 1"]))
  assert lines.splitlines() == [
    "arrays: 2 classes, 13 images (3 more are left out)", "  class 1: 5", "  class 2: 8"
  ]  # fmt: skip


@pytest.fixture
def listing(tmp_path):
  return tmp_path / "list.txt"


def kept_files(folder, listing, lines, **changes):
  listing.write_text("\n".join(lines), encoding="utf-8")
  options = config(path=str(folder), files=str(listing), **changes)
  return sources.make_source(options)


def test_a_pool_of_listed_files(folder, listing):
  whole = sources.FolderSource(folder)
  lines = ["cat/2.png", "/data/plants/train/bird/0.png", "", "./cat/0.png\r", "cat\\0.png"]
  kept = kept_files(folder, listing, lines)
  assert kept.labels.tolist() == [-1, 1, -1, 2, -1, 2]
  assert kept.class_names == whole.class_names
  assert kept.describe(5) == whole.describe(5)
  assert kept.identity != whole.identity
  # The order of lines and how they are spelt is no other pool; another file is.
  again = kept_files(folder, listing, ["bird/0.png", "cat/0.png", "cat/2.png"])
  assert again.identity == kept.identity
  other = kept_files(folder, listing, ["bird/0.png", "cat/0.png", "cat/1.png"])
  assert other.identity != kept.identity
  assert sources.describe_changes(kept.content(), other.content()) == [
    "class 'files of list.txt': other images"
  ]


def test_a_pool_of_some_classes(folder, listing):
  kept = kept_files(folder, listing, ["cat/2.png", "bird/0.png"], classes=("cat",))
  assert kept.labels.tolist() == [-1] * 5 + [0]


def test_listed_files_by_the_name_in_prompts(folder, listing):
  names = ("ants", "birds", "cats")
  kept = kept_files(folder, listing, ["cats/1.png", "bird/1.png"], class_names=names)
  assert kept.labels.tolist() == [-1, -1, 1, -1, 2, -1]


@pytest.mark.parametrize(
  ("lines", "message"),
  [
    (["cat/9.png", "cat/0.png"], r"1 of its 2 files are not in .*, the first is cat/9\.png"),
    (["0.png"], r"Its names are written like ant_hill/0\.png"),
    (["dog/0.png"], "1 of its 1 files"),
    (["", " "], "0 of its 0 files are not in"),
  ],
)
def test_listed_files_that_are_not_there(folder, listing, lines, message):
  with pytest.raises(ValueError, match=message):
    kept_files(folder, listing, lines)


def test_lists_that_are_none(folder, listing):
  source = sources.FolderSource(folder)
  with pytest.raises(FileNotFoundError, match=r"data\.files=.*gone: no such file"):
    sources.keep_files(source, folder / "gone")
  listing.write_bytes(b"caf\xe9")
  with pytest.raises(ValueError, match="is no UTF-8 text"):
    sources.keep_files(source, listing)
  with pytest.raises(ValueError, match="arrays has no files"):
    sources.keep_files(make_arrays(), listing)


def test_decoding_travels_from_the_config(folder):
  pixels = np.zeros((3, 3, 4), np.uint8)
  write_image(folder / "cat" / "0.png", pixels)
  source = sources.make_source(config(path=str(folder), background=(1, 2, 3)))
  assert source.image(3)[0, 0].tolist() == [1, 2, 3]
  assert source.identity != sources.FolderSource(folder).identity


def test_generated_content_is_what_decides_the_pixels():
  make = lambda severity=0.25, **options: WorldSource("satellite", severity, **options)
  same, identities = make(), [make().identity]
  assert same.identity == identities[0]
  for other in (make(0.75), make(0.2500001), make(images_per_class=20), make(seed=1)):
    identities.append(other.identity)
  assert len(set(identities)) == 5
  changes = sources.describe_changes(same.content(), make(images_per_class=20).content())
  assert changes[0] == f"class {same.class_names[0]!r}: 40 images there, 20 here"
  assert len(changes) == len(same.class_names)
  digits = DigitsSource()
  assert digits.content()["digit zero"][0] == 178
  assert digits.identity == DigitsSource().identity
