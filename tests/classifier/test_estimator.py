"""`FewShotClassifier`: an episode's own numbers, scikit-learn's conventions, saving, bad input."""

import json
import os
import pickle
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from configs import copa
from mdtrap_jax import FewShotClassifier, evaluate
from mdtrap_jax.classifier import saved
from mdtrap_jax.classifier.choices import head_names
from mdtrap_jax.classifier.estimator import softmax
from mdtrap_jax.data.folder_source import FolderSource
from mdtrap_jax.run.lines import read_episodes
from mdtrap_jax.run.predictions import gather
from tests.episodes import run_finetune, run_heads, small_config

TINY = {"model.random_weights": True, "lora.rank": 2, "model.batch_size": 8}
HEAD = {"model.random_weights": True, "model.batch_size": 8}
EPISODE = {"data__ways": 3, "data__shots": 1, "data__queries": 4, "episodes": 1}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
  """Three classes of tinted noise, of 5, 6 and 7 images."""
  root, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
  for count, name in enumerate(("blue_jay", "crow", "gull"), 5):
    (root / name).mkdir()
    tint = rng.integers(0, 120, 3)
    for i in range(count):
      pixels = (rng.integers(0, 130, (20, 24, 3)) + tint).astype(np.uint8)
      Image.fromarray(pixels).save(root / name / f"{i}.png")
  return root


def classifier(method="svl_ra", **settings):
  rate = 1e-2 if method not in head_names() else None
  config = HEAD if rate is None else TINY
  steps = None if method in ("zero_shot", "ncc") else 10
  return FewShotClassifier(
    **{"model": "clip-tiny", "method": method, "steps": steps, "learning_rate": rate}
    | {"config": config} | settings
  )  # fmt: skip


@pytest.fixture(scope="session")
def fitted(folder):
  """Adapted to all images of the folder, of unequal numbers."""
  return classifier("vlm").fit(folder)


def episode(folder, row):
  """Support and queries of a finished episode, and the labels in its own order."""
  source = FolderSource(folder)
  images = lambda rows: [source.image(i) for i in np.ravel(rows)]
  labels = lambda rows: np.repeat(np.arange(len(rows)), len(rows[0]))
  return (
    images(row["support"]), labels(row["support"]), images(row["query"]), labels(row["query"]),
    dict(enumerate(row["class_names"])),
  )  # fmt: skip


def test_it_is_the_episode(folder, tmp_path):
  config = small_config(data__path=str(folder), predictions=True, **EPISODE)
  run_finetune(config, tmp_path, devices=1)
  (row,) = read_episodes(tmp_path)
  support, labels, query, query_labels, names = episode(folder, row)
  own = classifier(class_names=names).fit(support, labels)
  assert round(own.score(query, query_labels), 6) == row["accuracy"]
  (record,) = gather(tmp_path).values()
  np.testing.assert_allclose(record.after, own.cosines(query), atol=1e-5)
  assert record.files == [FolderSource(folder).describe(i) for i in np.ravel(row["query"])]
  assert record.scale == pytest.approx(own.setting.scale)
  assert own.losses_ == pytest.approx(row["losses"], rel=1e-5)  # of the tenth step
  base = classifier("zero_shot", class_names=names).fit(support, labels)
  assert base.score(query, query_labels) == pytest.approx(row["zero_shot_accuracy"], abs=1e-6)
  base.save(tmp_path / "base")
  again = FewShotClassifier.load(tmp_path / "base")
  np.testing.assert_array_equal(again.predict_proba(query), base.predict_proba(query))


@pytest.mark.parametrize(
  "settings",
  [
    {"tune": "coop", "coop.tokens": 3, "coop.per_class": True},
    {"tune": "maple", "maple.depth": 2},
    {"tune": "layernorm", "layernorm.encoder": "both"},
  ],
  ids=lambda settings: settings["tune"],
)
def test_what_is_trained_is_a_choice(folder, tmp_path, settings):
  own = classifier("vlm", config=TINY | settings).fit(folder)
  assert own._setting.config.optimizer.name == ("adamw" if "layer" in settings["tune"] else "sgd")
  files = sorted(map(str, folder.glob("*/*.png")))
  assert own.score(folder) == pytest.approx(own.accuracy_at_[10])
  own.save(tmp_path / "own")
  again = FewShotClassifier.load(tmp_path / "own")
  np.testing.assert_array_equal(again.cosines(files), own.cosines(files))
  if settings["tune"] != "layernorm":
    for form in ("peft", "hf"):
      with pytest.raises(ValueError, match="hand on the folder itself"):
        saved.export(tmp_path / form, saved.read(tmp_path / "own"), form)
      assert not (tmp_path / form).exists()


