"""The wheel runs what the checkout runs, from a folder that has nothing to do with it."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OPTIONAL = (
  "aiohttp",
  "sentencepiece",
  "sklearn",
  "umap",
)  # asked for by name where they are missing
# Modules whose packages have another name.
PACKAGES = {
  "PIL": "pillow",
  "absl": "absl_py",
  "orbax": "orbax_checkpoint",
  "sklearn": "scikit_learn",
  "umap": "umap_learn",
}

# A config of the user's, on top of the wheel's.
OWN = """
import atexit
import sys

import mdtrap_jax
import mdtrap_jax.configs.folder as packaged
from configs import default

print(mdtrap_jax.__file__, packaged.__file__, sep="\\n")
atexit.register(lambda: print("torch" in sys.modules))


def get_config():
  config = default.get_config("vlm")
  config.data.path, config.data.ways, config.data.queries = "birds", 2, 1
  config.model.name, config.model.random_weights = "clip-tiny", True
  config.episodes, config.adapt.steps = 1, 5
  return config
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
  """The wheel's files, as in an environment of its own."""
  source, built, folder = (tmp_path_factory.mktemp(name) for name in ("source", "built", "wheel"))
  for name in ("mdtrap_jax", "configs"):  # a copy: building writes beside the sources
    shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
  for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, source)
  pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
  subprocess.run([*pip, "--no-build-isolation", "-w", built, source], check=True)
  (wheel,) = built.glob("*.whl")
  zipfile.ZipFile(wheel).extractall(folder)
  return folder


def run(unpacked, folder, *arguments):
  return subprocess.run(
    [sys.executable, "-m", "mdtrap_jax", *arguments],
    cwd=folder, env=os.environ | {"PYTHONPATH": str(unpacked)},
    capture_output=True, text=True, check=False,
  )  # fmt: skip


def test_a_run_from_the_wheel(unpacked, tmp_path):
  (tmp_path / "own.py").write_text(OWN)
  rng = np.random.default_rng(0)
  for name in ("crow", "gull"):
    (tmp_path / "birds" / name).mkdir(parents=True)
    for i in range(2):
      pixels = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
      Image.fromarray(pixels).save(tmp_path / "birds" / name / f"{i}.png")
  done = run(unpacked, tmp_path, "run", "--config=own.py", "--workdir=run")
  assert done.returncode == 0, done.stderr
  assert "adapted accuracy" in done.stdout
  config = json.loads((tmp_path / "run" / "config.json").read_text())
  assert config["data"]["path"] == "birds"
  assert done.stdout.splitlines()[-1] == "False"  # a run does not wait for torch
  packages = done.stdout.splitlines()[:2]
  assert packages[0].startswith(str(unpacked / "mdtrap_jax" / "__init__.py"))
  assert packages[1].startswith(str(unpacked / "mdtrap_jax" / "configs" / "folder.py"))
  assert (unpacked / "mdtrap_jax" / "weights" / "miniature" / "model.safetensors").exists()
  assert (unpacked / "mdtrap_jax" / "report" / "page.html").exists()


def test_the_wheel_documents_itself(unpacked, tmp_path):
  done = run(unpacked, tmp_path, "run", "--config=demo", "--help-config")
  assert (done.returncode, done.stderr) == (0, "")
  assert "--config.data.domain=satellite" in done.stdout
  (entry,) = unpacked.glob("*.dist-info/entry_points.txt")
  assert "mdtrap = mdtrap_jax.__main__:main" in entry.read_text()


def test_what_is_imported_is_declared():
  normal = lambda name: re.match(r"[\w-]+", name)[0].lower().replace("-", "_")
  declared = set(map(normal, PROJECT["dependencies"]))
  extras = set(map(normal, sum(PROJECT["optional-dependencies"].values(), [])))
  imported = {}
  for path in ROOT.glob("mdtrap_jax/**/*.py"):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      names = [alias.name for alias in getattr(node, "names", []) if isinstance(node, ast.Import)]
      if isinstance(node, ast.ImportFrom) and not node.level:
        names = [node.module]
      imported |= {name.partition(".")[0]: path for name in names}
  for module, path in imported.items():
    if module in sys.stdlib_module_names or module == "mdtrap_jax":
      continue
    package = PACKAGES.get(module, module).lower()
    assert package in declared or (module in OPTIONAL and package in extras), (module, path)
