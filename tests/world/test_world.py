"""The generated world: what is drawn, said and kept, and that it follows from seeds alone."""

import builtins
import concurrent.futures
import time

import jax
import numpy as np
import pytest

from mdtrap_jax import world
from mdtrap_jax.models.word_tokenizer import WordTokenizer
from mdtrap_jax.world import atlas, scenes

TARGETS = tuple(name for name in world.LOOKS if name != "source")
SEVERITIES = (0.25, 0.5, 0.75, 1.0)


@jax.jit
def _draw(seed, wanted):
  keys = jax.random.split(jax.random.key(seed), 128)
  return jax.vmap(lambda key: world.sample_scene(key, wanted))(keys)


@pytest.fixture(scope="module")
def batch():
  return _draw(3, world.ANY)


@pytest.fixture(scope="module")
def source_images(batch):
  return np.asarray(world.render_batch(batch))


@pytest.fixture(scope="module")
def tokenizer():
  return WordTokenizer(world.VOCABULARY, world.CONTEXT_LENGTH)


def _rows(batch, rows):
  return jax.tree.map(lambda leaf: leaf[np.asarray(rows)], batch)


def test_images_are_bytes_and_have_contrast(source_images):
  assert source_images.shape == (128, 48, 48, 3)
  assert source_images.dtype == np.uint8
  assert source_images.std(axis=(1, 2, 3)).min() > 3


@pytest.mark.parametrize("rows", [[5], [7, 5, 90], list(range(100)) * 2])
def test_image_does_not_depend_on_the_batch(batch, source_images, rows):
  images = np.asarray(world.render_batch(_rows(batch, rows)))
  np.testing.assert_array_equal(images, source_images[rows])


def test_same_key_same_scene_and_other_key_another(batch):
  again, other = _draw(3, world.ANY), _draw(4, world.ANY)
  np.testing.assert_array_equal(again.center, batch.center)
  assert not np.any(np.all(np.asarray(other.center) == np.asarray(batch.center), axis=1))


@pytest.mark.parametrize("domain", TARGETS)
def test_look_starts_at_the_source_and_moves_away_with_severity(batch, source_images, domain):
  source = source_images.astype(np.float32)
  zero = np.asarray(world.render_batch(batch, domain, 0.0))
  np.testing.assert_array_equal(zero, source_images)
  # The target's own program tends to the same image: severity has no jump at 0.
  tiny = np.asarray(world.render_batch(batch, domain, 1e-4)).astype(np.float32)
  assert np.abs(tiny - source).mean() < 2.0
  changes = [
    np.abs(np.asarray(world.render_batch(batch, domain, s)) - source).mean() for s in SEVERITIES
  ]
  assert changes == sorted(changes)
  assert changes[-1] > 20 > 0.5 * changes[0]


def test_radiograph_has_no_color(batch):
  film = np.asarray(world.render_batch(batch, "radiograph", 1.0)).astype(np.float32)
  assert film.std(axis=-1).mean() < 6


def test_unknown_domain_and_severity_are_errors(batch):
  with pytest.raises(ValueError, match="sketch.*radiograph"):
    world.render_batch(batch, "sketch", 0.5)
  with pytest.raises(ValueError, match="severity=1.5"):
    world.render_batch(batch, "radiograph", 1.5)
  with pytest.raises(ValueError, match="leave it 0"):
    world.WorldSource("source", severity=0.5)
  with pytest.raises(ValueError, match="images_per_class=0"):
    world.WorldSource("closeup", images_per_class=0)
  with pytest.raises(ValueError, match="mauve.*purple"):
    world.named(color="mauve")


def test_wanted_attributes_are_kept_and_clashes_avoided():
  kept = _draw(0, world.named(color="green", shape="star")).attributes
  assert np.all(np.asarray(kept.color) == scenes.COLORS.index("green"))
  assert np.all(np.asarray(kept.shape) == scenes.SHAPES.index("star"))
  assert not np.any(np.asarray(kept.background) == scenes.BACKGROUNDS.index("grassy"))
  assert len(np.unique(kept.texture)) == len(scenes.TEXTURES)