# Two maps; texts and the model's own weights; all queries together.
@pytest.mark.parametrize("method", ["copa", "prolip", "tim"])
def test_it_is_the_episode_of_a_head(folder, tmp_path, method):
  config = copa.get_config(method)
  config.seed, config.seeds, config.episodes = 0, 1, 1
  config.domains, config.head.steps = (f"own={folder}",), 10
  config.update_from_flattened_dict({"model.name": "clip-tiny", **HEAD})
  config.update_from_flattened_dict({"data.ways": 3, "data.shots": 2, "data.queries": 3})
  run_heads(config, tmp_path)
  (row,) = read_episodes(tmp_path)
  support, labels, query, query_labels, names = episode(folder, row)
  own = classifier(method, class_names=names).fit(support, labels)
  assert own.score(query, query_labels) == pytest.approx(row["accuracy"], abs=1e-6)
  own.save(tmp_path / "model")
  again = FewShotClassifier.load(tmp_path / "model")
  np.testing.assert_array_equal(again.predict_proba(query), own.predict_proba(query))


def test_predictions(folder, fitted):
  files = sorted(map(str, folder.glob("*/*.png")))
  assert fitted.classes_.tolist() == ["blue_jay", "crow", "gull"]
  proba, cosines = fitted.predict_proba(files), fitted.cosines(files)
  assert proba.shape == (18, 3)
  np.testing.assert_allclose(proba.sum(1), 1)
  assert (fitted.predict(files) == fitted.classes_[proba.argmax(1)]).all()
  # By hand: the model's scale times the cosines.
  np.testing.assert_allclose(proba, softmax(fitted._setting.scale * cosines.astype(float)))
  assert fitted.score(folder) == pytest.approx(fitted.accuracy_at_[10])
  assert fitted.score(folder) > fitted.accuracy_at_[0]
  arrays = np.stack([np.array(Image.open(file)) for file in files])
  np.testing.assert_array_equal(fitted.cosines(arrays), cosines)
  np.testing.assert_array_equal(fitted.cosines(files[:3]), cosines[:3])
  assert fitted.predict([]).shape == (0,)


def test_evaluate_says_zero_shot_too(folder, fitted):
  found = evaluate(fitted, folder)
  base = classifier("zero_shot").fit(folder)
  assert list(found.scores) == ["vlm", "zero_shot"]
  assert found.own.accuracy.value == pytest.approx(fitted.score(folder))
  assert found.scores["zero_shot"].accuracy.value == pytest.approx(base.score(folder))
  cosines = fitted.cosines(sorted(map(str, folder.glob("*/*.png"))))
  np.testing.assert_allclose(found.closeness, cosines[np.arange(18), found.outcomes.labels])


def test_a_csv_is_the_folder(folder, tmp_path, fitted):
  rows = [f"{file};{file.parent.name}" for file in sorted(folder.glob("*/*.png"))]
  table = tmp_path / "labels.csv"
  table.write_text("\n".join(["\ufefffile;label", *reversed(rows), ""]), encoding="utf-8")
  assert fitted.score(table) == fitted.score(folder)


def test_conventions_of_scikit_learn(folder):
  base = pytest.importorskip("sklearn.base")
  own = classifier("ncc")
  copy = base.clone(own)
  assert copy.get_params() == own.get_params()
  assert copy is not own
  assert copy.set_params(method="copa", seed=3).get_params()["seed"] == 3
  with pytest.raises(ValueError, match="'speed' is no parameter; choose from model"):
    own.set_params(speed=1)
  with pytest.raises(ValueError, match="not fitted yet"):
    own.predict([folder / "crow" / "0.png"])
  assert own.fit(folder) is own
  selection = pytest.importorskip("sklearn.model_selection")
  files = sorted(map(str, folder.glob("*/*.png")))
  labels = [os.path.basename(os.path.dirname(file)) for file in files]
  found = selection.cross_val_score(own, files, labels, cv=selection.StratifiedKFold(2))
  assert found.shape == (2,)
  assert np.isfinite(found).all()


