import pytest

from mdtrap_jax.data import prompts


def test_default_template_and_underscores():
  made = prompts.make_prompts(["Forest", "Tomato___Late_blight"])
  assert made == ["a photo of a Forest.", "a photo of a Tomato   Late blight."]


def test_braces_elsewhere_are_text():
  assert prompts.make_prompts(["a{0}"], "{x} {}: {}") == ["{x} a{0}: a{0}"]


def test_template_without_a_place_for_the_name():
  with pytest.raises(ValueError, match=r"'a photo.' has no \{\}"):
    prompts.make_prompts(["Forest"], "a photo.")
