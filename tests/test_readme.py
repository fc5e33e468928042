"""What README and docs promise: their commands, files and links exist, their new term runs."""

import importlib.util
import re
import shlex
import subprocess

import numpy as np
import pytest
import yaml

from mdtrap_jax import config as settings
from mdtrap_jax.__main__ import make_parser
from mdtrap_jax.config import loading
from mdtrap_jax.run.lines import read_episodes
from mdtrap_jax.sweep import cells
from tests.episodes import run_finetune, small_config
from tests.paths import ROOT

PAGES = {
  str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
  for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
PLACEHOLDERS = {"$method": "url", "$shots": "5", "=N ": "=2 ", "=I": "=1"}
MODULES = {"pip", "pytest", "venv"}  # that are not ours


def blocks(text: str, language: str) -> list[str]:
  return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
  """The words of every command in blocks of shell, from `main.py` or `mdtrap` on."""
  found = []
  for block in blocks(text, "bash"):
    for line in block.replace("\\\n", " ").splitlines():
      for name, value in PLACEHOLDERS.items():
        line = line.replace(name, value)
      for start, rest in re.findall(r"(main\.py|\bmdtrap) ([^;&]*)", line):
        if rest.count('"') % 2:  # the end of what a shell on another machine is given
          rest = rest.strip().removesuffix('"')
        words = shlex.split(rest, comments=True)
        found.append(words if start == "mdtrap" else ["run", *words])
  return found


ALL = [(page, words) for page, text in PAGES.items() for words in commands(text)]


@pytest.mark.parametrize(
  ("page", "words"), ALL, ids=[f"{page}: {' '.join(words)[:70]}" for page, words in ALL]
)
def test_a_command_is_one_that_the_parser_and_the_checker_take(page, words):
  fields = [word for word in words if word.startswith("--config.")]
  options = make_parser().parse_args([word for word in words if word not in fields])
  if "config" in options and options.config and options.config != "spread.py":
    pairs = [word.removeprefix("--config.").split("=", 1) for word in fields]
    if words[0] == "sweep":
      assert [cell.resolve() for cell in cells.load(options.config, pairs)]
    else:
      settings.resolve(loading.load(options.config, pairs))


@pytest.mark.parametrize("page", PAGES)
def test_shell_and_yaml_parse(page):
  for block in blocks(PAGES[page], "bash"):
    subprocess.run(["bash", "-n"], input=block, text=True, check=True)
  for block in blocks(PAGES[page], "yaml"):
    task = yaml.safe_load(block)  # a job of SkyPilot's
    assert set(task) <= {"name", "workdir", "resources", "file_mounts", "setup", "run"}
    for script in (task["setup"], task["run"]):
      subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_commands_were_found():
  assert len(ALL) > 15
  assert ["run", "--config=configs/demo.py", "--workdir=runs/demo"] in commands(PAGES["README.md"])
  assert any(any(word.startswith("--config.") for word in words) for _, words in ALL)


@pytest.mark.parametrize("page", PAGES)
def test_fields_in_a_sentence_exist(page):
  known = {
    field
    for name in ("default", "copa", "fsl", "fsl:ridge,folder", "study", "sweep_paper")
    for field in fields_of(name)
  }
  named = re.findall(r"(?:--config\.|`config\.)([a-z_0-9.]*[a-z_0-9])", PAGES[page])
  named += re.findall(r"`((?:data|adapt|model|lora|optimizer)\.[a-z_]+)`", PAGES[page])
  own = ("json", "objective.spread", "data.shot")  # a file; a term and a mistake of the pages'
  missing = {field for field in named if field not in known and field not in own}
  assert not {field for field in missing if not any(k.startswith(f"{field}.") for k in known)}


def fields_of(name: str) -> list[str]:
  return [field for field, _, _ in loading.fields(name)]


@pytest.mark.parametrize("page", PAGES)
def test_files_modules_and_links_exist(page):
  text, folder = PAGES[page], (ROOT / page).parent
  for name in set(re.findall(r"\b(?:configs|docs|colab|tests|benchmarks)/[\w/]+\.\w+", text)):
    assert (ROOT / name).exists(), name
  for name in set(re.findall(r"python -m ([\w.]+)", text)) - MODULES:
    assert importlib.util.find_spec(name), name
  for link in re.findall(r"\]\((?!https://)([^)\s]+)\)", text):
    name, _, anchor = link.partition("#")
    assert (folder / name).exists(), link
    if anchor:
      titles = re.findall(r"^#+ (.*)$", (folder / name).read_text(encoding="utf-8"), re.MULTILINE)
      slugs = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
      assert anchor in slugs, link


def test_the_readme_is_short_and_has_the_line_that_the_ci_runs():
  lines = PAGES["README.md"].splitlines()
  assert len(lines) <= 130
  (line,) = [line for line in lines if re.match("pip install .*pytest", line)]
  assert line == "pip install -e '.[test]' && python -m pytest -n auto"
  assert {f"docs/{name}" for name in re.findall(r"\(docs/([\w-]+\.md)\)", PAGES["README.md"])} == (
    PAGES.keys() - {"README.md"}
  )


def test_a_new_term_runs_as_printed(tmp_path):
  (code,) = [b for b in blocks(PAGES["docs/terms.md"], "python") if b.startswith("# spread.py")]
  term = code[code.index("def add_spread") : code.index("def get_config")]
  assert len(term.strip().splitlines()) <= 15
  (tmp_path / "spread.py").write_text(code, encoding="utf-8")
  config = loading.load(str(tmp_path / "spread.py"))
  small = small_config(
    data__name="world", data__domain="radiograph", data__images_per_class=6, episodes=1
  )
  config.update_from_flattened_dict(dict(settings.flatten(small)))
  run_finetune(config, tmp_path / "run")
  (line,) = read_episodes(tmp_path / "run")
  assert np.isfinite(line["losses"]["spread"])