# Of scikit-learn's own checks, those that do not fit tables of numbers `[n, p]`; the others do, or
# ask for messages about `n_features_in_`, sparse input, NaN, sample weights, pandas.
CHECKS = (
  "check_estimator_cloneable", "check_estimator_repr", "check_no_attributes_set_in_init",
  "check_parameters_default_constructible", "check_get_params_invariance", "check_set_params",
  "check_do_not_raise_errors_in_init_or_set_params", "check_valid_tag_types",
  "check_estimator_tags_renamed", "check_mixin_order",
)  # fmt: skip


@pytest.mark.parametrize("name", CHECKS)
def test_checks_of_scikit_learn(name):
  checks = pytest.importorskip("sklearn.utils.estimator_checks")
  if not hasattr(checks, name):
    pytest.skip(f"this scikit-learn has no {name}")
  getattr(checks, name)("FewShotClassifier", FewShotClassifier())


def test_what_the_other_checks_ask_for(folder):
  """Fitting twice, order, subsets, pickling, input that cannot be written, nothing changed."""
  files = sorted(map(str, folder.glob("*/*.png")))
  labels = [os.path.basename(os.path.dirname(file)) for file in files]
  pixels = np.stack([np.array(Image.open(file)) for file in files])
  pixels.flags.writeable = False
  own = classifier("ncc")
  params = own.get_params()
  found = own.fit(pixels, labels).predict_proba(pixels)
  assert own.get_params() == params
  before = dict(vars(own))
  order = np.random.default_rng(0).permutation(len(files))
  np.testing.assert_array_equal(own.predict_proba(pixels[order]), found[order])
  np.testing.assert_array_equal(np.concatenate([own.predict_proba(x[None]) for x in pixels]), found)
  assert vars(own) == before
  np.testing.assert_array_equal(own.fit(pixels, labels).predict_proba(pixels), found)
  again = pickle.loads(pickle.dumps(own))
  np.testing.assert_array_equal(again.predict_proba(pixels), found)
  pytest.importorskip("sklearn.utils.validation").check_is_fitted(own)


def test_the_same_shape_compiles_nothing_again(folder, fitted):
  compiled = []
  event = "/jax/core/compile/backend_compile_duration"
  listen = lambda name, seconds, **_: compiled.append(seconds) if name == event else None
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    other = classifier("vlm", seed=fitted.seed)
    files = sorted(map(str, folder.glob("*/*.png")))
    labels = [os.path.basename(os.path.dirname(file)) for file in files]
    turned = [np.array(Image.open(file))[::-1] for file in files]
    other.fit(turned, labels).predict(turned[:2])
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert not compiled


def test_a_thousand_classes():
  names = np.array([f"class {number}" for number in range(1000)])
  pixels = np.random.default_rng(0).integers(0, 255, (1000, 4, 4, 3)).astype(np.uint8)
  own = classifier("ncc", config={**HEAD, "model.batch_size": 250}).fit(pixels, names)
  found = own.predict_proba(pixels[:3])
  assert found.shape == (3, 1000)
  assert (own.predict(pixels[::250]) == names[::250]).all()
  with pytest.raises(ValueError, match="1001 classes .*; 2 to 1000 are needed"):
    own.fit(np.zeros((1001, 4, 4, 3), np.uint8), list(range(1001)))


@pytest.mark.parametrize("method", ["vlm", "copa"])
def test_what_is_saved_predicts_the_same(folder, tmp_path, fitted, method):
  own = fitted if method == "vlm" else classifier(method).fit(folder)
  own.save(tmp_path / "model")
  again = FewShotClassifier.load(tmp_path / "model")
  files = sorted(map(str, folder.glob("*/*.png")))
  np.testing.assert_array_equal(again.predict_proba(files), own.predict_proba(files))
  assert again.get_params() == own.get_params() | {
    "class_names": dict(zip(own.classes_.tolist(), own.class_names_, strict=True))
  }
  names = {file.name for file in (tmp_path / "model").iterdir()}
  adapter = {"adapter_model.safetensors", "adapter_config.json"}
  assert names == {"classifier.json", "classifier.safetensors"} | (
    adapter if method == "vlm" else set()
  )


