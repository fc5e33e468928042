"""One task of a user's own images: from a method and its config to arrays and answers.

It is the episodes' own method on a single task: `FineTuning` or `HeadMethod` with the config that a
run would have. Legend: `N` labeled images, `C` classes, `D` width.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mdtrap_jax import checkpoints
from mdtrap_jax.classifier.choices import ZERO_SHOT, has_text, head_names
from mdtrap_jax.data.images import decoding_of
from mdtrap_jax.data.labeled import Preprocessing
from mdtrap_jax.data.prompts import Prompts
from mdtrap_jax.data.task import Task
from mdtrap_jax.data.views import normalize
from mdtrap_jax.experiments import finetune
from mdtrap_jax.methods import heads, ncc
from mdtrap_jax.methods.extractors import unprojected
from mdtrap_jax.methods.finetune import FineTuning
from mdtrap_jax.methods.head import HeadMethod
from mdtrap_jax.methods.method import Evaluation
from mdtrap_jax.methods.probe import ProbeMethod
from mdtrap_jax.methods.tuning.choices import make_parameterization
from mdtrap_jax.methods.tuning.parameterization import Parameterization
from mdtrap_jax.models.vlm import VisionLanguageModel
from mdtrap_jax.run.memory import Adapted, adapt


class Fitted(NamedTuple):
  """An adapted task; NumPy arrays."""

  params: Any  # what a parameterization trains, a head's parameters, or {} where nothing is trained
  anchors: np.ndarray  # [C, D] float32, what images are compared with: texts or prototypes
  memory: Mapping[str, np.ndarray] = {}  # what else a head's logits need; never changed


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
  """A method, a model and the classes, ready for tasks.

  Attributes:
    config: resolved.
    method_name: of `method_names()`.
    model: whose encoders are used.
    params: of the model.
    prompts: of the classes; `None` for a head that uses no texts.
    scale: of cosines, in the loss and in probabilities; 1 for a head that gives logits.
  """

  config: ml_collections.ConfigDict
  method_name: str
  model: VisionLanguageModel
  params: Any
  prompts: Prompts | None
  scale: float

  @property
  def head(self) -> bool:
    """Whether a head on frozen features is trained."""
    return self.method_name in head_names()

  @property
  def transductive(self) -> bool:
    """Whether images are classified together, and not each alone."""
    return self.head and heads.METHODS[self.method_name].transductive

  @property
  def encoder(self) -> VisionLanguageModel:
    """The model as far as the features of a head go."""
    if self.head and heads.METHODS[self.method_name].needs == "unprojected":
      return unprojected(self.model, self.config.model.name)
    return self.model

  @property
  def parameterization(self) -> Parameterization:
    """What is trained of the model, where no head is."""
    return make_parameterization(self.config)

  @functools.cached_property
  def weights(self) -> Any:
    """The frozen weights that the adapted model uses."""
    return self.params if self.head else self.parameterization.weights(self.model, self.params)

  @property
  def preprocessing(self) -> Preprocessing:
    """How images become pixels."""
    data = self.config.data
    return Preprocessing(
      self.model.image.image_size, data.resize, data.interpolation, decoding_of(data)
    )

  def method(self, rows: int, ways: int) -> FineTuning | HeadMethod | ProbeMethod:
    """What adapts a task of `N = rows` images and `C = ways` classes."""
    scale = float(self.model.logit_scale(self.params))
    return _make_method(self.config, self.method_name, self.model, scale, rows, ways)

  def task(
    self,
    support: np.ndarray,
    labels: np.ndarray,
    query: np.ndarray,
    query_labels: np.ndarray,
    number: int = 0,
  ) -> Task:
    """One task of support and query `rows`."""
    return Task(
      support=support,
      support_labels=np.asarray(labels, np.int32),
      query=query,
      query_labels=np.asarray(query_labels, np.int32),
      seed=np.int32(self.config.seed),
      number=np.int32(number),
      token_ids=None if self.head else self.prompts.token_ids,
      text=self.prompts.text if self.prompts else None,
    )

  def rows(self, pixels: np.ndarray) -> np.ndarray:
    """What tasks hold of uint8 images `[n, S, S, 3]`: for a head, their features `[n, D]`."""
    if not self.head:
      return pixels
    encoder = self.encoder
    return in_batches(
      lambda batch: _features(encoder, self.params, batch),
      pixels,
      self.config.model.batch_size,
      encoder.image.embed_dim,
    )

  def adapt(self, tasks: Sequence[Task], report: Any = lambda done: None) -> Adapted:
    """Adapts tasks of one shape side by side; zero-shot only classifies their queries."""
    if self.method_name == ZERO_SHOT:
      return self._unadapted(tasks)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *tasks)
    rows, ways = stacked.support_labels.shape[1], int(stacked.support_labels.max()) + 1
    placing = None if self.head else {"each": self.config.episodes_per_device}
    method = self.method(rows, ways)
    return adapt(method, self.params, stacked, placing=placing, report=report)

  def _unadapted(self, tasks: Sequence[Task]) -> Adapted:
    base = Fitted({}, self.prompts.text)
    cosines = np.stack([self.cosines(base, task.query) for task in tasks])
    hits = cosines.argmax(-1) == np.stack([task.query_labels for task in tasks])
    found = Evaluation(hits.mean(1), cosines, {})
    return Adapted({}, {0: found}, np.isfinite(cosines).all((1, 2)), {})

  def fitted(self, task: Task, params: Any) -> Fitted:
    """What predictions need of an adapted task."""
    if self.head:
      if self.transductive:  # adapted to the images that are classified, when they are
        labels = {"labels": task.support_labels, "support": task.support}
        return Fitted({}, self._class_means(task), labels)
      method = self.method(len(task.support_labels), int(task.support_labels.max()) + 1)
      kept = method.remember(method.needed(self.params), jax.tree.map(jnp.asarray, task), params)
      return Fitted(params, *jax.tree.map(np.asarray, kept))
    if self.method_name == ZERO_SHOT:
      return Fitted({}, self.prompts.text)
    if "text" not in self.parameterization.encoders:
      return Fitted(params, self.prompts.text)
    method = self.method(1, len(self.prompts.token_ids))  # as for `cosines`
    method = dataclasses.replace(method, chunk=self.config.model.batch_size)
    text = jax.jit(method.texts)(self.weights, self.prompts.token_ids, params)
    return Fitted(params, np.asarray(text, np.float32))

  def cosines(self, fitted: Fitted, pixels: np.ndarray) -> np.ndarray:
    """`[n, C] float32` of uint8 images `[n, S, S, 3]`, in batches of one shape.

    What heads give that are no maps of prototypes are logits.
    """
    if self.transductive:
      return self.similarities(fitted, self.rows(pixels))
    size = self.config.model.batch_size
    return in_batches(self.answers(fitted), pixels, size, len(fitted.anchors))

  def answers(self, fitted: Fitted) -> Callable[[np.ndarray], jax.Array]:
    """From a batch of images `[B, S, S, 3]` to `[B, C]` of `cosines`, without waiting for them.

    Of a transductive method to the features `[B, D]`, of which `similarities` wants all.
    """
    encode = functools.partial(_features, self.encoder, self.params)
    if self.transductive:
      return encode
    method = self.method(1, len(fitted.anchors))
    params, anchors, memory = jax.device_put((fitted.params, fitted.anchors, dict(fitted.memory)))
    if not self.head:
      return lambda batch: _text_cosines(method, self.model, self.weights, params, anchors, batch)
    return lambda batch: _classify(method, params, anchors, memory, encode(batch))

  def similarities(self, fitted: Fitted, rows: np.ndarray) -> np.ndarray:
    """What a head makes of features `[n, D]`: `[n, C] float32`, of `cosines`."""
    ways = len(fitted.anchors)
    if self.transductive:
      none = np.zeros(len(rows), np.int32)  # no label is looked at, but they are no padding
      support, labels = fitted.memory["support"], fitted.memory["labels"]
      adapted = self.adapt([self.task(support, labels, rows, none)])
      return adapted.evaluations[max(adapted.evaluations)].cosines[0]
    method = self.method(1, ways)
    return in_batches(
      lambda batch: _classify(method, fitted.params, fitted.anchors, dict(fitted.memory), batch),
      rows,
      self.config.model.batch_size,
      ways,
    )

  def _class_means(self, task: Task) -> np.ndarray:
    ways = int(task.support_labels.max()) + 1
    return np.asarray(ncc.prototypes(jnp.asarray(task.support), task.support_labels, ways))


def load_setting(
  config: ml_collections.ConfigDict, method: str, class_names: Sequence[str] | None
) -> Setting:
  """Loads the model of a config.

  Args:
    config: of `make_config`.
    method: its name.
    class_names: in prompts; `None` where the texts' embeddings are known already.

  Raises:
    OSError, ValueError: no such model, or classes that are the same to its text encoder.
  """
  digest, seed = fingerprint(config), config.seed if config.model.random_weights else 0
  # Heads compute in float32, as in their runs.
  dtype = "float32" if method in head_names() else config.model.dtype
  asked = (config.model.name, dtype, config.model.random_weights)
  model, params = _loaded(*asked, seed, digest)
  head, texts = method in head_names(), has_text(method)
  scale = float(model.logit_scale(params))
  if head:
    # Made once with the scale of the texts, to be asked for the scale of what it gives.
    scale = _make_method(config, method, model, scale, 1, 2).logit_scale
  prompts = None
  if texts and class_names is not None:
    prompts = finetune.encode_prompts(
      model,
      params,
      class_names,
      config.data.template,
      config.model.batch_size,
      None if head else make_parameterization(config),
    )
  elif texts:
    prompts = Prompts(np.zeros((0, 0), np.int32), np.zeros((0, 0), np.float32))
  return Setting(config, method, model, params, prompts, scale)


def fingerprint(config: ml_collections.ConfigDict) -> str | None:
  """Of the base model; `None` for random weights, which follow from the config."""
  return None if config.model.random_weights else checkpoints.fingerprint(config.model.name)


@functools.lru_cache(maxsize=1)  # folds and methods that are compared share the weights
def _loaded(name: str, dtype: str, random: bool, seed: int, digest: str | None):
  del digest  # another file under the same name is another model
  config = ml_collections.ConfigDict(
    {"seed": seed, "model": {"name": name, "dtype": dtype, "random_weights": random}}
  )
  return finetune.load_model(config)


def _make_method(config, name, model, scale, rows, ways) -> FineTuning | HeadMethod | ProbeMethod:
  if name in head_names():
    return heads.make_method(
      name,
      ways=ways,
      shots=config.data.shots,
      logit_scale=scale if heads.METHODS[name].text else None,
      **config.head.to_dict(),
    )
  return finetune.make_method(config, config.objective.to_dict(), model, scale, rows=rows)


def in_batches(fn: Any, rows: np.ndarray, size: int, width: int) -> np.ndarray:
  """`fn` of `[n, ...]`, `size` rows at a time; see `filled`."""
  out = np.empty((len(rows), width), np.float32)
  for start in range(0, len(rows), size):
    batch = rows[start : start + size]
    out[start : start + size] = np.asarray(fn(filled(batch, size)))[: len(batch)]
  return out


def filled(rows: np.ndarray, size: int) -> np.ndarray:
  """`[size, ...]`: rows, and the last one over and over, so that every batch has one shape."""
  return rows[np.minimum(np.arange(size), len(rows) - 1)]


@functools.partial(jax.jit, static_argnums=0)
def _features(model, weights, pixels):
  rows = normalize(pixels, model.image_mean, model.image_std)
  return model.encode_image(weights, rows).astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def _classify(method, params, anchors, memory, rows):
  return method.classify(params, anchors, memory, rows)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _text_cosines(method, model, weights, params, anchors, pixels):
  del model  # the method's
  return method.pixel_cosines(weights, pixels, params or None, anchors)  # zero-shot trains nothing
