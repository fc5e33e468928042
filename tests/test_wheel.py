"""The wheel runs what the checkout runs, from a folder that has nothing to do with it."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

from tests.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Modules whose packages have another name.
PACKAGES = {
  "PIL": "pillow",
  "absl": "absl_py",
  "orbax": "orbax_checkpoint",
  "sklearn": "scikit_learn",
}


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
  own = tmp_path / "own.py"  # a config of the user's, on top of the wheel's
  own.write_text(
    "from configs import demo\n\n\ndef get_config():\n  config = demo.get_config()\n"
    "  config.episodes, config.adapt.steps = 1, 5\n  config.data.images_per_class = 16\n"
    "  return config\n"
  )
  done = run(unpacked, tmp_path, "run", "--config=own.py", "--workdir=run")
  assert done.returncode == 0, done.stderr
  assert re.search(r"svl_ra +1 +0 ", done.stdout)
  assert (tmp_path / "run" / "svl_ra" / "config.json").exists()
  where = subprocess.run(
    [sys.executable, "-c", "import mdtrap_jax, mdtrap_jax.configs.chestx as c; "
     "print(mdtrap_jax.__file__, c.__file__, c.get_config().data.name)"],
    cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(unpacked)},
    capture_output=True, text=True, check=True,
  ).stdout  # fmt: skip
  assert where.count(str(unpacked)) == 2
  assert where.split()[-1] == "chestx"


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
    assert package in declared or (module == "sklearn" and package in extras), (module, path)
