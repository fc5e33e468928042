"""The world as data: labeled images of a domain, and the stream that pretraining reads."""

import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np

from mdtrap_jax.data.content import Content, digest_of, identity_of
from mdtrap_jax.world import captions, domains, scenes
from mdtrap_jax.world.domains import BLOCK

# Folded into the seed, so that no scene of an evaluation is drawn by pretraining.
_EVALUATION, _PRETRAINING = 1, 2
_VERSION = 1  # Of the images; raise it when drawing or rendering changes them.


def _classes(**choices: tuple[str, ...]) -> tuple[scenes.Attributes, ...]:
  """Every combination of the named attributes' choices."""
  combinations = [scenes.named()]
  for field, words in choices.items():
    combinations = [
      known._replace(**{field: getattr(scenes.named(**{field: word}), field)})
      for known in combinations
      for word in words
    ]
  return tuple(combinations)


# Each domain is asked about attributes that its look leaves visible: film has no color, from
# above a texture is too fine, skin hides the background, a close-up crops the outline.
CLASSES = {
  "source": _classes(
    texture=("plain", "striped", "dotted", "checkered"),
    color=("red", "yellow", "green", "blue", "white"),
    shape=("circle", "square", "triangle", "star", "cross", "heart", "ring", "crescent",
           "hexagon", "diamond", "arrow", "leaf"),
  ),
  "radiograph": _classes(
    texture=("plain", "striped", "dotted", "checkered"),
    shape=("circle", "square", "triangle", "star", "cross", "heart", "ring", "crescent",
           "diamond", "arrow"),
  ),
  "satellite": _classes(
    shape=("circle", "square", "triangle", "star", "cross", "ring"),
    background=("gray", "wooden", "grassy", "sandy", "brick", "watery", "tiled"),
  ),
  "dermoscopy": _classes(
    color=("red", "yellow", "green", "blue", "white", "black"),
    shape=("circle", "square", "triangle", "star", "cross", "heart", "ring", "crescent"),
  ),
  "closeup": _classes(
    texture=scenes.TEXTURES,
    color=("red", "orange", "yellow", "green", "blue", "purple", "brown", "white"),
  ),
  # A hundred, for what is adapted to all classes of a data set. No color is lost on a background.
  "satellite_100": _classes(
    color=("red", "blue", "purple", "pink", "black"),
    shape=("square", "triangle", "star", "cross", "ring"),
    background=("gray", "wooden", "grassy", "sandy"),
  ),
}  # fmt: skip
# Domains that are a look of another name, with finer classes.
_LOOK_OF = {"satellite_100": "satellite"}


def _stack(rows: list[scenes.Attributes]) -> scenes.Attributes:
  return scenes.Attributes(*(np.array(column, np.int32) for column in zip(*rows, strict=True)))


@functools.partial(jax.jit, static_argnames="purpose")
def _scenes_of(
  seed: jax.Array, purpose: int, wanted: scenes.Attributes, label: jax.Array, copy: jax.Array
) -> scenes.Scene:
  """Scenes [B] by identity: the key of a scene is its class and number within the class."""
  root = jax.random.fold_in(jax.random.key(seed), purpose)

  def draw(wanted, label, copy):
    key = jax.random.fold_in(jax.random.fold_in(root, label), copy)
    return scenes.sample_scene(key, wanted)

  return jax.vmap(draw)(wanted, label, copy)


