"""`mdtrap fit`, `predict` and `evaluate` as typed: files, tables, and one line for a mistake."""

import csv
import html
import json
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

from mdtrap_jax.report import classification
from tests.classifier.test_estimator import folder  # noqa: F401 (a fixture)
from tests.test_command_line import say

FIT = ("--model=miniature", "--method=ncc")


@pytest.fixture(scope="module")
def model(folder, tmp_path_factory):  # noqa: F811
  """A model of nearest centroids, made by the command with two folds."""
  from mdtrap_jax.__main__ import main

  out = tmp_path_factory.mktemp("fit") / "model"
  assert main(["fit", str(folder), f"--out={out}", *FIT, "--folds=2"]) == 0
  return out


def table(path):
  with open(path, newline="") as file:
    return list(csv.DictReader(file))


def test_fit_says_what_it_understood(folder, tmp_path, capsys):  # noqa: F811
  (tmp_path / "data").mkdir()
  for name in ("a", "b"):
    (tmp_path / "data" / name).mkdir()
    for i, file in enumerate(sorted((folder / "crow").glob("*.png"))[:2]):
      shade = 255 if name == "b" and i else None  # so that a/0.png is b/0.png
      copy = tmp_path / "data" / name / f"{i}.png"
      Image.new("RGB", (4, 4), (shade,) * 3).save(copy) if shade else copy.write_bytes(
        file.read_bytes()
      )
  names = tmp_path / "names.csv"
  names.write_text("folder,name\nb,red star\na,green leaf\n")  # by key: the order is free
  out = tmp_path / "model"
  arguments = ("fit", str(tmp_path / "data"), f"--out={out}", "--model=miniature")
  code, said, _ = say(capsys, *arguments, "--method=zero_shot", f"--names={names}")
  assert code == 0
  assert "      2  a → green leaf → 'a photo of a green leaf.'" in said
  assert "WARNING: 1 images are in several classes, so a label is wrong: a/0.png = b/0.png" in said
  assert "miniature on CPU" in said
  assert "zero_shot, 0 steps, seed 0" in said
  about = json.loads((out / "classifier.json").read_text())
  assert about["class_names"] == ["green leaf", "red star"]
  assert about["templates"] == ["a photo of a {}."]
  code, _, err = say(capsys, *arguments)
  assert (code, err.count("\n")) == (1, 1)
  assert "--force" in err
  exported = tmp_path / "hf"
  assert say(capsys, "export", str(out), "--format=hf", f"--out={exported}")[0] == 0
  check_export(exported, sorted(map(str, folder.glob("gull/*.png"))))
  code, _, err = say(capsys, "export", str(out), "--format=peft", f"--out={tmp_path / 'peft'}")
  assert (code, (tmp_path / "peft").exists()) == (1, False)
  assert "there is no adapter to export" in err


def check_export(exported, files):
  """The library's own processor and model give what we give, on images of another shape."""
  torch = pytest.importorskip("torch", reason="torch, the twin's library, is not installed")
  import transformers

  from mdtrap_jax import checkpoints
  from mdtrap_jax.data.labeled import Preprocessing, decode_all
  from mdtrap_jax.data.views import normalize

  processor = transformers.AutoImageProcessor.from_pretrained(exported, backend="pil")
  pixels = processor([Image.open(file) for file in files], return_tensors="pt")
  with torch.no_grad():
    twin = transformers.CLIPModel.from_pretrained(exported).eval()
    theirs = twin.get_image_features(**pixels).pooler_output.numpy()
  model, params = checkpoints.load(exported)
  images = decode_all(files, Preprocessing(model.image.image_size, "squash", "bilinear"))
  ours = model.encode_image(params, normalize(images, model.image_mean, model.image_std))
  np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_folds_are_kept_with_the_model(model):
  rows = table(model / "crossval.csv")
  assert {row["fold"] for row in rows} == {"0", "1"}
  assert len(rows) == 18
  about = json.loads((model / "classifier.json").read_text())
  assert about["temperature"] != 1


def test_a_report_lies_beside_the_model(folder, model, tmp_path, capsys):  # noqa: F811
  names = {path.name for path in model.iterdir()}
  reported = classification.FILES - {"steps.png", "steps.svg"}  # ncc has none
  assert names == reported | {"classifier.json", "classifier.safetensors", "crossval.csv"}
  page = (model / "report.html").read_text()
  assert html.escape(shlex.join(["mdtrap", "fit", str(folder)])) in page
  copy = shutil.copytree(model, tmp_path / "copy")
  arguments = ("fit", str(folder), f"--out={copy}", *FIT)
  assert say(capsys, *arguments)[0] == 1  # a model with its report is not overwritten unasked
  assert say(capsys, *arguments, "--force")[0] == 0
  assert {path.name for path in copy.iterdir()} == {"classifier.json", "classifier.safetensors"}


