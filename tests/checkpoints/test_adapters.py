"""Adapters in peft's format come back; `classifier/test_export.py` computes with them by peft."""

import json

import jax
import numpy as np
import pytest

from mdtrap_jax.checkpoints import adapters
from mdtrap_jax.models import build
from mdtrap_jax.models.lora import LoraConfig, LoraFactors

CONFIGS = {
  "rank-stabilized": LoraConfig(rank=3, alpha=5.0, encoder="both", projections=("q", "v")),
  "linear, with out": LoraConfig(
    rank=2, encoder="both", projections=("q", "k", "v", "out"), position=(1,), scale="linear"
  ),
}


def random_factors(model, lora):
  rng = np.random.default_rng(0)
  fresh = model.init_lora(jax.random.key(0), lora)
  draw = lambda leaf: (0.1 * rng.standard_normal(leaf.shape)).astype(np.float32)
  return {name: LoraFactors(draw(f.a), draw(f.b)) for name, f in fresh.items()}


@pytest.mark.parametrize("lora", CONFIGS.values(), ids=CONFIGS)
def test_factors_come_back(tmp_path, lora):
  model = build("clip-tiny")
  factors = random_factors(model, lora)
  for name, content in adapters.to_peft(model, lora, factors, "base").items():
    (tmp_path / name).write_bytes(content)
  again = adapters.from_peft(tmp_path, model, lora)
  jax.tree.map(np.testing.assert_array_equal, factors, again)
  with pytest.raises(ValueError, match=r"r=\d, expected 9"):
    adapters.from_peft(tmp_path, model, LoraConfig(rank=9))
  config = json.loads((tmp_path / adapters.CONFIG).read_text())
  fields = {"rank": lora.rank, "alpha": lora.alpha, "scale": lora.scale}
  with pytest.raises(ValueError, match="adapts what this model does not have"):
    adapters.from_peft(tmp_path, model, LoraConfig(**fields, projections=("v",), position=(1,)))
  assert config["peft_type"] == "LORA"