class WorldSource:
  """Labeled images of one domain at one severity, rendered on first use and kept.

  Image `i` is number `i % images_per_class` of class `i // images_per_class`. Its scene depends
  on the seed, its class and that number alone, so that the same scenes are seen at every
  severity. Reading is thread-safe.

  Attributes:
    name: the domain and its severity.
    class_names: `C` names, in the words of `captions.VOCABULARY`.
    labels: [n] int32.
    identity: hex digest of everything the images depend on.
    attributes: `n` rows, the attributes of each class, -1 where the class leaves them free.
  """

  def __init__(
    self,
    domain: str = "source",
    severity: float = 0.0,
    images_per_class: int = 40,
    seed: int = 0,
  ):
    """Makes the source; nothing is rendered yet.

    Args:
      domain: one of `CLASSES`; "source" gives held-out scenes of the source look.
      severity: 0 (the source's look) to 1.
      images_per_class: number of images of each class.
      seed: of the scenes; any seed differs from pretraining's scenes.

    Raises:
      ValueError: If an argument is out of range, or the source domain is given a severity.
    """
    if domain not in CLASSES:
      raise ValueError(f"{domain=} is not in the generated world; choose from {sorted(CLASSES)}.")
    self._look = _LOOK_OF.get(domain, domain)
    domains.check(self._look, severity)
    if domain == "source" and severity > 0:
      raise ValueError(f"{severity=} has no meaning for the source domain; leave it 0.")
    if images_per_class < 1:
      raise ValueError(f"{images_per_class=} must be at least 1.")
    self.domain, self.severity, self.seed = domain, float(severity), seed
    self.name = domain if domain == "source" else f"{domain}-{severity:g}"
    classes = CLASSES[domain]
    self.class_names = tuple(captions.phrase(attributes) for attributes in classes)
    self.labels = np.repeat(np.arange(len(classes), dtype=np.int32), images_per_class)
    self._images_per_class = images_per_class
    self._copies = np.tile(np.arange(images_per_class, dtype=np.int32), len(classes))
    rows = zip(self.labels, self._copies, strict=True)
    self._wanted = _stack([self._complete(label, copy) for label, copy in rows])
    self._blocks: dict[int, tuple[np.ndarray, scenes.Attributes]] = {}
    self._lock = threading.Lock()

  def _complete(self, label: int, copy: int) -> scenes.Attributes:
    """A class's attributes; a free shape goes round the outlines, as digits hide textures."""
    attributes = CLASSES[self.domain][label]
    if attributes.shape < 0:
      return attributes._replace(shape=np.int32((label + copy) % len(scenes.OUTLINES)))
    return attributes

  def content(self) -> Content:
    """Number of images and a digest of what they are drawn from for each class."""
    drawn_from = _VERSION, self.domain, self.severity, self.seed
    return {
      name: (self._images_per_class, digest_of((*drawn_from, label)))
      for label, name in enumerate(self.class_names)
    }

  @property
  def identity(self) -> str:
    """Hex digest of the content."""
    return identity_of(self.class_names, self.content())

  def __len__(self) -> int:
    return len(self.labels)

  def _block(self, index: int) -> tuple[np.ndarray, scenes.Attributes]:
    """The rendered block that holds an image, and its scenes' attributes."""
    if not 0 <= index < len(self):
      raise IndexError(f"Image {index} is outside {self.name}, which has {len(self)} images.")
    number = index // BLOCK
    with self._lock:
      if number not in self._blocks:
        rows = np.minimum(np.arange(BLOCK) + number * BLOCK, len(self) - 1)
        wanted = jax.tree.map(lambda leaf: leaf[rows], self._wanted)
        batch = _scenes_of(self.seed, _EVALUATION, wanted, self.labels[rows], self._copies[rows])
        images = np.asarray(domains.render_batch(batch, self._look, self.severity))
        self._blocks[number] = images, jax.tree.map(np.asarray, batch.attributes)
      return self._blocks[number]

  def image(self, index: int) -> np.ndarray:
    """Image `index`, [48, 48, 3] uint8, read-only."""
    return self._block(index)[0][index % BLOCK]

  def describe(self, index: int) -> str:
    """The whole caption of image `index` and where it comes from."""
    attributes = jax.tree.map(lambda leaf: leaf[index % BLOCK], self._block(index)[1])
    number = self._copies[index]
    return f"{captions.phrase(attributes)} ({self.name}, seed {self.seed}, number {number})"


@functools.partial(jax.jit, static_argnames="batch")
def _pretraining_scenes(key: jax.Array, batch: int) -> tuple[scenes.Scene, jax.Array]:
  def draw(index):
    own = jax.random.fold_in(jax.random.fold_in(key, _PRETRAINING), index)
    scene = scenes.sample_scene(own)
    return scene, captions.caption_ids(scene.attributes, jax.random.fold_in(own, 3))

  return jax.vmap(draw)(jnp.arange(batch))


def sample_batch(key: jax.Array, batch: int) -> tuple[jax.Array, jax.Array]:
  """Images of the source domain with captions, for pretraining.

  Args:
    key: [] typed key, such as `fold_in(root, step)`; it is consumed.
    batch: number `B` of pairs; pair `i` depends on the key and `i` alone.

  Returns:
    [B, 48, 48, 3] uint8 images and [B, CONTEXT_LENGTH] int32 word ids of their captions.
  """
  drawn, ids = _pretraining_scenes(key, batch)
  return domains.render_batch(drawn), ids
