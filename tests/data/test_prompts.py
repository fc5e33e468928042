import numpy as np
import pytest

from mdtrap_jax.data import prompts


def test_default_template_and_underscores():
  made = prompts.make_prompts(["Forest", "Tomato___Late_blight"])
  assert made == ["a photo of a Forest.", "a photo of a Tomato   Late blight."]


def test_braces_elsewhere_are_text():
  assert prompts.make_prompts(["a{0}"], "{x} {}: {}") == ["{x} a{0}: a{0}"]


@pytest.mark.parametrize("templates", ["a photo.", ["a {}.", "a photo."], ["a {}.", 3]])
def test_template_without_a_place_for_the_name(templates):
  with pytest.raises(ValueError, match=r"('a photo.'|3) has no \{\}"):
    prompts.make_prompts(["Forest"], templates)


@pytest.mark.parametrize("kind", [list, tuple])
def test_several_templates_class_by_class(kind):
  made = prompts.make_prompts(["cat", "dog"], kind(["a {}.", "one {}.", "{}"]))
  assert made == ["a cat.", "one cat.", "cat", "a dog.", "one dog.", "dog"]


@pytest.mark.parametrize("templates", [[], ["a {}.", "a {}."]])
def test_no_templates_and_repeated_ones(templates):
  with pytest.raises(ValueError, match="one or more, each once"):
    prompts.make_prompts(["cat"], templates)


def test_accents_are_composed():
  assert prompts.make_prompts(["cafe\u0301"]) == ["a photo of a caf\u00e9."]


def test_distinct_rows():
  prompts.check_distinct(np.array([[1, 2], [1, 3]]), ["a", "b"])
  prompts.check_distinct(np.array([[1, 2], [5, 6], [1, 2], [5, 7]]), ["a", "b"])  # two templates


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
def test_equal_rows_are_named(dtype):
  ids = np.array([[1, 2], [3, 4], [1, 2], [3, 4], [5, 6]], dtype)
  with pytest.raises(ValueError, match=r"cutting at 2 tokens\): 'a' = 'c'; 'b' = 'd'\."):
    prompts.check_distinct(ids, "abcde")
  with pytest.raises(ValueError, match=r"'a' = 'b'\."):
    prompts.check_distinct(ids[[0, 1, 0, 1]], ["a", "b"])  # two templates


def test_message_of_many_names_stays_short():
  with pytest.raises(ValueError, match="same to the text encoder") as caught:
    prompts.check_distinct(np.zeros((1000, 3), int), [f"class {i}" for i in range(1000)])
  assert len(str(caught.value)) < 400


@pytest.mark.parametrize("shape", [(3, 4), (4,), (0, 4)])
def test_rows_that_do_not_go_with_the_names(shape):
  with pytest.raises(ValueError, match="2 class names do not go with token ids of shape"):
    prompts.check_distinct(np.zeros(shape, int), ["a", "b"])
