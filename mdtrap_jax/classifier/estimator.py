"""`FewShotClassifier`: a pretrained model adapted to one's own labeled images.

It follows scikit-learn's conventions and does what an episode of a run does: the same methods by
the same programs, on one task.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mdtrap_jax import files
from mdtrap_jax.classifier import saved
from mdtrap_jax.classifier import task as own_images
from mdtrap_jax.classifier.choices import head_names, make_config
from mdtrap_jax.data import labeled
from mdtrap_jax.data.folder_source import FolderSource
from mdtrap_jax.data.images import UnreadableImageError
from mdtrap_jax.data.labeled import Labeled
from mdtrap_jax.data.names import listed, nfc
from mdtrap_jax.data.read_labeled import read_labeled
from mdtrap_jax.report.classification import softmax

MODEL, METHOD = "openai/clip-vit-base-patch16", "svl_ra"
MOST_CLASSES = 1000


class FewShotClassifier:
  """A vision-language model adapted to labeled images, of which there may be very few.

  Attributes:
    classes_: `[C]`, the labels, sorted; set by `fit`, as what follows is.
    class_names_: `[C]`, what prompts call them.
    accuracy_at_: accuracy on the images given to `fit`, by step.
    losses_: of each term of the objective, its last value.
    temperature_: that cosines are divided by, beside the scale; 1 unless it was fitted.
  """

  def __init__(
    self,
    model: str = MODEL,
    method: str = METHOD,
    *,
    steps: int | None = None,
    learning_rate: float | None = None,
    class_names: Mapping[Any, str] | None = None,
    template: str | Sequence[str] | None = None,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
  ):
    """Stores the settings; nothing is checked or loaded yet.

    Args:
      model: hub name, named size, folder or file of a vision-language model.
      method: `zero_shot`; a head on frozen features (`ncc`, `url`, `copa`, `ridge`,
        `tip_adapter`, … of `docs/heads.md`); or `vlm`, `svl`, `ra`, `svl_ra` (LoRA by the terms of
        that name).
      steps: of adaptation; the papers' if `None`.
      learning_rate: likewise.
      class_names: what prompts call a label, where it is not the label itself.
      template: the prompt, `{}` the class, or several whose embeddings are averaged.
      seed: of views, draws and start.
      config: other fields of `configs/default.py` (of heads `configs/copa.py`) by dotted name.
    """
    self.model = model
    self.method = method
    self.steps = steps
    self.learning_rate = learning_rate
    self.class_names = class_names
    self.template = template
    self.seed = seed
    self.config = config

  def fit(
    self, X: Any, y: Any = None, *, report: Callable[[float], None] = lambda done: None
  ) -> FewShotClassifier:
    """Adapts the model to labeled images.

    Args:
      X: a folder with one subfolder a class, a CSV `file,label`, paths, or images uint8
        `[n, H, W, 3]` (or a list of `[H, W, 3]`); of CoOp's `split_….json`, and of a folder of
        folders `train` and `test`, the `train` part.
      y: `[n]` labels of paths or images, strings or integers.
      report: told from time to time which share of the steps is done.

    Returns:
      itself.

    Raises:
      OSError, ValueError: input that cannot be right, or adapting became non-finite.
    """
    data = read_labeled(X, y)
    setting = self.prepare(data)
    classes, indices = np.unique(data.labels, return_inverse=True)
    order = np.argsort(indices, kind="stable")  # class by class, as episodes are
    pixels = labeled.decode_all([data.items[row] for row in order], setting.preprocessing)
    rows = setting.rows(pixels)
    task = setting.task(rows, indices[order], rows, indices[order])
    adapted = setting.adapt([task], report)
    if not adapted.ok.all():
      raise ValueError(
        f"{self.method} became non-finite on these images; set a lower learning_rate than "
        f"{self.learning_rate or 'the default'}."
      )
    self._setting, self._fitted = setting, setting.fitted(task, adapted.params_of(0))
    self.classes_, self.class_names_ = classes, self.names_of(classes)
    self.counts_ = np.bincount(indices).tolist()
    self.accuracy_at_ = {
      step: float(found.accuracy[0]) for step, found in sorted(adapted.evaluations.items())
    }
    self.losses_ = {name: float(values[0]) for name, values in adapted.losses.items()}
    return self.calibrate(1.0)

  def prepare(self, data: Labeled) -> own_images.Setting:
    """Checks everything that can be before images are decoded, and loads the model.

    Raises:
      OSError, ValueError: as `fit`.
    """
    classes, counts = np.unique(data.labels, return_counts=True)
    if not 2 <= len(classes) <= MOST_CLASSES:
      found = f"{len(classes)} class{'es' if len(classes) != 1 else ''}"
      raise ValueError(
        f"{data.name}: {found} ({listed(map(str, classes), 3)}); 2 to {MOST_CLASSES} are needed."
      )
    names = self.names_of(classes)
    settings = make_config(
      self.model,
      self.method,
      counts.tolist(),
      seed=self.seed,
      template=self.template,
      fields=self._fields(),
    )
    return own_images.load_setting(settings, self.method, names)

  def _fields(self) -> dict[str, Any]:
    """The config's fields that were set here."""
    head = self.method in head_names()
    steps, rate = (
      ("head.steps", "head.learning_rate") if head else ("adapt.steps", "optimizer.learning_rate")
    )
    given = {steps: self.steps, rate: self.learning_rate}
    return {k: v for k, v in given.items() if v is not None} | dict(self.config or {})

  def names_of(self, classes: np.ndarray) -> list[str]:
    """What prompts call the classes; by key, never by position."""
    given = dict(self.class_names or {})
    keys = {nfc(str(key)): str(name) for key, name in given.items()}
    labels = [nfc(str(label)) for label in classes.tolist()]
    if unknown := sorted(keys.keys() - set(labels)):
      raise ValueError(
        f"class_names has {listed(unknown, 3)}, which is no class; there are {listed(labels)}."
      )
    return [keys.get(label, label) for label in labels]

  def cosines(self, X: Any) -> np.ndarray:
    """Cosines `[n, C] float32` of images to the classes; see `predict_proba`."""
    none = np.zeros((0, len(self._ready() and self.classes_)), np.float32)
    return np.concatenate([none, *(found for _, found in self.stream(_images(X)))])

  def stream(
    self, items: Iterable[Any], unreadable: Callable[[Any, ValueError], None] | None = None
  ) -> Iterator[tuple[list[Any], np.ndarray]]:
    """Cosines of any number of images in constant memory.

    A transductive method has to see all images first: of these, features are kept until the end.

    Args:
      items: paths or images.
      unreadable: told of a file that gives no image, which is then left out.

    Yields:
      some of the items and their cosines `[b, C]`.

    Raises:
      UnreadableImageError: a file that gives no image, if nobody is told.
    """
    setting = self._ready()
    size, how = setting.config.model.batch_size, setting.preprocessing

    def decode(item):
      try:
        return item, labeled.decode(item, how)
      except UnreadableImageError as error:
        if unreadable is None:
          raise
        return item, error

    def batches():
      batch = []
      for item, image in labeled.in_order(decode, items, ahead=2 * size):
        if isinstance(image, UnreadableImageError):
          unreadable(item, image)
          continue
        batch.append((item, image))
        if len(batch) == size:
          yield batch
          batch = []
      if batch:
        yield batch

    seen, features = [], []  # of a method that classifies images together
    for names, found in _overlapped(batches(), setting.answers(self._fitted), size):
      if setting.transductive:
        seen += names
        features.append(found)
      else:
        yield names, found
    if seen:
      yield seen, setting.similarities(self._fitted, np.concatenate(features))

  def predict_proba(self, X: Any) -> np.ndarray:
    """Probabilities of the classes.

    Args:
      X: paths, a folder of images, or images uint8 `[n, H, W, 3]`.

    Returns:
      float64 `[n, C]`, in the order of `classes_`; rows sum to 1.

    Raises:
      OSError, ValueError: an image that cannot be read.
    """
    return self.probabilities(self.cosines(X))

  def probabilities(self, cosines: np.ndarray) -> np.ndarray:
    """`[n, C] float64` of cosines."""
    return softmax(self._ready().scale / self.temperature_ * np.asarray(cosines, np.float64))

  def predict(self, X: Any) -> np.ndarray:
    """The likeliest label of each image, `[n]`; `X` as in `predict_proba`."""
    places = self.cosines(X).argmax(1)
    return self.classes_[places]

  def score(self, X: Any, y: Any = None) -> float:
    """Accuracy on labeled images; `X` and `y` as in `fit`, of a split its `test` part.

    Raises:
      ValueError: a label that is no class of the classifier.
    """
    data = read_labeled(X, y, part="test")
    self.indices(data)
    return float(np.mean(self.predict(data.items) == data.labels))

  def indices(self, data: Labeled) -> np.ndarray:
    """Places `[n]` of labels in `classes_`.

    Raises:
      ValueError: a label that is no class of the classifier.
    """
    places = {label: place for place, label in enumerate(self.classes_.tolist())}
    if unknown := sorted({str(label) for label in data.labels.tolist() if label not in places}):
      raise ValueError(
        f"{data.name} has the classes {listed(unknown)}, which this classifier does not have; it "
        f"has {listed(map(str, places))}."
      )
    return np.array([places[label] for label in data.labels.tolist()])

  def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Writes a folder that `load` takes back, and that may be handed on.

    Raises:
      FileExistsError: something is there; a saved classifier is replaced with `overwrite`.
    """
    about = {
      "classes": self.classes_.tolist(),
      "class_names": self.class_names_,
      "counts": self.counts_,
      "temperature": self.temperature_,
      "accuracy_at": {str(step): value for step, value in self.accuracy_at_.items()},
      "losses": self.losses_,
      "parameters": self.get_params(),
    }
    about["parameters"]["class_names"] = None  # keys of JSON are strings; the names are above
    saved.write(
      path, self._ready(), self._fitted, about, crossval=self.crossval_, overwrite=overwrite
    )

  @classmethod
  def load(cls, path: str | os.PathLike[str], *, model: str | None = None) -> FewShotClassifier:
    """A saved classifier, which predicts what it predicted before.

    Args:
      path: of its folder.
      model: where its base model lies now, if elsewhere.

    Raises:
      OSError, ValueError: it is damaged, or the base model is another one.
    """
    setting, fitted, about = saved.read(path, model)
    own = cls(**about["parameters"])
    own._setting, own._fitted = setting, fitted
    own.classes_, own.class_names_ = np.array(about["classes"]), about["class_names"]
    own.class_names = dict(zip(about["classes"], about["class_names"], strict=True))
    own.counts_, own.losses_ = about["counts"], about["losses"]
    own.calibrate(about["temperature"], saved.read_crossval(path))
    own.accuracy_at_ = {int(step): value for step, value in about["accuracy_at"].items()}
    return own

  def calibrate(self, temperature: float, crossval: str | None = None) -> FewShotClassifier:
    """Takes the temperature that was fitted on held-out images; see `cross_validation`.

    Args:
      temperature: of probabilities from now on.
      crossval: a CSV with a line an image, which is saved with the classifier.

    Returns:
      itself.
    """
    self._ready()
    self.temperature_, self.crossval_ = float(temperature), crossval
    return self

  def get_params(self, deep: bool = True) -> dict[str, Any]:
    """The constructor's arguments by name."""
    del deep
    names = list(inspect.signature(type(self).__init__).parameters)[1:]
    return {name: getattr(self, name) for name in names}

  def set_params(self, **params: Any) -> FewShotClassifier:
    """Sets arguments of the constructor; returns itself.

    Raises:
      ValueError: there is no such argument.
    """
    known = self.get_params()
    for name, value in params.items():
      if name not in known:
        raise ValueError(f"{name!r} is no parameter; choose from {', '.join(known)}.")
      setattr(self, name, value)
    return self

  def __sklearn_tags__(self):
    """What scikit-learn asks of an estimator; called by it alone, so that it is there."""
    from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

    return Tags(
      estimator_type="classifier",
      target_tags=TargetTags(required=True),
      classifier_tags=ClassifierTags(),
      input_tags=InputTags(two_d_array=False, string=True),
    )

  def __sklearn_is_fitted__(self) -> bool:
    """What `check_is_fitted` of scikit-learn asks."""
    return hasattr(self, "_setting")

  def __repr__(self) -> str:
    return f"FewShotClassifier(model={self.model!r}, method={self.method!r})"

  @property
  def setting(self) -> own_images.Setting:
    """Method, model and classes that were fitted."""
    return self._ready()

  def _ready(self) -> own_images.Setting:
    if not hasattr(self, "_setting"):
      raise ValueError("this classifier is not fitted yet: call fit, or load a saved one.")
    return self._setting


def _overlapped(
  batches: Iterable[Sequence[tuple[Any, np.ndarray]]],
  answer: Callable[[np.ndarray], Any],
  size: int,
) -> Iterator[tuple[list[Any], np.ndarray]]:
  """Items with their answers; a batch is on the device while the images of the next are decoded."""
  started = None
  for batch in batches:
    names, pixels = zip(*batch, strict=True)
    following = list(names), answer(own_images.filled(np.stack(pixels), size))
    if started:
      yield started[0], np.asarray(started[1])[: len(started[0])]
    started = following
  if started:
    yield started[0], np.asarray(started[1])[: len(started[0])]


def _images(X: Any) -> Sequence[Any]:
  """Images to predict: of a folder, all that lie in it."""
  if isinstance(X, str | os.PathLike):
    if not os.path.isdir(found := files.local(X)):
      return [found]
    return FolderSource(X).paths
  return labeled.check_items(X if isinstance(X, np.ndarray) else list(X))
