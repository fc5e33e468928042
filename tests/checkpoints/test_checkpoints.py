"""Readers, error messages, inspection and saving."""

import json
import pickle
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mdtrap_jax import checkpoints
from mdtrap_jax.checkpoints import convert, positions, rules
from mdtrap_jax.checkpoints.__main__ import main
from mdtrap_jax.checkpoints.layouts import clip
from mdtrap_jax.checkpoints.load import LAYOUTS
from mdtrap_jax.models import build, find
from tests.checkpoints.tiny import make_params
from tests.paths import GOLDEN

Q_PROJ = "vision_model.encoder.layers.1.self_attn.q_proj.weight"


def no_tokenizer(texts):
  raise AssertionError(f"not to be called: {texts}")


def load(path, **options):
  return checkpoints.load(path, tokenize=no_tokenizer, **options)


@pytest.fixture(scope="module")
def model():
  return build("clip-tiny")


@pytest.fixture(scope="module")
def params(model):
  return make_params(model)


@pytest.fixture
def folder(tmp_path, model, params):
  checkpoints.save(tmp_path, model, params)
  return tmp_path


@pytest.fixture(scope="module")
def openai(model, params):
  table = (*clip.OPENAI_IMAGE, *clip.packed_text(""))
  shapes = convert.parameter_shapes(model)
  return convert.export(params, rules.slots(table, rules.TORCH, shapes), np.float32)


def rewrite(folder, change):
  path = folder / "model.safetensors"
  arrays = load_file(path)
  change(arrays)
  save_file(arrays, path)


# What does not fit is named.


def test_renamed_array(folder):
  rewrite(folder, lambda arrays: arrays.update({"x" + Q_PROJ: arrays.pop(Q_PROJ)}))
  with pytest.raises(ValueError, match=rf"missing arrays: {Q_PROJ} \[64, 64\] \(is x{Q_PROJ}"):
    load(folder)


def test_missing_array(folder):
  rewrite(folder, lambda arrays: arrays.pop("logit_scale"))
  with pytest.raises(ValueError, match=r"missing arrays: logit_scale \[\]"):
    load(folder)


def test_missing_array_that_tells_the_size(openai):
  rest = {name: array for name, array in openai.items() if name != "visual.proj"}
  with pytest.raises(ValueError, match=r"array visual\.proj is missing"):
    checkpoints.from_openai(rest, image_heads=2, text_heads=2)


def test_extra_array(folder):
  rewrite(folder, lambda arrays: arrays.update(extra=np.zeros(3, np.float32)))
  with pytest.raises(ValueError, match=r"unknown arrays: extra \[3\]"):
    load(folder)


def test_misshaped_array(folder):
  rewrite(folder, lambda arrays: arrays.update({Q_PROJ: np.zeros((64, 63), np.float32)}))
  with pytest.raises(ValueError, match=rf"{Q_PROJ} has shape \[64, 63\], expected \[64, 64\]"):
    load(folder)


def test_wrong_size(folder):
  config = json.loads((folder / "config.json").read_text())
  config["vision_config"]["hidden_size"] = 128
  (folder / "config.json").write_text(json.dumps(config))
  with pytest.raises(ValueError, match=r"misshaped arrays.* and \d+ more\. Check .*config"):
    load(folder)


def test_wrong_family(folder):
  config = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps({**config, "model_type": "siglip"}))
  with pytest.raises(ValueError, match="those of a clip model, but config.json says .*siglip"):
    load(folder)


def test_another_kind_of_model(tmp_path):
  save_file(
    {f"h.{i}.mlp.weight": np.zeros(2, np.float32) for i in range(9)}, tmp_path / "model.safetensors"
  )
  with pytest.raises(ValueError, match=r"no known layout.*h\.0\.mlp\.weight"):
    load(tmp_path)


def test_int8(folder):
  rewrite(folder, lambda arrays: arrays.update({Q_PROJ: np.zeros((64, 64), np.int8)}))
  with pytest.raises(ValueError, match=rf"not floating-point.*{Q_PROJ} \(int8\).*quantized"):
    load(folder)


@pytest.mark.parametrize("name", ["qweight", "SCB"])
def test_gptq_and_other_quantized(folder, name):
  extra = Q_PROJ.replace("weight", name)
  rewrite(folder, lambda arrays: arrays.update({extra: np.zeros((8, 64), np.int32)}))
  with pytest.raises(ValueError, match=rf"is quantized \({extra}\).*original release"):
    load(folder)


