"""Every source of the library as a domain of heads, up to one table with fine-tuned models."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from configs import copa
from mdtrap_jax import config as settings
from mdtrap_jax.data.domains import domain_name, open_domain
from mdtrap_jax.data.sampler import sample_episode
from mdtrap_jax.experiments import heads
from mdtrap_jax.methods.extractors import Backbone
from mdtrap_jax.models import random_weights
from mdtrap_jax.models.resnet import ResNet18
from mdtrap_jax.report import comparison
from mdtrap_jax.run import identity
from mdtrap_jax.run.lines import read_episodes, read_object
from tests import decoys
from tests.data.test_meta_dataset import write_records
from tests.episodes import run_heads


def make_config(**fields):
  config = copa.get_config()
  config.seed, config.seeds, config.episodes, config.head.steps = 0, 1, 2, 2
  config.update_from_flattened_dict(
    {
      "data.ways": 2,
      "data.shots": 1,
      "data.queries": 2,
      "data.threads": 1,
      "model.batch_size": 16,
    }
    | fields
  )
  return config


@pytest.fixture
def small_resnet(monkeypatch):
  model = ResNet18(image_size=16, widths=(4, 4, 4, 8))
  backbone = Backbone(model, random_weights(model, jax.random.key(0)))
  monkeypatch.setattr(heads, "load_backbone", lambda config, seed: backbone)
  return {"model.random_weights": True}


def write_folder(root):
  for label in ("a", "b"):
    (root / label).mkdir(parents=True)
    for copy in range(4):
      shade = np.full((20, 18, 3), 60 * copy + 20 * (label == "b"), np.uint8)
      Image.fromarray(shade).save(root / label / f"{copy}.png")
  return root


def test_replaced_weights_are_told(tmp_path):
  weights = tmp_path / "model_best.pth.tar"
  folder = write_folder(tmp_path / "photos")
  config = make_config(domains=(f"mine={folder}",), **{"model.checkpoint": str(weights)})
  sources = []
  for content in (b"some", b"others"):
    weights.write_bytes(content)
    sources.append(heads.experiment(settings.resolve(config))[0].sources[""])
  assert sources[0]["domains"] == sources[1]["domains"]
  (change,) = identity.source_changes(sources[1], sources[0])
  assert change.startswith("the weights were replaced")


def test_domains_whose_figures_would_be_one_file_are_refused(tmp_path):
  for entries in (("world/radar", f"world-radar={tmp_path}"), (f"a={tmp_path}", f"A={tmp_path}")):
    with pytest.raises(ValueError, match="each once"):
      heads.check(make_config(domains=entries, **{"model.random_weights": True}))


def test_names_of_entries():
  assert [
    domain_name(entry) for entry in ("isic", "mine=/a=b", "world/satellite", "meta/mnist")
  ] == ["isic", "mine", "world/satellite", "mnist"]


def test_a_path_for_a_name_is_refused_and_costs_nothing(tmp_path):
  photos = decoys.plant(tmp_path / "photos")
  before = decoys.state(tmp_path)
  config = make_config(**{"data.cache_dir": str(tmp_path / "cache"), "method": "ncc"})
  config.model.random_weights = True
  for entry in (f"{photos}={photos}", f"../photos={photos}", f"={photos}", f"..={photos}", "."):
    config.domains = (entry,)
    for start in (lambda: run_heads(config, tmp_path / "run"), lambda: open_domain(config, entry)):  # noqa: B023
      with pytest.raises(ValueError, match=r"config\.domains.*the name .* plain name"):
        start()
  for entry in (f"meta/x={photos}", f"world/x={photos}"):
    with pytest.raises(ValueError, match="plain name"):
      open_domain(config, entry)
  assert decoys.state(tmp_path) == before


def test_entries_open_their_source(tmp_path):
  config = make_config(
    **{
      "data.severity": 0.5,
      "data.images_per_class": 7,
      "data.records": str(write_records(tmp_path / "records")),
    }
  )
  world = open_domain(config, "world/radiograph")
  assert (world.name, len(world.labels) // len(world.class_names)) == ("radiograph-0.5", 7)
  assert open_domain(config, "world/source").name == "source"
  assert len(open_domain(config, "digits").labels) == 1797
  assert open_domain(config, "meta/birds").class_names == ("bird 3", "bird 4")
  config.data.classes = ("bird 4",)
  subset = open_domain(config, "meta/birds")
  assert (subset.class_names, subset.align_corners) == (("bird 4",), True)
  config.data.classes = ()
  folder = f"x={write_folder(tmp_path / 'x')}"
  assert open_domain(config, folder).class_names == ("a", "b")
  config.data.class_names, config.domains = ("red circle", "blue star"), (folder,)
  config.model.name = "miniature"
  heads.check(config)
  assert open_domain(config, folder).class_names == ("red circle", "blue star")
  for domains in ((folder, f"y{folder}"), ("digits",)):
    config.domains = domains
    with pytest.raises(ValueError, match="give one NAME=FOLDER alone, or no class names"):
      heads.check(config)
  for entry, message in (
    ("world", "name a look"),
    ("world/moon", "moon"),
    ("isci", "Did you mean 'isic'"),
    ("meta/fish", "data.records="),
  ):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
      open_domain(config, entry)


def test_the_miniature_on_the_world_pairs_with_a_fine_tuned_model(tmp_path):
  config = make_config(
    **{"model.name": "miniature", "domains": ("world/satellite",), "data.images_per_class": 3}
  )
  summary = run_heads(config, tmp_path / "copa")
  assert [row["domain"] for row in summary["domains"]] == ["world/satellite"]
  # What a run of configs/default.py on the same images writes.
  source = open_domain(config, "world/satellite")
  lines = []
  for number in range(2):
    drawn = sample_episode(source.labels, seed=0, episode=number, ways=2, shots=1, queries=2)
    lines.append(
      {
        "episode": number,
        "status": "ok",
        "accuracy": 0.25,
        "zero_shot_accuracy": 0.5,
        "class_names": [source.class_names[c] for c in drawn.classes],
        "support": drawn.support.tolist(),
        "query": drawn.query.tolist(),
      }
    )
  (tmp_path / "svl_ra").mkdir()
  domain = read_object(tmp_path / "copa" / "config.json")["source"]["domains"]["world/satellite"]
  about = {"seed": 0, "source": {"weights": None, "domains": {"world": domain}}}
  (tmp_path / "svl_ra" / "config.json").write_text(json.dumps(about))
  (tmp_path / "svl_ra" / "episodes.jsonl").write_text(
    "".join(json.dumps(line) + "\n" for line in lines)
  )
  rows = comparison.compare([tmp_path / "svl_ra", tmp_path / "copa"])
  assert rows[1].difference.episodes == 2
  assert rows[1].difference.mean == pytest.approx(rows[1].accuracy.mean - 0.25)


def test_several_kinds_of_domains_end_in_one_table(small_resnet, tmp_path):
  config = make_config(
    **small_resnet,
    **{
      "method": "ncc",
      "domains": ("meta/birds", f"mine={write_folder(tmp_path / 'mine')}"),
      "data.records": str(write_records(tmp_path / "records")),
      "data.cache_dir": str(tmp_path / "cache"),
    },
  )
  first = run_heads(config, tmp_path / "first")
  assert [(row["domain"], row["tasks"], row["failed"]) for row in first["domains"]] == [
    ("birds", 2, 0),
    ("mine", 2, 0),
  ]
  cached = sorted((tmp_path / "cache").iterdir())
  assert [path.name.split("_")[:2] for path in cached] == [
    ["resnet18-pooled", "birds"],
    ["resnet18-pooled", "mine"],
  ]
  # The records' images came to the network as it was trained; a folder's are resized as asked.
  made_by = [json.loads((path / "identity.json").read_text())["resize"] for path in cached]
  assert made_by == ["align_corners bilinear", "squash bilinear"]


@pytest.mark.parametrize("method", ["copa_transformer", "url_tsa"])
def test_methods_on_maps_and_images(method, small_resnet, tmp_path):
  config = make_config(
    **small_resnet,
    **{"method": method, "episodes": 1, "domains": (f"mine={write_folder(tmp_path / 'mine')}",)},
  )
  summary = run_heads(config, tmp_path / "run")
  assert (summary["episodes"], summary["failed"]) == (1, 0)


def test_an_unreadable_image_stops_the_run_or_is_left_out(small_resnet, tmp_path):
  folder = write_folder(tmp_path / "mine")
  (folder / "b" / "2.png").write_bytes(b"damaged")
  config = make_config(
    **small_resnet,
    **{
      "method": "ncc",
      "domains": (f"mine={folder}",),
      "data.queries": 1,
      "data.cache_dir": str(tmp_path / "cache"),
    },
  )
  with pytest.raises(ValueError, match=r"2\.png.*unreadable=skip"):
    run_heads(config, tmp_path / "stops")
  config.data.unreadable = "skip"
  run_heads(config, tmp_path / "skips")
  drawn = {
    i
    for line in read_episodes(tmp_path / "skips")
    for rows in (*line["support"], *line["query"])
    for i in rows
  }
  assert 6 not in drawn
  config.data.unreadable = "error"  # a cache that left images out does not hide them
  with pytest.raises(ValueError, match=r"2\.png"):
    run_heads(config, tmp_path / "stops")
