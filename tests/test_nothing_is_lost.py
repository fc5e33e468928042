"""Whatever is named, replaced and resumed: nobody's files change, and no two inputs are mixed."""

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdtrap_jax import experiments
from mdtrap_jax.data import images
from mdtrap_jax.data.sources import make_source
from mdtrap_jax.experiments import finetune
from mdtrap_jax.run import loop
from mdtrap_jax.run.lines import read_episodes
from tests import decoys
from tests.episodes import small_config

CLASSES, IMAGES = ("blue", "red", "café"), 3
NAMES = ("vlm", "new", "snapshots", "Events", "process-1", "..", "../theirs", "a/b", "", ".", "é")
WORKDIRS = (
  "run", "run", "run/vlm", "run/snapshots", "run/process-1", "theirs", "theirs/vlm",
  "theirs/empty", "theirs/snapshots", "link", "link/events", "data", "data/blue", "theirs/link",
)  # fmt: skip
FIELDS = {
  "seed": (0, 1),
  "data.background": ((255, 255, 255), (0, 0, 0)),
  "data.window": ((), (0.0, 100.0)),
  "data.interpolation": ("bilinear", "bicubic"),
  "data.resize": ("squash", "crop"),
  "data.classes": ((), ("blue", "café")),
  "optimizer.learning_rate": (1e-3, 2e-3),
}
CHANGES = ("bytes", "name", "moved", "classes", "added", "weights")
PPM = b"P6 2 2 255\n"


def write_data(root):
  for label, name in enumerate(CLASSES):
    (root / "data" / name).mkdir(parents=True)
    for number in range(IMAGES):
      pixels = bytes([50 * label, 70 * number, 9, 200, 0, 80] * 2)
      (root / "data" / name / f"{number}.ppm").write_bytes(PPM + pixels)
  (root / "weights").write_bytes(b"some")


def make_config(root, fields, episodes=1):
  config = small_config(episodes=episodes, data__name="folder", data__ways=2, data__queries=1)
  config.model.random_weights, config.model.name = False, str(root / "weights")
  config.data.path, config.data.cache_dir = str(root / "data"), str(root / "cache")
  config.update_from_flattened_dict(fields)
  return config


def change(root, kind):
  """One thing that a person does to their data between two runs."""
  blue, red = root / "data" / "blue", root / "data" / "red"
  images = sorted(blue.iterdir())
  if kind == "bytes":
    images[0].write_bytes(images[0].read_bytes()[:-1] + b"\x77")
  elif kind == "name":
    images[-1].rename(blue / f"renamed-{len(images)}.ppm")
  elif kind == "moved" and len(images) > IMAGES - 1:
    images[0].rename(red / f"from-blue-{images[0].name}")
  elif kind == "classes":
    blue.rename(root / "aside")
    red.rename(blue)
    (root / "aside").rename(red)
  elif kind == "added":
    (red / f"new-{len(list(red.iterdir()))}.ppm").write_bytes(PPM + bytes(12))
  elif kind == "weights":
    (root / "weights").write_bytes((root / "weights").read_bytes() + b"!")


class Pretended:
  """Adapts nothing: each line holds what the run's numbers would have been made of."""

  def __init__(self, monkeypatch):
    self.truth = None
    monkeypatch.setattr(finetune.checkpoints, "fingerprint", lambda name: Path(name).read_text())
    monkeypatch.setattr(finetune, "_family", lambda model: "clip")
    monkeypatch.setattr(finetune, "make_group", self.make_group)
    monkeypatch.setattr(loop, "_Adapting", self.adapting)

  def make_group(self, name, config, runs, source, load, make_group=finetune.make_group):
    files = [(source.describe(i), label) for i, label in enumerate(source.labels.tolist())]
    pixels = [source.image(i).tolist() for i in range(len(source.labels))]
    free = ("variants", "episodes")
    fields = {field: value for field, value in config.to_dict().items() if field not in free}
    self.truth = json.dumps([files, pixels, fields, Path(config.model.name).read_text()])
    return make_group(name, config, runs, source, load)._replace(prepare=lambda: None)

  def adapting(self, group, ready, directories, kept, progress, pace):
    truth = self.truth

    class Adapting:
      def run(self, todo, placing, asked):
        for name in group.runs:
          lines = [
            {**task._asdict(), "status": "ok", "accuracy": 0.5, "accuracy_at": {}, "truth": truth}
            for task in todo
          ]
          directories[name].append(lines)
        leaves = [np.ones((len(todo), len(group.runs), 1))]
        numbers = tuple(task.episode for task in todo)
        kept[0].save(loop.Snapshot(group.name, numbers, 1, leaves, {}, group.runs))

    return Adapting()