def test_quantization_in_the_config(folder):
  config = json.loads((folder / "config.json").read_text())
  config["quantization_config"] = {"quant_method": "gptq"}
  (folder / "config.json").write_text(json.dumps(config))
  with pytest.raises(ValueError, match=r"is quantized \(see config.json\)"):
    load(folder)


def test_missing_config(folder):
  (folder / "config.json").unlink()
  with pytest.raises(FileNotFoundError, match="needs its config.json"):
    load(folder)


def test_missing_tokenizer(folder):
  (folder / "hash_tokenizer.json").unlink()
  with pytest.raises(FileNotFoundError, match="has no tokenizer"):
    checkpoints.load(folder)


# Damaged files.


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.999])
def test_truncated_safetensors(folder, kept):
  cut(folder / "model.safetensors", kept)
  with pytest.raises(ValueError, match=r"(truncated|cut off).*Download it again"):
    load(folder)


@pytest.mark.parametrize("kept", [0.1, 0.9])
def test_truncated_msgpack(tmp_path, kept):
  shutil.copytree(GOLDEN / "clip_hf_flax_tiny", tmp_path, dirs_exist_ok=True)
  cut(tmp_path / "flax_model.msgpack", kept)
  with pytest.raises(ValueError, match="truncated.*Download it again"):
    load(tmp_path)


def test_truncated_npz(tmp_path):
  shutil.copy(GOLDEN / "siglip_big_vision_tiny.npz", tmp_path)
  cut(tmp_path / "siglip_big_vision_tiny.npz", 0.7)
  with pytest.raises(ValueError, match="truncated.*Download it again"):
    load(tmp_path / "siglip_big_vision_tiny.npz")


def test_truncated_torch_file(tmp_path, openai):
  torch = pytest.importorskip("torch", reason="torch, which writes the file, is missing")
  path = tmp_path / "clip.pt"
  torch.save({name: torch.tensor(array) for name, array in openai.items()}, path)
  cut(path, 0.7)
  with pytest.raises(ValueError, match="truncated"):
    load(path)


def cut(path, kept):
  data = path.read_bytes()
  path.write_bytes(data[: int(kept * len(data))])


def test_text_instead_of_weights(folder):
  (folder / "model.safetensors").write_text("weights\n" * 9)
  with pytest.raises(ValueError, match="no safetensors file"):
    load(folder)
  (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n" * 9)
  with pytest.raises(ValueError, match=r"pointer of git-lfs.*git lfs pull"):
    load(folder)


# Pickles.


def test_plain_pickle_is_not_executed(tmp_path):
  (tmp_path / "clip.pt").write_bytes(pickle.dumps({"a": np.zeros(3)}))
  with pytest.raises(ValueError, match="no weights file that can be read safely"):
    load(tmp_path / "clip.pt")


def test_pickle_with_code_is_not_executed(tmp_path):
  torch = pytest.importorskip("torch", reason="torch, which writes the file, is missing")
  torch.save({"a": torch.zeros(2), "b": subprocess.Popen}, tmp_path / "clip.pt")
  with pytest.raises(ValueError, match=r"Popen.*not executed"):
    load(tmp_path / "clip.pt")


def test_pickle_without_weights(tmp_path):
  torch = pytest.importorskip("torch", reason="torch, which writes the file, is missing")
  torch.save({"epoch": 3}, tmp_path / "clip.pt")
  with pytest.raises(ValueError, match="holds no weights"):
    load(tmp_path / "clip.pt")


def test_torchscript_archive_as_openai_publishes(tmp_path, openai, model, params):
  torch = pytest.importorskip("torch", reason="torch, which writes the file, is missing")

  def module_of(names):
    module = torch.nn.Module()
    heads = {name.split(".")[0] for name in names}
    for head in sorted(heads):
      inner = {n.partition(".")[2]: a for n, a in names.items() if n.split(".")[0] == head}
      if "" in inner:
        module.register_parameter(head, torch.nn.Parameter(torch.tensor(inner[""]).half()))
      else:
        module.add_module(head, module_of(inner))
    return module

  whole = module_of(openai)
  whole.register_buffer("input_resolution", torch.tensor(64))
  with pytest.warns(DeprecationWarning, match="torch.jit"):
    torch.jit.script(whole).save(str(tmp_path / "clip.pt"))
  loaded, restored = load(tmp_path / "clip.pt")
  assert loaded.image.activation == "quick_gelu"
  assert (loaded.image.width, loaded.text.context_length) == (64, 77)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-3, 1e-6), params, restored)


