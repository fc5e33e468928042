from hypothesis import given, settings
from hypothesis import strategies as st

from mdtrap_jax.data.content import describe_changes, identity_of

CONTENTS = st.dictionaries(
  st.sampled_from("abcd"), st.tuples(st.integers(1, 2), st.sampled_from("xyz")), max_size=4
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(CONTENTS, CONTENTS)
def test_contents_are_one_or_the_change_is_told(there, here):
  same = list(there.items()) == list(here.items())
  assert (identity_of("ab", there) == identity_of("ab", here)) == same
  lines = describe_changes({name: list(entry) for name, entry in there.items()}, here)
  assert (lines == []) == same
  assert all(line for line in lines)


def test_changes_in_words():
  there = {"a": (3, "x"), "b": (3, "y"), "c": (2, "z"), "d": (1, "w")}
  assert describe_changes(there, {"a": (3, "y"), "b": (3, "x"), "c": (2, "z"), "d": (1, "w")}) == [
    "class 'a': the images that class 'b' had there",
    "class 'b': the images that class 'a' had there",
  ]
  assert describe_changes(there, {"a": (3, "x"), "b": (3, "y"), "c": (2, "z")}) == [
    "class 'd': 1 images there, no such class here"
  ]
  assert describe_changes(there, {**there, "e": (5, "v")}) == [
    "class 'e': no such class there, 5 images here"
  ]
  assert describe_changes(there, dict(reversed(there.items()))) == [
    "the classes are in another order"
  ]


def test_identity_is_of_everything_given():
  content = {"a": (1, "x"), "b": (1, "y")}
  identities = {
    identity_of("ab", content),
    identity_of("ba", content),
    identity_of("ab", dict(reversed(content.items()))),
    identity_of("ab", content, None),
    identity_of("ab", content, (0, 4095)),
  }
  assert len(identities) == 5
