"""Where weights are found, under which names, and what is said of those that are not ours."""

import json
import os
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mdtrap_jax import checkpoints
from mdtrap_jax.checkpoints.__main__ import main
from mdtrap_jax.checkpoints.layouts.resnet import load_resnet18
from mdtrap_jax.models.families import miniature
from tests.checkpoints.tiny import make_model, make_params


@pytest.fixture(scope="module")
def params():
  return make_params(make_model())


@pytest.fixture(scope="module")
def saved(tmp_path_factory, params):
  path = tmp_path_factory.mktemp("saved") / "model"
  checkpoints.save(path, make_model(), params)
  return path


@pytest.fixture
def folder(tmp_path, saved):
  return shutil.copytree(saved, tmp_path / "model")


def take(folder):
  """The weights out of a folder, whose other files stay."""
  arrays = load_file(folder / "model.safetensors")
  (folder / "model.safetensors").unlink()
  return arrays


def save_torch(arrays, path):
  torch = pytest.importorskip("torch", reason="torch, which writes the file, is missing")
  torch.save({name: torch.tensor(array) for name, array in arrays.items()}, path)


def check(folder, params):
  jax.tree.map(np.testing.assert_array_equal, params, checkpoints.load(folder)[1])


# Names and files.


@pytest.mark.parametrize(
  "prefix",
  ["_orig_mod.", "module._orig_mod.", "base_model.model.", "model.", "module.", "model.clip.net."],
)
def test_prefixes_that_all_names_share(folder, params, prefix):
  arrays = {prefix + name: array for name, array in take(folder).items()}
  save_file(arrays, folder / "model.safetensors")
  check(folder, params)


def test_parts_that_were_compiled(folder, params):
  arrays = {
    name.replace("_model.", "_model._orig_mod."): array for name, array in take(folder).items()
  }
  save_file(arrays, folder / "model.safetensors")
  check(folder, params)
  arrays |= {name.replace("_orig_mod.", ""): array for name, array in arrays.items()}
  save_file(arrays, folder / "model.safetensors")
  with pytest.raises(ValueError, match="one name but for what torch.compile adds"):
    checkpoints.load(folder)


@pytest.mark.parametrize("name", ["model.pth", "last.ckpt", "best.pth.tar", "weights.pt"])
def test_torch_files_of_any_suffix(folder, params, name):
  save_torch(take(folder), folder / name)
  check(folder, params)
  check(folder / name, params)


def test_what_lightning_saves(folder, params):
  torch = pytest.importorskip("torch", reason="torch, which writes the file, is missing")
  arrays = {f"model.{name}": torch.tensor(array) for name, array in take(folder).items()}
  torch.save(
    {"epoch": 3, "state_dict": arrays, "optimizer_states": [{"state": {0: {"step": 1}}}]},
    folder / "last.ckpt",
  )
  check(folder, params)


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_shards(folder, params, suffix):
  stem = "pytorch_model" if suffix == "bin" else "model"
  write = save_torch if suffix == "bin" else save_file
  arrays, shard_of = take(folder), {}
  for part in (0, 1):
    shard = f"{stem}-0000{part + 1}-of-00002.{suffix}"
    mine = dict(list(arrays.items())[part::2])
    write(mine, folder / shard)
    shard_of |= dict.fromkeys(mine, shard)
  index = folder / f"{stem}.{suffix}.index.json"
  index.write_text(json.dumps({"weight_map": shard_of}))
  check(folder, params)
  before = checkpoints.fingerprint(folder)
  with open(folder / shard, "r+b") as file:
    file.seek(-1, os.SEEK_END)
    file.write(b"\x55")
  assert checkpoints.fingerprint(folder) != before
  (folder / shard).unlink()
  for use in (checkpoints.load, checkpoints.fingerprint):
    with pytest.raises(FileNotFoundError, match=rf"names the shard {shard}"):
      use(folder)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "", "."])
def test_shards_elsewhere_are_refused(folder, shard):
  arrays = take(folder)
  index = folder / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": dict.fromkeys(arrays, shard)}))
  with pytest.raises(ValueError, match=r"index\.json: .*another folder"):
    checkpoints.load(folder)


# What never ends.


@pytest.mark.parametrize(
  "name",
  ["model.safetensors", "config.json", "preprocessor_config.json", "hash_tokenizer.json"],
)
def test_pipes_are_not_read(folder, name, capsys):
  (folder / name).unlink()
  os.mkfifo(folder / name)
  for use in (checkpoints.load, checkpoints.fingerprint):
    with pytest.raises(ValueError, match=rf"{name} is a pipe"):
      use(folder)
  assert main(["inspect", str(folder)]) == 1
  assert f"{name} is a pipe" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["model.pth", "model.npz", "model.msgpack", "model.safetensors"])