@pytest.fixture(scope="module")
def pretended():
  with pytest.MonkeyPatch.context() as monkeypatch:
    yield Pretended(monkeypatch)


STEP = st.one_of(
  st.sampled_from(CHANGES),
  st.fixed_dictionaries(
    {
      "workdir": st.sampled_from(WORKDIRS),
      "variants": st.sets(st.sampled_from(NAMES), max_size=2),
      "fields": st.dictionaries(st.sampled_from(sorted(FIELDS)), st.just(1), max_size=1),
      "episodes": st.integers(1, 3),
    }
  ),
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(steps=st.lists(STEP, min_size=2, max_size=6))
def test_no_run_changes_a_decoy_or_mixes_inputs(pretended, steps):
  with tempfile.TemporaryDirectory() as folder:
    root = Path(folder)
    write_data(root)
    theirs = decoys.plant(root / "theirs")
    (root / "link").symlink_to(theirs)
    for step in steps:
      if isinstance(step, str):
        change(root, step)
        continue
      before = decoys.state(root)
      chosen = {field: FIELDS[field][1] for field in step["fields"]}
      config = make_config(root, chosen, step["episodes"])
      try:
        config.variants = {name: {} for name in step["variants"]}
        experiments.run(config, root / step["workdir"])
      except (ValueError, OSError):
        # Refused: what was there has not changed, and no episode was added.
        assert lines_in(before).items() <= lines_in(decoys.state(root)).items()
      after = decoys.state(root)
      for name, entry in before.items():
        if not name.startswith(("run", "theirs/empty")):  # what is empty may become a run's
          assert after[name] == entry, (step, name)
      for name in after.keys() - before.keys():
        assert name.startswith(("run", "theirs/empty/", "link/")), (step, name)
    for file in root.rglob("episodes.jsonl"):
      if "theirs" in file.parts and "empty" not in file.parts:
        continue
      lines = read_episodes(file.parent)
      assert len({line["truth"] for line in lines}) <= 1, file


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
  steps=st.lists(
    st.sampled_from(CHANGES) | st.dictionaries(st.sampled_from(sorted(FIELDS)), st.just(1)),
    min_size=2,
    max_size=5,
  )
)
def test_no_cache_gives_the_image_of_another(steps):
  model = SimpleNamespace(image=SimpleNamespace(image_size=3))
  known = {}
  with tempfile.TemporaryDirectory() as folder:
    root = Path(folder)
    write_data(root)
    for step in steps:
      if isinstance(step, str):
        change(root, step)
        continue
      data = make_config(root, {field: FIELDS[field][1] for field in step})
      source = make_source(data.data)
      cache = finetune._image_cache(data, source, model)
      shown = [source.image(i) for i in range(len(source.labels))]
      right = [images.resize(i, 3, data.data.resize, data.data.interpolation) for i in shown]
      for index, image in enumerate(right):
        found = cache.get(index)
        assert found is None or (found == image).all(), (index, step)
        cache.put(index, image)
      # Subsets of the classes share the whole source's indices, and so its identity.
      truth = [(source.describe(i), image.tolist()) for i, image in enumerate(shown)]
      assert known.setdefault(source.identity, truth) == truth


def lines_in(state):
  return {name: entry for name, entry in state.items() if name.endswith("episodes.jsonl")}
