"""What is exported is computed by peft and transformers as we do, and comes back as a model."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from mdtrap_jax import FewShotClassifier, checkpoints
from mdtrap_jax.__main__ import main
from mdtrap_jax.checkpoints import adapters, merge, tokenizer_files
from mdtrap_jax.data import images as imaging
from mdtrap_jax.data.read_labeled import read_labeled
from mdtrap_jax.data.views import normalize
from tests.checkpoints import tiny

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch", reason="torch, the twin's library, is not installed")
peft = pytest.importorskip("peft", reason="peft, the twin's library, is not installed")

MAKE = {"clip": (tiny.make_model, tiny.write_tokenizer),
        "siglip": (tiny.make_siglip, tiny.write_siglip_tokenizer)}  # fmt: skip
ADAPTED = {
  "clip": {"lora.projections": ("q", "v"), "lora.position": "half-up"},
  "siglip": {"lora.projections": ("q", "k", "v", "out"), "lora.scale": "linear"},
}
LABELS = ["crow", "crow", "gull", "jay"]
# Of peft 0.21 under transformers 5.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
TEMPLATES = ["a photo of a {}", "a {}"]


def noise(count, seed=0):
  return np.random.default_rng(seed).integers(0, 255, (count, 20, 24, 3)).astype(np.uint8)


def write_base(folder, family, seed=0):
  """A base model's folder, as published ones are."""
  make, write = MAKE[family]
  folder.mkdir()
  write(folder)
  model = make()
  tokenize = tokenizer_files.read_tokenizer(folder, family, model.text)
  model, params = make(tokenize), tiny.make_params(model, seed)
  checkpoints.save(folder, model, params, overwrite=True)
  return folder


@pytest.fixture(scope="module", params=list(MAKE))
def saved(request, tmp_path_factory):
  """A classifier whose both encoders were adapted, and its folder."""
  root = tmp_path_factory.mktemp(request.param)
  base = write_base(root / "base", request.param)
  config = {"lora.encoder": "both", "lora.rank": 2, **ADAPTED[request.param]}
  config |= {"adapt.views": 1, "model.batch_size": 4}
  own = FewShotClassifier(
    str(base), "vlm", steps=5, learning_rate=1e-2, template=TEMPLATES, config=config
  )
  if request.param == "clip":
    own.fit(noise(4), LABELS)
  else:  # as if fitted, without compiling it once more
    own._setting = own.prepare(read_labeled(noise(4), LABELS))
    model, lora = own._setting.model, own._setting.parameterization.config
    draw = lambda leaf: np.random.default_rng(0).normal(0, 0.5, leaf.shape).astype(np.float32)
    factors = jax.tree.map(draw, model.init_lora(jax.random.key(0), lora))
    own._fitted = own._setting.fitted(None, factors)
    own.classes_, own.class_names_ = np.unique(LABELS), ["crow", "gull", "jay"]
    own.counts_, own.accuracy_at_, own.losses_ = [2, 1, 1], {}, {}
    own.calibrate(1.0)
  own.save(root / "model")
  return own, root / "model"


def inputs(model, seed=1):
  pixels = [imaging.resize(image, model.image.image_size) for image in noise(3, seed)]
  images = normalize(jnp.stack(pixels), model.image_mean, model.image_std)
  return images, model.tokenize(["a photo of a crow", "a gull", "jay"])


def embeddings(model, params, images, ids, **adapted):
  image = jax.jit(lambda x: model.encode_image(params, x, **adapted))(images)
  text = jax.jit(lambda x: model.encode_text(params, x, **adapted))(jnp.asarray(ids))
  return image, text


def theirs(twin, images, ids):
  with torch.no_grad():
    image = twin.get_image_features(torch.tensor(np.asarray(images).transpose(0, 3, 1, 2)))
    text = twin.get_text_features(torch.tensor(ids, dtype=torch.long))
  return image.pooler_output.numpy(), text.pooler_output.numpy()


