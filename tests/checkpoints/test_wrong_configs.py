"""Config files that do not describe what the weights are: one message that names the problem."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from mdtrap_jax import checkpoints
from tests.paths import GOLDEN


@pytest.fixture
def folder(tmp_path):
  shutil.copytree(GOLDEN / "clip_hf_flax_tiny", tmp_path, dirs_exist_ok=True)
  return tmp_path


def rewrite(folder, name, change):
  config = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
  changed = change(config)
  (folder / name).write_text(json.dumps(config if changed is None else changed))


def no_tokenizer(texts):
  raise AssertionError(f"not to be called: {texts}")


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("patch_size", 0, "patch_size=0: must be a whole number from 1"),
    ("hidden_size", "big", "width='big': must be a whole number"),
    ("hidden_size", None, "width=None: must be a whole number"),
    ("num_attention_heads", 5, "width=64 is not a multiple of heads=5"),
    ("hidden_act", "swish", "hidden_act='swish' in config.json: choose one of"),
  ],
)
def test_impossible_fields(folder, field, value, message):
  rewrite(folder, "config.json", lambda config: config["vision_config"].update({field: value}))
  with pytest.raises(ValueError, match=rf"flax_model\.msgpack: .*describe no model .*{message}"):
    checkpoints.load(folder, tokenize=no_tokenizer)


def test_part_of_another_type(folder):
  rewrite(folder, "config.json", lambda config: config.update(vision_config=[1]))
  with pytest.raises(ValueError, match="describe no model .*not a mapping"):
    checkpoints.load(folder, tokenize=no_tokenizer)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_config_without_fields(folder, name):
  rewrite(folder, name, lambda _: [1])
  with pytest.raises(ValueError, match=rf"{name} holds no fields but \[1\]"):
    checkpoints.load(folder, tokenize=no_tokenizer)


@pytest.mark.parametrize("mean", [3, [0.5, 0.5]])
def test_statistics_that_are_not_three_numbers(folder, mean):
  rewrite(folder, "preprocessor_config.json", lambda config: config.update(image_mean=mean))
  with pytest.raises(ValueError, match="images' mean is .*not three numbers"):
    checkpoints.load(folder, tokenize=no_tokenizer)


def test_shapes_that_describe_no_model():
  with np.load(GOLDEN / "siglip_big_vision_tiny.npz") as file:
    weights = {name: array for name, array in file.items() if name.startswith("params/")}
  weights["params/img/pos_embedding"] = np.zeros(3, np.float32)
  with pytest.raises(ValueError, match="arrays in memory: .*describe no model"):
    checkpoints.from_arrays(weights)


def test_siglip_in_the_layout_of_timm_is_not_mistaken_for_pe_core(tmp_path):
  names = [f"visual.trunk.blocks.{i}.mlp.fc1.weight" for i in range(9)]
  names += ["visual.trunk.patch_embed.proj.weight", "logit_bias"]
  save_file({name: np.zeros(2, np.float32) for name in names}, tmp_path / "model.safetensors")
  with pytest.raises(ValueError, match="SigLIP in the layout of timm .*not supported"):
    checkpoints.load(tmp_path, tokenize=no_tokenizer)
