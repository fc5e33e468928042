"""Adapters in peft's format: what transformers computes with them is what we do."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdtrap_jax import checkpoints
from mdtrap_jax.checkpoints import adapters
from mdtrap_jax.models import build
from mdtrap_jax.models.lora import LoraConfig, LoraFactors
from tests.models.test_clip import assert_close, inputs, no_tokenizer, torch_clip
from tests.models.test_siglip import torch_siglip

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


def apply_as_peft_does(twin, files):
  """`W += scale · B A` in each module that the config's pattern matches, by peft's rules."""
  import torch
  from safetensors.torch import load

  config, arrays = json.loads(files[adapters.CONFIG]), load(files[adapters.WEIGHTS])
  rank = config["r"] ** (0.5 if config["use_rslora"] else 1)
  used = set()
  with torch.no_grad():
    for name, module in twin.named_modules():
      if re.fullmatch(config["target_modules"], name):
        a, b = (f"base_model.model.{name}.lora_{half}.weight" for half in "AB")
        module.weight += config["lora_alpha"] / rank * arrays[b] @ arrays[a]
        used |= {a, b}
  assert used == arrays.keys()


@pytest.mark.parametrize("make", [torch_clip, torch_siglip])
@pytest.mark.parametrize("lora", CONFIGS.values(), ids=CONFIGS)
def test_transformers_computes_the_same(tmp_path, make, lora):
  import torch

  twin = make()
  twin.save_pretrained(tmp_path)
  model, params = checkpoints.load(tmp_path, tokenize=no_tokenizer)
  factors = random_factors(model, lora)
  apply_as_peft_does(twin, adapters.to_peft(model, lora, factors, "base"))
  images, ids = inputs(model)
  with torch.no_grad():
    image = twin.get_image_features(torch.tensor(images.transpose(0, 3, 1, 2)))
    text = twin.get_text_features(torch.tensor(ids))
  ours = jax.jit(lambda x: model.encode_image(params, x, lora=lora, factors=factors))
  assert_close(ours(jnp.asarray(images)), image.pooler_output.numpy())
  texts = jax.jit(lambda x: model.encode_text(params, x, lora, factors))(
    jnp.asarray(ids, jnp.int32)
  )
  assert_close(texts, text.pooler_output.numpy())
  one = adapters.merged(model, params, lora, factors)
  assert_close(jax.jit(model.encode_image)(one, jnp.asarray(images)), image.pooler_output.numpy())


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
