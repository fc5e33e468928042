"""Recordings of the reference implementations, replayed in float64."""

from pathlib import Path

import jax
import pytest

from tests.replay.heads import FEATURES, replay

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", ["copa_linear", "copa_linear_mnist", "copa_transformer",
                                  "url_pa"])
def test_recordings_replay(name):
  with jax.enable_x64(True):
    checks = replay(GOLDEN / f"{name}.npz")
  assert checks
  assert [str(check) for check in checks if not check.ok] == []


@pytest.mark.parametrize("domain", ["isic", "cropdisease"])
def test_real_features_replay(domain):
  if not (GOLDEN / FEATURES).is_file():
    pytest.skip(f"tests/golden/{FEATURES}, real features of 2 MB, is not part of the repository")
  with jax.enable_x64(True):
    checks = replay(GOLDEN / f"copa_real_{domain}_5shot.npz")
  assert [str(check) for check in checks if not check.ok] == []


def test_a_wrong_number_fails(tmp_path):
  import numpy as np
  with np.load(GOLDEN / "url_pa.npz") as file:
    arrays = dict(file)
  arrays["head_final"] = arrays["head_final"] + 1e-6
  np.savez(tmp_path / "off.npz", **arrays)
  with jax.enable_x64(True):
    failed = [check.name for check in replay(tmp_path / "off.npz") if not check.ok]
  assert failed == ["head_final"]