def test_nothing_is_overwritten_unasked(folder, tmp_path, fitted):
  target = tmp_path / "model"
  target.mkdir()  # an empty folder may be filled
  fitted.save(target)
  with pytest.raises(FileExistsError, match=r"holds a saved classifier.*overwrite=True"):
    fitted.save(target)
  inode = os.stat(target).st_ino
  fitted.save(target, overwrite=True)
  assert os.stat(target).st_ino != inode
  assert [path.name for path in tmp_path.iterdir()] == ["model"]
  (target / "notes.txt").write_text("mine")
  with pytest.raises(FileExistsError, match="no saved classifier, which is never replaced"):
    fitted.save(target, overwrite=True)
  assert (target / "notes.txt").read_text() == "mine"


def test_a_file_system_that_cannot_exchange_folders(tmp_path, fitted, monkeypatch):
  fitted.save(tmp_path / "model")
  monkeypatch.setattr("ctypes.CDLL", lambda name: None)
  (tmp_path / "model" / "classifier.json").write_text(
    (tmp_path / "model" / "classifier.json").read_text().replace('"seed": 0', '"seed": 8')
  )
  fitted.save(tmp_path / "model", overwrite=True)
  assert '"seed": 8' not in (tmp_path / "model" / "classifier.json").read_text()
  assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_does_not_fit_is_refused(tmp_path, fitted):
  fitted.save(tmp_path / "model")

  def changed(**fields):
    shutil.copytree(tmp_path / "model", tmp_path / "other", dirs_exist_ok=True)
    about = tmp_path / "other" / "classifier.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | fields))
    return tmp_path / "other"

  with pytest.raises(ValueError, match="was fitted on another base model"):
    FewShotClassifier.load(changed(base_fingerprint="0" * 64))
  with pytest.raises(ValueError, match="is of format 9 and this version reads 1"):
    FewShotClassifier.load(changed(format=9))
  with pytest.raises(ValueError, match="does not fit classifier.json"):
    FewShotClassifier.load(changed(format=1, base_fingerprint=None, classes=["one"]))
  about = tmp_path / "other" / "classifier.json"
  facts = json.loads(about.read_text())
  about.write_text(json.dumps({name: facts[name] for name in facts if name != "counts"}))
  with pytest.raises(ValueError, match=r"is damaged \(no counts\)"):
    FewShotClassifier.load(tmp_path / "other")
  with pytest.raises(FileNotFoundError, match="no saved classifier"):
    FewShotClassifier.load(tmp_path)


def image(value=0):
  return np.full((4, 4, 3), value, np.uint8)


@pytest.mark.parametrize(
  ("X", "y", "settings", "message"),
  [
    ([image()], None, {}, "images without labels"),
    ([image(), image()], ["a", "a"], {}, r"images: 1 class \(a\); 2 to 1000 are needed"),
    ([], [], {}, "labels of type float64"),
    ([image(), image()], ["a"], {}, "for 2 images"),
    ([image(), image()], [0.5, 1.5], {}, "labels of type float64"),
    ([image(), image() / 2], ["a", "b"], {}, r"image 1 is float64 \[4, 4, 3\]"),
    ([image(), image()], ["a", "b"], {"method": "svm"}, "method='svm': choose one of zero_shot"),
    ([image(), image()], ["a", "b"], {"class_names": {"c": "x"}}, "has c, which is no class"),
    ([image(), image()], ["a", "b"], {"config": {"data.shot": 1}}, "no such field"),
    ([image(), image()], ["a", "b"], {"steps": 2}, "at least 5 steps"),
    (["nowhere.png", image()], ["a", "b"], {}, "nowhere.png"),
  ],
)
def test_mistakes_are_one_line(X, y, settings, message):
  with pytest.raises(ValueError, match=message) as error:
    classifier(**settings).fit(X, y)
  assert "\n" not in str(error.value)


def test_labels_that_the_classifier_does_not_have(fitted):
  with pytest.raises(ValueError, match="has the classes wren, which this classifier does not"):
    fitted.score([image()], ["wren"])
