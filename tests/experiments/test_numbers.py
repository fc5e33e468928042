"""The numbers of a whole run against a second computation that shares none of its steps.

From the indices in its lines: images read by PIL, prompts written out, merged weights, gradients
of the loss as it is printed, AdamW by hand. Of the library only the encoders themselves, the
views and the random streams are used; each has tests of its own.
"""

import functools
import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mdtrap_jax import models
from mdtrap_jax.data.views import make_views
from mdtrap_jax.keys import episode_key, stream
from mdtrap_jax.run.lines import read_episodes
from tests.episodes import run_finetune, small_config

NAMES = ("blue_jay", "crow", "gull", "wren")
WAYS, SHOTS, QUERIES, VIEWS, STEPS, EPISODES = 3, 2, 4, 2, 7, 3
RATE, FLOOR, DECAY, SVL, RANK, ALPHA, SCALE = 1e-2, 1e-6, 1e-2, 0.5, 2, 8.0, 1 / 0.07
MEAN = np.array([0.48145466, 0.4578275, 0.40821073])  # CLIP's, by hand
STD = np.array([0.26862954, 0.26130258, 0.27577711])
SIZE = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Wide pictures of tinted noise, twice and a half as high as the model's."""
  root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
  for name in NAMES:
    (root / name).mkdir()
    tint = rng.integers(0, 150, 3)
    for i in range(8):
      pixels = (rng.integers(0, 105, (160, 200, 3)) + tint).astype(np.uint8)
      Image.fromarray(pixels).save(root / name / f"{i}.png")
  return root


@pytest.fixture(scope="module")
def lines(folder, tmp_path_factory):
  """Of the run."""
  config = small_config(
    data__path=str(folder),
    data__shots=SHOTS,
    data__resize="family",
    adapt__views=VIEWS,
    adapt__steps=STEPS,
    episodes=EPISODES,
    episodes_per_device=2,
    lora__dropout=0.0,
    objective__svl__weight=SVL,
    objective__svl__window=(0, 2),
    objective__ra__weight=0.0,
  )
  workdir = tmp_path_factory.mktemp("run")
  run_finetune(config, workdir, devices=1)
  return read_episodes(workdir)


@functools.cache
def base():
  model = models.build("clip-tiny")
  return model, models.random_weights(model, jax.random.key(0))


def merged(params, a, b):
  """The image encoder's weights with `W + α/√r A B` in place of `W`."""
  model = base()[0]
  kernel = params["image"]["blocks"]["attention"]["qkv"]["kernel"]  # [depth, W, 3, W]
  delta = ALPHA / math.sqrt(RANK) * jnp.einsum("dpir,dpro->dipo", a, b)
  assert delta.shape == kernel.shape == (model.image.depth, 64, 3, 64)
  blocks = params["image"]["blocks"]
  attention = blocks["attention"] | {"qkv": blocks["attention"]["qkv"] | {"kernel": kernel + delta}}
  return params | {"image": params["image"] | {"blocks": blocks | {"attention": attention}}}


@jax.jit
def encode(factors, pixels):
  """Unit rows `[B, D]`."""
  model, params = base()
  embeddings = model.encode_image(merged(params, *factors), pixels)
  return embeddings / jnp.sqrt((embeddings**2).sum(-1, keepdims=True))


@jax.jit
@functools.partial(jax.value_and_grad, has_aux=True)
def objective(factors, pixels, text, rows, labels, on):
  """`L_vlm + λ L_ad`, and both."""
  image = encode(factors, pixels)

  def cross_entropy(prototypes):
    logits = SCALE * image @ prototypes.T
    chosen = jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]
    return (jax.nn.logsumexp(logits, axis=1) - chosen).mean()

  vlm, svl = cross_entropy(text), cross_entropy(image[rows])
  return vlm + SVL * on * svl, (vlm, svl)


@jax.jit
def draw_views(key, support):
  return make_views(key, support, VIEWS)


def pixels_of(views):
  return jnp.asarray((np.asarray(views) / 255 - MEAN) / STD, jnp.float32)