def test_scenes_cover_every_attribute():
  parts = [_draw(seed, world.ANY).attributes for seed in range(16)]
  drawn = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
  for field, names in zip(
    world.Attributes._fields,
    (scenes.SHAPES, scenes.TEXTURES, scenes.COLORS, scenes.BACKGROUNDS, scenes.SIZES),
    strict=True,
  ):
    counts = np.bincount(np.asarray(getattr(drawn, field)), minlength=len(names))
    assert counts.min() > 10, (field, counts)


def test_object_has_its_color():
  """The middle of a large plain red square is red, whatever the nuisance."""
  wanted = world.named(
    shape="square", texture="plain", color="red", size="large", background="gray"
  )
  images = np.asarray(world.render_batch(_draw(0, wanted))).astype(np.float32)
  middle = images[:, 21:27, 21:27].mean(axis=(1, 2))
  assert np.all(middle[:, 0] > 1.5 * middle[:, 1:].max(axis=1))


def test_digits_of_all_fonts_are_distinct_shapes():
  tables = atlas.atlas()
  inside = tables.shapes < 0
  assert len(tables.shapes) == len(scenes.OUTLINES) + 10 * scenes.FONTS
  share = inside.mean(axis=(1, 2))
  assert share.min() > 0.02
  assert share.max() < 0.5
  flat = inside.reshape(len(inside), -1).astype(np.float32)
  overlap = flat @ flat.T / np.maximum(flat.sum(1)[:, None], flat.sum(1)[None])
  assert overlap[~np.eye(len(flat), dtype=bool)].max() < 0.99


def test_the_vocabulary_is_the_words_of_scenes():
  """Each once, in the order that the packaged weights know."""
  words = ["<pad>", "<start>", "<unk>", "a", "photo", "of", "picture"]
  words += ["object", "digit", "on", "background", "small", "large"]
  for more in scenes.TEXTURES, scenes.COLORS, scenes.SHAPES, scenes.BACKGROUNDS:
    words += more
  assert (*dict.fromkeys(words), "<end>") == world.VOCABULARY
  assert scenes.SIZES[1:] == ("small", "large")


def test_captions_round_trip_through_the_tokenizer(tokenizer):
  images, ids = world.sample_batch(jax.random.key(5), 256)
  assert images.shape == (256, 48, 48, 3)
  ids = np.asarray(ids)
  texts = [world.words_to_caption(row) for row in ids]
  np.testing.assert_array_equal(tokenizer(texts), ids)
  assert all(row[row.argmax()] == world.VOCABULARY.index("<end>") for row in ids)
  assert len(set(texts)) > 200
  assert sum("object" in text for text in texts) > 5
  assert sum("background" in text for text in texts) > 50


def test_pretraining_pair_follows_from_its_index_alone():
  images, ids = world.sample_batch(jax.random.key(5), 256)
  few_images, few_ids = world.sample_batch(jax.random.key(5), 8)
  np.testing.assert_array_equal(images[:8], few_images)
  np.testing.assert_array_equal(ids[:8], few_ids)


def test_whole_caption_says_what_class_names_say(tokenizer, batch):
  keys = jax.random.split(jax.random.key(0), 128)
  ids = jax.vmap(lambda a, key: world.caption_ids(a, key, template=0))(batch.attributes, keys)
  attributes = jax.tree.map(np.asarray, batch.attributes)
  phrases = [world.phrase(_rows(attributes, i)) for i in range(128)]
  texts = [f"A photo of a {phrase}." for phrase in phrases]
  np.testing.assert_array_equal(tokenizer(texts), ids)
  assert "small" in " ".join(phrases)
  assert "medium" not in " ".join(phrases)


def test_longest_caption_fits():
  words = world.named(
    shape="seven", texture="zigzag", color="red", background="tiled", size="small"
  )
  ids = np.asarray(world.caption_ids(words, jax.random.key(0), template=0))
  text = "a photo of a small zigzag red digit seven on a tiled background"
  assert world.words_to_caption(ids) == text


