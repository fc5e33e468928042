"""Captions of scenes: a small fixed vocabulary, as word ids and as text.

The caption of a scene is `a photo of a [size] [texture] [color] shape [on a ... background]`,
with attributes left out at random; a class name is the same phrase without `a photo of a`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from mdtrap_jax.models.families.miniature import CONTEXT_LENGTH, VOCABULARY
from mdtrap_jax.world import scenes

PAD, START, END = "<pad>", "<start>", "<end>"
_PREFIXES = (("a", "photo", "of", "a"), ("a", "picture", "of", "a"), ("a",), ())
_PREFIX_WEIGHTS = (0.6, 0.15, 0.15, 0.1)
TEMPLATES = len(_PREFIXES)

# Probability that a caption names an attribute; without a shape it says "object".
KEEP = dict(size=0.4, texture=0.7, color=0.7, shape=0.9, background=0.6)
_ID = {word: index for index, word in enumerate(VOCABULARY)}


def _ids(words: tuple[str, ...]) -> jax.Array:
  return jnp.array([_ID[word] for word in words], jnp.int32)


def caption_ids(
  attributes: scenes.Attributes, key: jax.Array, template: int | None = None
) -> jax.Array:
  """Word ids of one caption; vmap over attributes and keys for many.

  Args:
    attributes: of one scene; an attribute of -1 is not named.
    key: [] typed key that chooses the words to leave out and the beginning; it is consumed.
    template: index of the beginning, `0` being "a photo of a", or None to draw it. With a
      given template nothing is left out.

  Returns:
    [CONTEXT_LENGTH] int32: start, words, end, padding.
  """
  u = jax.random.uniform(key, (6,))
  if template is None:
    choice = jnp.sum(u[0] >= np.cumsum(_PREFIX_WEIGHTS)[:-1].astype(np.float32))
    limits = KEEP
  else:
    choice, limits = template, dict.fromkeys(KEEP, 1.0)

  def named(field: str, draw: jax.Array) -> jax.Array:
    return (getattr(attributes, field) >= 0) & (draw < limits[field])

  def word(field: str, words: tuple[str, ...]) -> jax.Array:
    return _ids(words)[jnp.maximum(getattr(attributes, field), 0)]

  longest = max(map(len, _PREFIXES))
  prefixes = np.array([[_ID[w] for w in p] + [-1] * (longest - len(p)) for p in _PREFIXES])
  shape = named("shape", u[1])
  ground = named("background", u[2])
  size = named("size", u[3]) & (attributes.size > 0)
  slots = [
    _ID[START],
    *jnp.asarray(prefixes, jnp.int32)[choice],
    jnp.where(size, word("size", ("object", *scenes.SIZES[1:])), -1),
    jnp.where(named("texture", u[4]), word("texture", scenes.TEXTURES), -1),
    jnp.where(named("color", u[5]), word("color", scenes.COLORS), -1),
    jnp.where(shape & scenes.is_digit(attributes.shape), _ID["digit"], -1),
    jnp.where(shape, word("shape", scenes.SHAPES), _ID["object"]),
    jnp.where(ground, _ID["on"], -1),
    jnp.where(ground, _ID["a"], -1),
    jnp.where(ground, word("background", scenes.BACKGROUNDS), -1),
    jnp.where(ground, _ID["background"], -1),
    _ID[END],
  ]
  slots = jnp.stack([jnp.asarray(slot, jnp.int32) for slot in slots])
  said = slots >= 0
  place = jnp.where(said, jnp.cumsum(said) - 1, CONTEXT_LENGTH)
  empty = jnp.full((CONTEXT_LENGTH,), _ID[PAD], jnp.int32)
  return empty.at[place].set(slots, mode="drop")


def words_to_caption(ids: np.ndarray) -> str:
  """The text of one row of word ids, without start, end and padding."""
  words = [VOCABULARY[index] for index in np.asarray(ids)]
  return " ".join(word for word in words if word not in (PAD, START, END))


def phrase(attributes: scenes.Attributes) -> str:
  """The text that names attributes, such as "striped red circle"; -1 is not named."""
  shape, texture, color, background, size = (int(index) for index in attributes)
  words = [scenes.SIZES[size]] if size > 0 else []
  words += [scenes.TEXTURES[texture]] if texture >= 0 else []
  words += [scenes.COLORS[color]] if color >= 0 else []
  words += ["digit"] if shape >= len(scenes.OUTLINES) else []
  words += [scenes.SHAPES[shape]] if shape >= 0 else ["object"]
  words += ["on a", scenes.BACKGROUNDS[background], "background"] if background >= 0 else []
  return " ".join(words)