def assert_same(found, expected):
  for ours, other in zip(found, expected, strict=True):
    np.testing.assert_allclose(ours, other, rtol=0, atol=1e-5 * np.abs(other).max())


def say(*arguments):
  assert main([*map(str, arguments)]) == 0


def zero_shot(own, model):
  """The same classes by another model, as it is."""
  return FewShotClassifier(
    str(model), "zero_shot", template=own.template, config={"model.batch_size": 4}
  ).fit(noise(4), LABELS)


def test_peft_computes_the_same(saved, tmp_path):
  own, folder = saved
  say("export", folder, "--format=peft", f"--out={tmp_path / 'peft'}")
  setting, fitted = own._setting, own._fitted
  model = setting.model
  ours = {"lora": setting.parameterization.config, "factors": fitted.params}
  images, ids = inputs(model)
  expected = embeddings(model, setting.params, images, ids, **ours)
  base = embeddings(model, setting.params, images, ids)
  assert all(np.abs(one - other).max() > 1e-2 for one, other in zip(base, expected, strict=True))
  # From the name of the base model alone; and the saved classifier's folder is one, too.
  twin = peft.AutoPeftModelForFeatureExtraction.from_pretrained(tmp_path / "peft").eval()
  assert_same(theirs(twin, images, ids), expected)
  config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
  assert (config["use_rslora"], config["r"]) == (model.family == "clip", 2)
  about = json.loads((tmp_path / "peft" / "classes.json").read_text())
  assert about["class_names"] == ["crow", "gull", "jay"]
  assert about["base_fingerprint"] == checkpoints.fingerprint(own.model)
  # It is a model of ours as well, whose own weights are the adapted ones.
  again, params = checkpoints.load(tmp_path / "peft")
  assert_same(embeddings(again, params, images, ids), expected)
  queries = noise(5, 2)
  adapted = zero_shot(own, folder)
  np.testing.assert_allclose(adapted.cosines(queries), own.cosines(queries), atol=1e-5)


def test_transformers_computes_the_same(saved, tmp_path):
  own, folder = saved
  out = tmp_path / "hf"
  say("export", folder, "--format=hf", f"--out={out}")
  setting = own._setting
  model = setting.model
  ours = {"lora": setting.parameterization.config, "factors": own._fitted.params}
  images, ids = inputs(model)
  expected = embeddings(model, setting.params, images, ids, **ours)
  twin = transformers.AutoModel.from_pretrained(out).eval()
  assert_same(theirs(twin, images, ids), expected)
  processor = transformers.AutoImageProcessor.from_pretrained(out, backend="pil")
  pixels = processor(list(noise(3, 1)), return_tensors="np")["pixel_values"]
  np.testing.assert_allclose(pixels, np.asarray(images).transpose(0, 3, 1, 2), atol=1e-6)
  queries = noise(5, 2)
  merged = zero_shot(own, out)
  np.testing.assert_allclose(merged.cosines(queries), own.cosines(queries), atol=1e-5)
  assert (merged.predict(queries) == own.predict(queries)).all()
  assert not list(tmp_path.glob(".*"))


def test_another_base_model_is_refused(saved, tmp_path):
  own, folder = saved
  say("export", folder, "--format=peft", f"--out={tmp_path / 'peft'}")
  other = write_base(tmp_path / "other", own._setting.model.family, seed=1)
  path = tmp_path / "peft" / "adapter_config.json"
  path.write_text(
    json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(other)})
  )
  for refused in (checkpoints.load, checkpoints.fingerprint):
    with pytest.raises(ValueError, match="was trained on another base model"):
      refused(tmp_path / "peft")
  with pytest.raises(ValueError, match="was fitted on another base model"):
    FewShotClassifier.load(folder, model=str(other))
  path.write_text(
    json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "no/where"})
  )
  other.rename(tmp_path / "gone")
  with pytest.raises(OSError, match="needs its base model"):
    checkpoints.load(tmp_path / "peft")


