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
    ("hidden_act", ["gelu"], "hidden_act=.*in config.json: choose one of"),
    ("num_hidden_layers", 10**6, "depth=1000000 of the image encoder is more than its arrays"),
    ("num_hidden_layers", 10**400, "depth=1000.* of the image encoder is more than its arrays"),
    ("num_hidden_layers", 2.0, "depth=2.0: must be a whole number"),
    ("num_hidden_layers", True, "depth=True: must be a whole number"),
    ("hidden_size", 10**12, "width=1000000000000 of the image encoder"),
    ("intermediate_size", 10**12, "mlp_width=1000000000000 of"),
    ("image_size", 10**9, "image_size=1000000000 of"),
    ("layer_norm_eps", "1e-5", "epsilon='1e-5' of the image encoder"),
    ("layer_norm_eps", float("nan"), "epsilon=nan of the image encoder"),
    ("layer_norm_eps", -1, "epsilon=-1 of the image encoder"),
  ],
)
def test_impossible_fields(folder, field, value, message):
  rewrite(folder, "config.json", lambda config: config["vision_config"].update({field: value}))
  with pytest.raises(ValueError, match=rf"flax_model\.msgpack: .*describe no model .*{message}"):
    checkpoints.load(folder, tokenize=no_tokenizer)


@pytest.mark.parametrize("value", ["2", [2], 2.0, -1, 10**9, True, "x" * 10**6])
def test_end_tokens_that_are_none(folder, value):
  rewrite(folder, "config.json", lambda c: c["text_config"].update(eos_token_id=value))
  with pytest.raises(ValueError, match=r"describe no model \(eos_token_id=") as caught:
    checkpoints.load(folder, tokenize=no_tokenizer)
  assert len(str(caught.value)) < 600


@pytest.mark.parametrize("field", ["vocab_size", "max_position_embeddings", "num_hidden_layers"])
@pytest.mark.parametrize("value", [10**15, 10**6, 0, "9", None, [3]])
def test_impossible_fields_of_the_text_encoder(folder, field, value):
  rewrite(folder, "config.json", lambda config: config["text_config"].update({field: value}))
  with pytest.raises(
    ValueError, match=r"flax_model\.msgpack.*(whole number|more than|does not fit)"
  ):
    checkpoints.load(folder, tokenize=no_tokenizer)


def test_block_numbers_that_the_names_make_up(tmp_path):
  """Here the depth follows from the names."""
  names = ["visual.conv1.weight", "visual.proj", "visual.positional_embedding"]
  names += ["text_projection", "positional_embedding", "token_embedding.weight"]
  arrays = {name: np.zeros((4, 4), np.float32) for name in names}
  arrays["visual.conv1.weight"] = np.zeros((4, 3, 2, 2), np.float32)
  for blocks in ("transformer", "visual.transformer"):
    for number in (0, 10**9):
      name = f"{blocks}.resblocks.{number}.mlp.c_fc.bias"
      arrays[name] = np.zeros(4, np.float32)
  save_file(arrays, tmp_path / "model.safetensors")
  (tmp_path / "open_clip_config.json").write_text("{}")
  with pytest.raises(ValueError, match=r"depth=1000000001 .*more than its arrays hold"):
    checkpoints.load(tmp_path, tokenize=no_tokenizer)


def test_part_of_another_type(folder):
  rewrite(folder, "config.json", lambda config: config.update(vision_config=[1]))
  with pytest.raises(ValueError, match="describe no model .*not a mapping"):
    checkpoints.load(folder, tokenize=no_tokenizer)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_config_without_fields(folder, name):
  rewrite(folder, name, lambda _: [1])
  with pytest.raises(ValueError, match=rf"{name} holds no fields but \[1\]"):
    checkpoints.load(folder, tokenize=no_tokenizer)


@pytest.mark.parametrize("mean", [3, [0.5, 0.5], ["a", "b", "c"], [0, 0, float("nan")], "abc"])
def test_statistics_that_are_not_three_numbers(folder, mean):
  rewrite(folder, "preprocessor_config.json", lambda config: config.update(image_mean=mean))
  with pytest.raises(ValueError, match="images' mean is .*not three numbers"):
    checkpoints.load(folder, tokenize=no_tokenizer)


@pytest.mark.parametrize("std", [[0, 0.2, 0.2], [0.2, -0.2, 0.2]])
def test_statistics_that_divide_by_nothing(folder, std):
  rewrite(folder, "preprocessor_config.json", lambda config: config.update(image_std=std))
  with pytest.raises(ValueError, match="images' std is .*not three numbers above 0"):
    checkpoints.load(folder, tokenize=no_tokenizer)


@pytest.mark.parametrize(
  ("name", "content"),
  [
    ("config.json", "{"),
    ("config.json", '{"a": 1, "a": 2}'),
    ("config.json", "[" * 100_000),
    ("config.json", '{"a": ' + "9" * 5000 + "}"),
    ("config.json", "\xff"),
    ("open_clip_config.json", ""),
    ("preprocessor_config.json", "null?"),
  ],
)
def test_configs_that_are_no_json(folder, name, content):
  (folder / name).write_text(content, encoding="latin-1")
  with pytest.raises(ValueError, match=rf"{name}: truncated or damaged") as caught:
    checkpoints.load(folder, tokenize=no_tokenizer)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["model_cfg", "preprocess_cfg"])
@pytest.mark.parametrize("value", [[1], "a", 3])
def test_open_clip_configs_of_another_type(folder, field, value):
  (folder / "open_clip_config.json").write_text(json.dumps({field: value}))
  if field == "preprocess_cfg":
    with pytest.raises(ValueError, match="describe no model"):
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