def test_predictions(folder, model, tmp_path, capsys):  # noqa: F811
  broken = tmp_path / "broken.png"
  broken.write_bytes(b"nothing")
  listed = tmp_path / "list.txt"
  listed.write_text(f"broken.png\n{folder}/crow/0.png\n")
  out = tmp_path / "p.csv"
  sources = (str(listed), str(folder / "gull"), str(folder / "blue_jay" / "*.png"))
  code, said, err = say(capsys, "predict", str(model), *sources, f"--csv={out}")
  assert code == 0
  assert "13 images predicted, 1 unreadable" in said
  assert str(broken) in err
  rows = table(out)
  assert list(rows[0]) == [
    "file", "prediction", "probability", "p:blue_jay", "p:crow", "p:gull"
  ]  # fmt: skip
  assert rows[0]["file"] == f"{folder}/crow/0.png"
  for row in rows:
    chances = {name[2:]: float(value) for name, value in row.items() if name.startswith("p:")}
    assert max(chances, key=chances.get) == row["prediction"]
    assert sum(chances.values()) == pytest.approx(1, abs=1e-5)
    assert float(row["probability"]) == max(chances.values())
  code, _, err = say(capsys, "predict", str(model), *sources, f"--csv={out}")
  assert (code, err.count("\n")) == (1, 1)
  assert table(out) == rows
  arguments = ("predict", str(model), *sources, f"--csv={out}", "--force")
  assert say(capsys, *arguments, "--strict")[0] == 1
  assert table(out) == rows
  assert say(capsys, *arguments, "--top=2")[0] == 0
  best = table(out)
  assert list(best[0])[3:] == ["class 1", "probability 1", "class 2", "probability 2"]
  assert [row["class 1"] for row in best] == [row["prediction"] for row in rows]
  assert say(capsys, *arguments, "--json")[0] == 0
  lines = [json.loads(line) for line in out.read_text().splitlines()]
  assert [line["prediction"] for line in lines] == [row["prediction"] for row in rows]
  assert lines[0]["p"].keys() == {"blue_jay", "crow", "gull"}
  assert [path.name for path in tmp_path.glob(".*")] == []


def test_evaluation(folder, model, tmp_path, capsys):  # noqa: F811
  out = tmp_path / "evaluation"
  code, said, _ = say(capsys, "evaluate", str(model), str(folder), f"--out={out}")
  assert code == 0
  facts = json.loads((out / "evaluation.json").read_text())
  rows = table(out / "predictions.csv")
  hits = np.mean([row["label"] == row["prediction"] for row in rows])
  assert facts["accuracy"]["value"] == pytest.approx(hits)
  assert np.sum(facts["confusion"]) == 18
  assert {path.name for path in out.iterdir()} == {
    "evaluation.json", "per_class.csv", "predictions.csv", "confusion.csv", "confusion.png",
    "confusion.svg", "reliability.png", "reliability.svg", "report.html",
  }  # fmt: skip
  assert "mdtrap evaluate" in (out / "report.html").read_text()
  assert "zero_shot is left out: Class names that are the same" in said  # unknown to the miniature
  assert "of 18 images" in said
  assert say(capsys, "evaluate", str(model), str(folder), f"--out={out}")[0] == 1
  for part, count in (
    ("train", 3),
    ("test", 2),
  ):  # of data with a split of their own, the test part
    for path in folder.glob(f"*/[0-{count - 1}].png"):
      (tmp_path / "own" / part / path.parent.name).mkdir(parents=True, exist_ok=True)
      (tmp_path / "own" / part / path.parent.name / path.name).write_bytes(path.read_bytes())
  code, said, _ = say(
    capsys, "evaluate", str(model), str(tmp_path / "own"), f"--out={tmp_path / 'e'}"
  )
  assert (code, "of 6 images" in said) == (0, True)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"file,label\nno.png,a\n", "lists 1 files that are not there: no.png"),
    (b"file,label\n{0},a\n{0},a\n", "more than once"),
    (b"name,label\n{0},a\n", "'file' is missing"),
    (b"file,label\n{0},\n", "line 2: 'label' is empty"),
    (b"file,label\n", "no rows"),
    (b"file,label\n{0},\xe9\n", "is not UTF-8"),
    (b"file,label\n{0},wren\n", "has the classes wren"),
  ],
)
def test_a_csv_that_cannot_be_right(folder, model, tmp_path, capsys, content, message):  # noqa: F811
  path = tmp_path / "labels.csv"
  path.write_bytes(content.replace(b"{0}", str(folder / "crow" / "0.png").encode()))
  code, _, err = say(capsys, "evaluate", str(model), str(path), f"--out={tmp_path / 'out'}")
  assert (code, err.count("\n")) == (1, 1)
  assert message in err
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("predict", "{model}", "nowhere/*.png", "--csv={tmp}/p.csv"), "no such file, folder or"),
    (("predict", "{model}", "{tmp}", "--csv={tmp}/p.csv"), "no images there"),
    (("predict", "{tmp}", "{folder}", "--csv={tmp}/p.csv"), "holds no saved classifier"),
    (("predict", "{model}", "{folder}", "--csv={tmp}/p.csv", "--top=9"), "--top=9: give 1 to 3"),
    (("predict", "{model}", "{folder}", "--csv={tmp}/no/p.csv"), "no such folder"),
    (("fit", "{folder}", "--out={tmp}/m", "--method=svm"), "choose one of zero_shot, ncc"),
    (("fit", "{folder}", "--out={folder}", "--force"), "never replaced"),
    (("fit", "{folder}/crow", "--out={tmp}/m"), "holds no images in subfolders"),
    (("fit", "{tmp}/none", "--out={tmp}/m"), "no such folder"),
  ],
)
def test_mistakes_are_one_line(folder, model, tmp_path, capsys, arguments, message):  # noqa: F811
  places = {"model": model, "folder": folder, "tmp": tmp_path}
  code, _, err = say(capsys, *(argument.format(**places) for argument in arguments))
  assert (code, err.count("\n")) == (1, 1)
  assert message in err
  assert not (tmp_path / "p.csv").exists()
