"""Families of related classes, by hand, and the tasks drawn from them."""

import numpy as np
import pytest

from mdtrap_jax.data import tasks
from mdtrap_jax.data.hierarchy import Hierarchy, eligible, leaves_below, read_hierarchy

ALPHABETS = {
  "superclasses_per_split": {"TRAIN": 2, "VALID": 1, "TEST": 1},
  "classes_per_superclass": {"0": 14, "1": 20, "2": 5, "3": 7},
}


def node(name, *children):
  return {"wn_id": name, "words": name, "children_ids": list(children), "parents_ids": []}


# 0 and 1 are for training, 2 for validation; a leaf may be below several nodes.
WORDNET = {
  "split_subgraphs": {
    "TRAIN": [node("n0", "a", "b"), node("a"), node("b")],
    "VALID": [node("c")],
    "TEST": [
      node("animal", "dog", "cat"), node("pet", "cat", "puppy"), node("dog", "puppy", "wolf"),
      node("cat"), node("puppy"), node("wolf"), node("stone"),
    ],
  },
  "class_names": dict(enumerate(["b", "a", "c", "wolf", "cat", "stone", "puppy"])),
}  # fmt: skip


def test_the_leaves_below_every_node():
  below = leaves_below(WORDNET["split_subgraphs"]["TEST"])
  assert below["animal"] == {"cat", "puppy", "wolf"}
  assert below["dog"] == {"puppy", "wolf"}
  assert below["stone"] == {"stone"}
  assert leaves_below([node("a", "b"), node("b", "a")]) == {"a": set(), "b": set()}  # a circle


def test_families_of_each_kind_of_specification():
  found = read_hierarchy(ALPHABETS, "TRAIN", range(0, 34))
  assert found == Hierarchy((tuple(range(14)), tuple(range(14, 34))), whole=False)
  assert read_hierarchy(ALPHABETS, "TEST", range(39, 46)).families == (tuple(range(7)),)
  found = read_hierarchy(WORDNET, "TEST", range(3, 7))
  # In the order of the nodes' names: animal, dog, pet.
  assert found == Hierarchy(((0, 1, 3), (0, 3), (1, 3)), whole=True)
  assert read_hierarchy({"classes_per_split": {}}, "TEST", range(5)) is None


def test_families_that_can_fill_a_task():
  hierarchy = Hierarchy(((0, 1, 2), (2, 3), (4, 5, 6)), whole=True)
  found = eligible(hierarchy, np.array([0, 1, 2, 3, 5]), 2)
  assert [family.tolist() for family in found] == [[0, 1, 2], [2, 3]]
  with pytest.raises(ValueError, match="no family .* 4 classes"):
    eligible(hierarchy, np.arange(7), 4)


LABELS = np.repeat(np.arange(80, dtype=np.int32), 6)
RULE = tasks.Rule(min_ways=3, max_ways=10)
FAMILIES = (tuple(range(4)), tuple(range(4, 30)), (40, 41), tuple(range(30, 37)))


def draw(hierarchy, rule=RULE, count=300):
  return [
    set(tasks.sample_task(LABELS, seed=0, number=n, rule=rule, hierarchy=hierarchy).classes)
    for n in range(count)
  ]


@pytest.mark.parametrize("whole", [True, False])
def test_a_task_is_of_one_family(whole):
  usable = [set(family) for family in FAMILIES if len(family) >= 3]
  sizes = [set() for _ in usable]
  counts = np.zeros(3)
  for classes in draw(Hierarchy(FAMILIES, whole)):
    (of,) = (n for n, family in enumerate(usable) if classes <= family)
    counts[of] += 1
    sizes[of].add(len(classes))
  assert (counts > 70).all()  # each family as often, whatever its size
  assert sizes == ([{4}, {10}, {7}] if whole else [{3, 4}, set(range(3, 11)), {3, 4, 5, 6, 7}])


def test_tasks_of_given_ways_and_of_no_hierarchy_are_of_all_classes():
  five = tasks.RULES["5_way_1_shot"]
  assert draw(Hierarchy(FAMILIES, True), five, 20) == draw(None, five, 20)
  assert len(set().union(*draw(None))) == 80


def test_a_hierarchy_without_a_family_for_a_task_is_refused_before_any_is_drawn():
  names = [str(n) for n in range(80)]
  narrow = Hierarchy(((0, 1), (2, 3)), True)
  with pytest.raises(ValueError, match="birds: no family"):
    tasks.check_rule("birds", LABELS, names, RULE, narrow)
  tasks.check_rule("birds", LABELS, names, tasks.Fixed(5, 1, 1), narrow)
  tasks.check_rule("birds", LABELS, names, RULE, Hierarchy(FAMILIES, True))