def test_tokenizer_marks_unknown_words_and_reports_each_once(tokenizer, caplog):
  unknown = world.VOCABULARY.index("<unk>")
  with caplog.at_level("WARNING", logger="absl"):
    rows = tokenizer(["a photo of a Striped, squair", "squair"])
    tokenizer("squair")
  assert rows.shape == (2, world.CONTEXT_LENGTH)
  assert (rows[0] == unknown).sum() == 1
  assert caplog.text.count("squair") == 1
  assert "square" in caplog.text


def test_tokenizer_cuts_long_texts_and_keeps_the_end(tokenizer):
  row = tokenizer("red " * 40)[0]
  assert row.argmax() == world.CONTEXT_LENGTH - 1
  assert tokenizer([]).shape == (0, world.CONTEXT_LENGTH)


@pytest.mark.parametrize(
  ("vocabulary", "length", "message"),
  [
    (("<pad>", "red", "<end>"), 8, "lacks"),
    (("<pad>", "<start>", "<unk>", "<end>", "red"), 8, "end with <end>"),
    (("<pad>", "<start>", "<unk>", "red", "red", "<end>"), 8, "repeats"),
    (("<pad>", "<start>", "<unk>", "<end>"), 2, "context_length=2"),
  ],
)
def test_tokenizer_refuses_a_vocabulary_that_cannot_work(vocabulary, length, message):
  with pytest.raises(ValueError, match=message):
    WordTokenizer(vocabulary, length)


@pytest.mark.parametrize("domain", world.CLASSES)
def test_classes_are_many_distinct_and_sayable(domain, tokenizer, caplog):
  source = world.WorldSource(domain, 0.0 if domain == "source" else 0.5, images_per_class=20)
  assert len(source.class_names) == len(set(source.class_names)) >= 20
  assert len(source) == len(source.labels) == 20 * len(source.class_names)
  assert source.labels.dtype == np.int32
  rows = tokenizer([f"a photo of a {name}." for name in source.class_names])
  assert not caplog.text  # No word is unknown.
  assert len(np.unique(rows, axis=0)) == len(rows)


def test_source_is_thread_safe_and_describes_what_it_shows():
  source = world.WorldSource("radiograph", 0.5, images_per_class=7)
  order = np.random.default_rng(0).permutation(len(source))
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    images = list(pool.map(source.image, order))
  again = world.WorldSource("radiograph", 0.5, images_per_class=7)
  for index, image in zip(order[:20], images, strict=False):
    np.testing.assert_array_equal(image, again.image(index))
    for word in source.class_names[source.labels[index]].split():
      assert word in source.describe(index)
  with pytest.raises(IndexError, match=str(len(source))):
    source.image(len(source))


def test_source_scenes_follow_from_seed_class_and_number():
  one = world.WorldSource("radiograph", 0.0, images_per_class=3)
  more = world.WorldSource("radiograph", 0.0, images_per_class=9)
  other = world.WorldSource("radiograph", 0.0, images_per_class=3, seed=1)
  np.testing.assert_array_equal(one.image(3 * 5 + 2), more.image(9 * 5 + 2))
  assert np.any(one.image(0) != other.image(0))
  assert len({one.identity, more.identity, other.identity}) == 3


def test_handwritten_digits():
  source = world.DigitsSource()
  assert source.class_names[3] == "digit three"
  assert len(source) == len(source.labels) == 1797
  image = source.image(0)
  assert image.shape == (48, 48, 3)
  assert image.dtype == np.uint8
  assert image.max() > 200
  assert image[20:28, 20:28].mean() < 60  # The first is a zero: dark inside.
  assert source.describe(0) == "handwritten digit zero (load_digits 0)"


def test_handwritten_digits_without_scikit_learn(monkeypatch):
  real = builtins.__import__

  def refuse(name, *args, **kwargs):
    if name.startswith("sklearn"):
      raise ImportError(name)
    return real(name, *args, **kwargs)

  monkeypatch.setattr(builtins, "__import__", refuse)
  with pytest.raises(ImportError, match="pip install scikit-learn"):
    world.DigitsSource()


def test_rendering_is_not_slow(batch):
  """A loose bound, 20 times slower than measured: a look must not fall to one at a time."""
  world.render_batch(batch).block_until_ready()
  start = time.perf_counter()
  world.render_batch(batch).block_until_ready()
  assert 128 / (time.perf_counter() - start) > 150
