"""What the README promises: its commands exist, and its new term runs as printed."""

import re

import numpy as np

from mdtrap_jax import config as settings
from mdtrap_jax.objectives.terms import TERMS
from mdtrap_jax.run.lines import read_episodes
from tests.episodes import run_finetune, small_config
from tests.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_new_term_runs_as_the_readme_prints_it(tmp_path):
  (code,) = re.findall(r"```python\n(# configs/spread.py.*?)```", README, re.DOTALL)
  term = code[code.index("def add_spread") : code.index("def get_config")]
  assert len(term.strip().splitlines()) <= 15
  known = dict(TERMS)
  try:
    exec(compile(code, "configs/spread.py", "exec"), space := {})
    config = space["get_config"]()
    config.update_from_flattened_dict(
      dict(
        settings.flatten(
          small_config(
            data__name="world", data__domain="radiograph", data__images_per_class=6, episodes=1
          )
        )
      )
    )
    run_finetune(config, tmp_path)
    (line,) = read_episodes(tmp_path)
    assert np.isfinite(line["losses"]["spread"])
  finally:
    TERMS.clear()
    TERMS.update(known)


def test_every_config_and_module_the_readme_names_exists():
  for name in set(re.findall(r"configs/\w+\.py", README)) - {"configs/spread.py"}:
    assert (ROOT / name).exists(), name
  for name in set(re.findall(r"python -m ([\w.]+)", README)) - {"pip", "pytest", "venv"}:
    path = ROOT / name.replace(".", "/")
    assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), name
