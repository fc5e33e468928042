"""What has changed about a run's images and weights, in words."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdtrap_jax.run import identity


def source(weights="aaaaaaaaaa", names=None, **content):
  domain = {"class_names": list(content) if names is None else names, "content": content}
  return {"weights": weights, "domains": {"birds": domain}}


BASE = source(crow=[12, "c"], gull=[9, "g"], wren=[9, "w"])


@pytest.mark.parametrize(
  ("here", "said"),
  [
    (BASE, []),
    (BASE | {"weights": "b" * 10}, ["the weights were replaced: aaaaaaaa there, bbbbbbbb here"]),
    (
      source(crow=[13, "d"], gull=[9, "g"], wren=[9, "w"]),
      ["birds: class 'crow': 12 images there, 13 here"],
    ),
    (
      source(crow=[12, "d"], gull=[9, "g"], wren=[9, "w"]),
      ["birds: class 'crow': other images"],
    ),
    (
      source(crow=[12, "c"], gull=[9, "w"], wren=[9, "g"]),
      [
        "birds: class 'gull': the images that class 'wren' had there",
        "birds: class 'wren': the images that class 'gull' had there",
      ],
    ),
    (
      source(raven=[12, "c"], gull=[9, "g"], wren=[9, "w"]),
      ["birds: class 'raven': was called 'crow' there"],
    ),
    (
      source(gull=[9, "g"], wren=[9, "w"], dodo=[1, "d"]),
      [
        "birds: class 'crow': 12 images there, no such class here",
        "birds: class 'dodo': no such class there, 1 images here",
      ],
    ),
    (
      source(wren=[9, "w"], crow=[12, "c"], gull=[9, "g"]),
      ["birds: the classes are in another order"],
    ),
    ({"weights": BASE["weights"], "domains": {}}, ["domain birds: only there"]),
    (None, ["the images or weights are others"]),
    ({"domains": 5}, ["the images or weights are others"]),
    ({"domains": {"birds": {"class_names": [], "content": {"crow": 3}}}},
     ["the images or weights are others"]),
  ],
)  # fmt: skip
def test_changes_in_words(here, said):
  assert identity.source_changes(here, BASE) == said


def test_long_lists_are_cut():
  there = source(**{f"class{i}": [i, "a"] for i in range(40)})
  here = source(**{f"class{i}": [i, "b"] for i in range(40)})
  changed = identity.differences({"source": here}, {"source": there})
  assert len(changed) == 6
  assert changed[-1] == "and 35 more"


def test_how_it_is_run_makes_no_difference():
  assert (
    identity.differences({"episodes": 5, "source": BASE}, {"episodes": 6, "source": BASE}) == []
  )
  assert identity.differences({"seed": 1, "source": BASE}, {"seed": 2, "source": BASE}) == [
    "seed: 2 there, 1 here"
  ]


_CONTENT = st.dictionaries(
  st.sampled_from("abcd"), st.tuples(st.integers(0, 2), st.sampled_from("xyz")).map(list)
)


@settings(deadline=None)
@given(_CONTENT, _CONTENT, st.sampled_from("uv"), st.sampled_from("uv"))
def test_two_sources_are_told_apart_exactly_when_they_differ(one, other, weights, others):
  here, there = source(weights, **one), source(others, **other)
  same = (list(one.items()), weights) == (list(other.items()), others)
  assert (identity.source_changes(here, there) == []) == same
  data = identity.data_of(here) == identity.data_of(there)
  assert data == (list(one.items()) == list(other.items()))


def test_data_are_unknown_without_their_content():
  assert identity.data_of(None) is None
  assert identity.data_of({"name": "birds", "images": 3}) is None
  assert identity.data_of(BASE, "fish") is None
  assert identity.data_of(BASE, "birds") == identity.data_of(BASE)