def read(folder, index):
  """The shorter side to 64 by PIL's bicubic filter, and the middle."""
  name, number = NAMES[index // 8], index % 8
  with Image.open(folder / name / f"{number}.png") as image:
    return np.asarray(image.resize((80, SIZE), Image.Resampling.BICUBIC).crop((8, 0, 72, SIZE)))


def recomputed(folder, line):
  """Accuracies by step and the last loss of each term, from what a line says was drawn."""
  model, params = base()
  support = np.stack([read(folder, i) for row in line["support"] for i in row])
  query = np.stack([read(folder, i) for row in line["query"] for i in row])
  prompts = [f"a photo of a {name.replace('_', ' ')}." for name in line["class_names"]]
  text = np.asarray(jax.jit(model.encode_text)(params, model.tokenize(prompts)))
  text = text / np.linalg.norm(text, axis=1, keepdims=True)
  labels = jnp.asarray([c for _ in range(VIEWS) for c in range(WAYS) for _ in range(SHOTS)])
  truth = np.array([c for c in range(WAYS) for _ in range(QUERIES)])

  key = episode_key(line["seed"], line["task"])
  views = pixels_of(draw_views(stream(key, "views"), support))
  views, query = views.reshape(-1, SIZE, SIZE, 3), pixels_of(query)
  bound = 1 / math.sqrt(64)
  drawn = jax.random.fold_in(stream(key, "lora"), 0)
  a = jax.random.uniform(drawn, (2, 3, 64, RANK), minval=-bound, maxval=bound)
  factors = [np.asarray(a, np.float64), np.zeros((2, 3, RANK, 64))]
  accuracy = lambda: np.mean(np.argmax(np.asarray(encode(factors, query)) @ text.T, 1) == truth)

  found, losses = {0: accuracy()}, {}
  first, second = [0.0, 0.0], [0.0, 0.0]
  for t in range(STEPS):
    draw = jax.random.fold_in(stream(key, "terms", t), zlib.crc32(b"svl"))
    rows = jax.random.randint(draw, (WAYS,), 0, len(views))
    (_, (vlm, svl)), gradient = objective(factors, views, text, rows, labels, float(t < 2))
    losses["vlm"] = float(vlm)
    if t < 2:
      losses["svl"] = float(svl)
    rate = FLOOR + (RATE - FLOOR) * (1 + math.cos(math.pi * t / (8 * STEPS))) / 2
    for i, g in enumerate(np.asarray(g, np.float64) for g in gradient):
      first[i] = 0.9 * first[i] + 0.1 * g
      second[i] = 0.999 * second[i] + 0.001 * g**2
      mean, square = first[i] / (1 - 0.9 ** (t + 1)), second[i] / (1 - 0.999 ** (t + 1))
      factors[i] = factors[i] * (1 - rate * DECAY) - rate * mean / (np.sqrt(square) + 1e-8)
    if t + 1 in (1, 2, 3, 4, STEPS):
      found[t + 1] = accuracy()
  return found, losses


def test_a_run_has_the_numbers_of_a_second_computation(folder, lines):
  ours, theirs = [], []
  for line in lines:
    names = [[NAMES[i // 8] for i in row] for row in (*line["support"], *line["query"])]
    assert names[:WAYS] == [[name] * SHOTS for name in line["class_names"]]
    assert names[WAYS:] == [[name] * QUERIES for name in line["class_names"]]
    accuracies, losses = recomputed(folder, line)
    assert list(line["accuracy_at"]) == ["1", "2", "3", "4", "7"]
    ours += [line["zero_shot_accuracy"], *line["accuracy_at"].values()]
    theirs += accuracies.values()
    assert line["accuracy"] == line["accuracy_at"]["7"]
    assert set(line["losses"]) == {"vlm", "svl"}
    for name, value in losses.items():
      np.testing.assert_allclose(line["losses"][name], value, rtol=1e-2, err_msg=name)
  assert len(set(theirs)) > 4  # numbers that could differ
  off = np.abs(np.subtract(ours, theirs))
  assert off.sum() < 1.5 / (WAYS * QUERIES)  # rounding may tip one query


def test_of_every_episode_other_images(lines):
  assert len({str(line["support"]) for line in lines}) == EPISODES
  assert len({str(line["class_names"]) for line in lines}) > 1