def test_pipes_of_every_format(tmp_path, name):
  os.mkfifo(tmp_path / name)
  for source in (tmp_path, tmp_path / name):
    with pytest.raises(ValueError, match=rf"{name} is a pipe"):
      checkpoints.load(source)
  with pytest.raises((ValueError, FileNotFoundError), match=name):
    load_resnet18(tmp_path / name)


def test_a_pipe_as_a_shard(folder):
  arrays = take(folder)
  os.mkfifo(folder / "a.safetensors")
  index = folder / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": dict.fromkeys(arrays, "a.safetensors")}))
  with pytest.raises(ValueError, match=r"a\.safetensors is a pipe"):
    checkpoints.load(folder)


def test_links_in_a_circle(tmp_path):
  (tmp_path / "a").symlink_to(tmp_path / "b")
  (tmp_path / "b").symlink_to(tmp_path / "a")
  with pytest.raises(FileNotFoundError, match="no such file"):
    checkpoints.load(tmp_path / "a")


@pytest.mark.parametrize(
  ("names", "message"),
  [
    (["a" * 1001], "longest name of 1001 characters"),
    (["a\nb", "c"], "some unprintable"),
    ([], "has 0 arrays"),
  ],
)
def test_names_that_no_array_has(tmp_path, names, message):
  save_file({name: np.zeros(2, np.float32) for name in names}, tmp_path / "model.safetensors")
  with pytest.raises(ValueError, match=message) as caught:
    checkpoints.load(tmp_path)
  assert "\n" not in str(caught.value)


# What models are.

FOREIGN = {
  "ResNet (RN50": [
    "visual.layer1.0.conv1.weight",
    "visual.attnpool.q_proj.weight",
    "ln_final.bias",
  ],
  "BiomedCLIP": ["visual.trunk.cls_token", "text.transformer.embeddings.LayerNorm.bias"],
  "SigLIP in the layout of timm": ["visual.trunk.pos_embed", "logit_bias"],
  "timm's (ConvNeXt": ["visual.trunk.stages.0.blocks.0.norm.weight", "text.ln_final.bias"],
  "EVA-CLIP": ["visual.blocks.0.norm1.weight", "text.ln_final.bias"],
  "CoCa": ["visual.proj", "text_decoder.resblocks.0.ln_1.weight"],
  "ResNet without a text encoder": ["conv1.weight", "layer1.0.conv1.weight", "fc.bias"],
  "single encoder": ["cls_token", "blocks.0.attn.qkv.weight", "head.bias"],
  "adapters that are not merged": [
    "base_model.model.vision_model.encoder.layers.0.self_attn.q_proj.lora_A.default.weight",
    "base_model.model.logit_scale",
  ],
}


@pytest.mark.parametrize("what", FOREIGN)
def test_foreign_models_are_named(tmp_path, what):
  arrays = {name: np.zeros(2, np.float32) for name in FOREIGN[what]}
  save_file(arrays, tmp_path / "model.safetensors")
  with pytest.raises(ValueError, match="not supported") as caught:
    checkpoints.load(tmp_path)
  assert what in str(caught.value)
  assert "damaged" not in str(caught.value)


def test_names_that_no_model_has():
  with pytest.raises(FileNotFoundError, match="resnet18 is there for heads.*clip-vit-b16"):
    checkpoints.load("resnet50")
  with pytest.raises(FileNotFoundError, match="named models are clip-vit-b32.*miniature;"):
    checkpoints.load("gpt")
  with pytest.raises(FileNotFoundError, match=r"did you mean clip-vit-b16"):
    checkpoints.load("clip-vit-b61")


# Content.


def test_fingerprint_is_of_content_alone(folder, saved):
  assert checkpoints.fingerprint(folder) == checkpoints.fingerprint(saved)
  (folder / "notes.txt").write_text("no part of the model")
  assert checkpoints.fingerprint(folder) == checkpoints.fingerprint(saved)


@pytest.mark.parametrize(
  "name",
  ["model.safetensors", "config.json", "preprocessor_config.json", "hash_tokenizer.json"],
)
def test_fingerprint_sees_every_file(folder, saved, name):
  data = bytearray((folder / name).read_bytes())
  data[-3] ^= 1
  (folder / name).write_bytes(data)
  assert checkpoints.fingerprint(folder) != checkpoints.fingerprint(saved)
  (folder / name).unlink()
  if name != "model.safetensors":
    assert checkpoints.fingerprint(folder) != checkpoints.fingerprint(saved)


def test_fingerprint_sees_a_tokenizer_that_is_added(folder, saved):
  (folder / "vocab.json").write_text("{}")
  assert checkpoints.fingerprint(folder) != checkpoints.fingerprint(saved)


def test_fingerprint_of_the_packaged_weights():
  assert checkpoints.fingerprint("miniature") == checkpoints.fingerprint(miniature.WEIGHTS)
  assert len(checkpoints.fingerprint("miniature")) == 64