@pytest.mark.parametrize("family", list(MAKE))
def test_adapters_that_peft_trained(tmp_path, family):
  base = write_base(tmp_path / "base", family)
  twin = transformers.AutoModel.from_pretrained(base)
  config = peft.LoraConfig(
    r=3, lora_alpha=5, target_modules=r".*(q_proj|k_proj|self_attn\.out_proj|mlp\.fc1)",
    rank_pattern={"k_proj": 2}, alpha_pattern={r"layers\.1\.mlp\.fc1": 7}, init_lora_weights=False,
  )  # fmt: skip
  torch.manual_seed(0)
  trained = peft.get_peft_model(twin, config).eval()
  trained.save_pretrained(tmp_path / "theirs")
  model, params = checkpoints.load(tmp_path / "theirs")
  images, ids = inputs(model)
  assert_same(embeddings(model, params, images, ids), theirs(trained, images, ids))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"use_dora": True}, "use_dora=True is not supported.*merge_and_unload"),
    ({"peft_type": "IA3"}, "peft_type='IA3' is not supported"),
    ({"modules_to_save": ["visual_projection"]}, "modules_to_save"),
    ({"base_model_name_or_path": None}, "names no base model"),
  ],
)
def test_adapters_that_are_more_than_lora(tmp_path, change, message):
  base = write_base(tmp_path / "base", "clip")
  module = "base_model.model.text_projection"
  halves = {"A": np.ones((1, 8), np.float32), "B": np.ones((4, 1), np.float32)}
  factors = {f"{module}.lora_{name}.weight": half for name, half in halves.items()}
  save_file(factors, tmp_path / adapters.WEIGHTS)
  config = {"peft_type": "LORA", "base_model_name_or_path": str(base), "lora_alpha": 2}
  (tmp_path / adapters.CONFIG).write_text(json.dumps(config))
  ((name, difference),) = merge.read_differences(tmp_path).items()
  assert (name, difference.tolist()) == ("text_projection", [[2.0] * 8] * 4)
  (tmp_path / adapters.CONFIG).write_text(json.dumps(config | change))
  with pytest.raises(ValueError, match=message) as error:
    checkpoints.load(tmp_path)
  assert "\n" not in str(error.value)


def test_modules_that_the_model_does_not_have():
  model = tiny.make_siglip()
  params = tiny.make_params(model)
  for name, shape, message in (
    ("vision_model.encoder.layers.0.self_attn.qkv", (8, 8), "does not have as a linear layer"),
    ("vision_model.head.attention.out_proj", (8, 8), "does not have as a linear layer"),
    ("vision_model.encoder.layers.1.self_attn.q_proj", (8, 9), r"\[8, 9\], but \[8, 8\]"),
  ):
    with pytest.raises(ValueError, match=message):
      merge.add(model, params, [(name, np.zeros(shape, np.float32))], "it")
  pe_core = dataclasses.replace(model, family="pe-core")
  with pytest.raises(ValueError, match="of the family pe-core, of which transformers has no model"):
    checkpoints.save("anywhere", pe_core, params)


@pytest.mark.parametrize("resize", imaging.RESIZE_MODES)
@pytest.mark.parametrize("interpolation", list(imaging.INTERPOLATIONS))
def test_transformers_prepares_images_as_we_do(tmp_path, resize, interpolation):
  model = tiny.make_model()
  options = {"resize": resize, "interpolation": interpolation}
  checkpoints.save(tmp_path / "model", model, tiny.make_params(model), **options)
  processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "model", backend="pil")
  for height, width in ((20, 25), (31, 17), (8, 8), (5, 9)):  # by which the crop has no odd rest
    image = np.random.default_rng(height).integers(0, 255, (height, width, 3)).astype(np.uint8)
    pixels = imaging.resize(image, 8, resize, interpolation)
    ours = normalize(jnp.asarray(pixels), model.image_mean, model.image_std)
    found = processor(Image.fromarray(image), return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(found.transpose(1, 2, 0), ours, atol=1e-6)