def test_bare_state_dict_needs_an_assumption(tmp_path, openai):
  torch = pytest.importorskip("torch", reason="torch, which writes the file, is missing")
  torch.save({name: torch.tensor(a) for name, a in openai.items()}, tmp_path / "clip.pt")
  with pytest.warns(UserWarning, match="does not say its activation"):
    loaded, _ = load(tmp_path / "clip.pt")
  assert loaded.image.activation == "quick_gelu"


# open_clip.


@pytest.mark.parametrize("prefix", ["", "text."])
def test_open_clip_layout(tmp_path, openai, params, prefix):
  shared = ("visual.", "logit_scale")
  save_file(
    {n if n.startswith(shared) else prefix + n: a for n, a in openai.items()},
    tmp_path / "open_clip_model.safetensors",
  )
  config = {
    "model_cfg": {"vision_cfg": {"head_width": 32}, "text_cfg": {"heads": 4}},
    "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
  }
  (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
  loaded, restored = load(tmp_path)
  assert (loaded.image.heads, loaded.text.heads, loaded.image.activation) == (2, 4, "gelu")
  assert (loaded.image_mean, loaded.image_std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
  jax.tree.map(np.testing.assert_array_equal, params, restored)
  config["model_cfg"]["quick_gelu"] = True
  (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
  assert load(tmp_path)[0].text.activation == "quick_gelu"


# Sources.


def test_unknown_names():
  with pytest.raises(FileNotFoundError, match=r"clip-vit-b61.*did you mean clip-vit-b16"):
    load("clip-vit-b61")
  with pytest.raises(FileNotFoundError, match="no such file"):
    load("/nowhere/model.safetensors")
  with pytest.raises(FileNotFoundError, match="no published weights"):
    load("clip-tiny")
  with pytest.raises(ValueError, match="nearest names are .*siglip2-b16-256"):
    find("siglip2-b16-265")


def test_folder_with_several_files(tmp_path, openai):
  for name in "ab":
    save_file(openai, tmp_path / f"{name}.safetensors")
  with pytest.raises(FileNotFoundError, match="several weights files"):
    load(tmp_path)


def test_missing_shard(folder):
  arrays = load_file(folder / "model.safetensors")
  (folder / "model.safetensors").unlink()
  index = {"weight_map": dict.fromkeys(arrays, "model-00001-of-00002.safetensors")}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  with pytest.raises(FileNotFoundError, match="model-00001-of-00002.safetensors"):
    load(folder)


# Precision.


@pytest.mark.parametrize("stored", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("wanted", [jnp.bfloat16, jnp.float32])
def test_precisions(tmp_path, model, params, stored, wanted):
  checkpoints.save(tmp_path, model, params, dtype=stored)
  restored = load(tmp_path, dtype=wanted)[1]
  expected = params["image"]["blocks"]["mlp"]["fc1"]["kernel"].astype(stored).astype(wanted)
  kernel = restored["image"]["blocks"]["mlp"]["fc1"]["kernel"]
  assert kernel.dtype == wanted
  np.testing.assert_array_equal(kernel, expected)
  assert restored["logit_scale"].dtype == jnp.float32


def test_float64(openai):
  options = dict(image_heads=2, text_heads=2, dtype=jnp.float64)
  with pytest.raises(ValueError, match="jax_enable_x64"):
    checkpoints.from_openai(openai, **options)
  with jax.enable_x64(True):
    loaded, params = checkpoints.from_openai(openai, **options)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float64)}
    images = jnp.ones((1, 64, 64, 3), jnp.float64)
    assert jax.eval_shape(loaded.encode_image, params, images).dtype == jnp.float64


def test_weights_are_not_copied_to_the_device(openai, monkeypatch):
  buffers = []
  original = convert.aligned_empty
  monkeypatch.setattr(
    convert, "aligned_empty", lambda *args: buffers.append(original(*args)) or buffers[-1]
  )
  params = checkpoints.from_openai(openai, image_heads=2, text_heads=2)[1]
  addresses = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(params)}
  assert {buffer.ctypes.data for buffer in buffers} == addresses


# Resampling.


@pytest.mark.parametrize("size", [3, 7, 14, 20])
@pytest.mark.parametrize("method", ["bicubic", "bicubic-antialias", "bilinear"])
def test_resampling_equals_torch(method, size):
  torch = pytest.importorskip("torch", reason="torch, the reference, is missing")
  grid = np.random.default_rng(0).standard_normal((49, 5))
  mode, _, antialias = method.partition("-")
  square = torch.tensor(grid.reshape(1, 7, 7, 5)).permute(0, 3, 1, 2)
  expected = torch.nn.functional.interpolate(
    square, (size, size), mode=mode, antialias=bool(antialias)
  )
  expected = expected.permute(0, 2, 3, 1).reshape(size * size, 5)
  np.testing.assert_allclose(positions.resample(grid, size, method), expected, atol=1e-6)


def test_what_every_layout_resamples_positions_with():
  assert {layout.name: layout.resample for layout in LAYOUTS} == {
    "clip-openai": "bicubic-antialias",
    "clip-open_clip": "bicubic-antialias",
    "clip-huggingface": "bicubic",
    "clip-huggingface-flax": "bicubic",
    "siglip-huggingface": "bicubic",
    "siglip-big_vision": "corners",
    "siglip-big_vision-scanned": "corners",
    "pe-core-meta": "bilinear",
    "pe-core-timm": "bilinear",
  }


@pytest.mark.parametrize("layout", ["openai", "huggingface"])
def test_positions_at_another_input_size(layout, folder, openai, params):
  torch = pytest.importorskip("torch", reason="torch, the reference, is missing")
  if layout == "openai":
    found = checkpoints.from_arrays(
      openai, image_heads=2, text_heads=2, activation="quick_gelu", image_size=48
    )
  else:
    found = load(folder, image_size=48)
  old = params["image"]["stem"]["position"]
  expected = torch.nn.functional.interpolate(
    torch.tensor(old[1:].reshape(1, 4, 4, -1)).permute(0, 3, 1, 2),
    (3, 3),
    mode="bicubic",
    antialias=layout == "openai",
  )
  new = np.asarray(found[1]["image"]["stem"]["position"])
  np.testing.assert_array_equal(new[0], old[0])  # of the class token
  np.testing.assert_allclose(new[1:], expected[0].permute(1, 2, 0).reshape(9, -1), atol=1e-5)


def test_unknown_resampling():
  with pytest.raises(ValueError, match="choose one of"):
    positions.resample(np.zeros((4, 2)), 3, "nearest")


# Inspection.


def test_family_of(folder):
  assert checkpoints.family_of("pe-core-b16-224") == "pe-core"
  assert checkpoints.family_of("google/siglip2-base-patch16-224") == "siglip2"
  assert checkpoints.family_of(folder) == "clip"
  assert checkpoints.family_of(GOLDEN / "siglip_big_vision_tiny.npz") == "siglip"
  with pytest.raises(FileNotFoundError, match="did you mean clip-vit-b16"):
    checkpoints.family_of("clip-vit-b61")


def test_inspection_of_a_good_checkpoint(folder, capsys):
  assert main(["inspect", str(folder)]) == 0
  output = capsys.readouterr().out
  for expected in ("clip-huggingface", "float32 (78 arrays)", "patch 16", "none"):
    assert expected in output


def test_inspection_checks_what_load_needs(capsys):
  assert main(["inspect", str(GOLDEN / "clip_hf_flax_tiny")]) == 1
  output = capsys.readouterr().out
  for expected in ("clip-huggingface-flax", "float32 (94 arrays)", "patch 14", "no tokenizer"):
    assert expected in output


def test_inspection_names_what_is_wrong(folder, capsys):
  rewrite(folder, lambda arrays: arrays.update(extra=arrays.pop(Q_PROJ)))
  assert main(["inspect", str(folder), "/nowhere"]) == 1
  output = capsys.readouterr().out
  assert f"missing arrays: {Q_PROJ}" in output
  assert "unknown arrays: extra" in output
  assert "no such file" in output
