"""Lines of `episodes.jsonl` that are episodes, and those that are not."""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdtrap_jax.run import lines

FINE = {
  "episode": 3,
  "status": "ok",
  "accuracy": 1,
  "accuracy_at": {"5": 0.5},
  "zero_shot_accuracy": 0.25,
  "class_names": ["a"],
  "support": [[1]],
  "query": [[2]],
  "losses": {},
  "domain": "x",
  "seed": 1,
  "task": 0,
  "gap_before": 0.1,
  "gap_after": None,
}


def parse(*rows):
  return lines.parse_episodes([json.dumps(row).encode() + b"\n" for row in rows], "DIR/file")[0]


def test_what_runs_write_is_read_back():
  failed = {"episode": 4, "status": "non-finite", "accuracy": None}
  assert parse(FINE, failed) == {3: FINE, 4: failed}


@pytest.mark.parametrize(
  "row",
  [
    5, [], "x", None, {},
    *({k: v for k, v in FINE.items() if k != field} for field in ("episode", "status", "accuracy")),
    *(FINE | change for change in [
      {"episode": -1}, {"episode": True}, {"episode": "3"}, {"status": 1}, {"accuracy": "0.5"},
      {"accuracy": None}, {"accuracy": 1.5}, {"accuracy": True}, {"accuracy_at": 3},
      {"accuracy_at": {"5": "x"}}, {"zero_shot_accuracy": "x"}, {"class_names": "crow"},
      {"class_names": [1]}, {"support": 3}, {"domain": 1}, {"seed": "x"}, {"losses": []},
    ]),
  ],
)  # fmt: skip
def test_a_line_that_is_no_episode_is_named(row):
  with pytest.raises(ValueError, match=r"^DIR/file, line 2, is no episode \(.*\): remove .*$"):
    parse(FINE, row)


@pytest.mark.parametrize("raw", [b"{\n", b"\xff\n", b"[" * 100_000 + b"\n", b"1" * 5000 + b"\n"])
def test_a_damaged_line_is_named(raw):
  with pytest.raises(ValueError, match=r"DIR/file, line 1, is damaged \(.*\)") as caught:
    lines.parse_episodes([raw], "DIR/file")
  assert "\n" not in str(caught.value)


def test_infinite_accuracies_are_no_accuracies():
  with pytest.raises(ValueError, match="line 1, is no episode"):
    lines.parse_episodes([json.dumps(FINE | {"accuracy": float("nan")}).encode() + b"\n"], "f")


def test_a_repeated_line_counts_once_and_a_contradiction_is_named():
  assert parse(FINE, FINE) == {3: FINE}
  with pytest.raises(ValueError, match="DIR/file, line 3: episode 3 stands there twice"):
    parse(FINE, FINE | {"episode": 4}, FINE | {"accuracy": 0.5})


@settings(deadline=None)
@given(st.recursive(
  st.none() | st.booleans() | st.integers(0, 3) | st.floats() | st.text(max_size=3),
  lambda inner: st.lists(inner, max_size=2)
  | st.dictionaries(st.sampled_from([*FINE, "x"]), inner, max_size=4),
))  # fmt: skip
def test_whatever_a_line_holds_it_is_an_episode_or_one_message(row):
  try:
    message = ""
    (found,) = parse(row).values()
  except ValueError as error:
    message, found = str(error), {"episode": 0}
  assert not message or message.startswith("DIR/file, line 1, is no episode")
  assert "\n" not in message
  assert found["episode"] >= 0


def test_no_run_there(tmp_path):
  with pytest.raises(FileNotFoundError, match="is .* the --workdir of a run"):
    lines.read_episodes(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / "config.json")
  with pytest.raises(OSError, match=r"config\.json is no plain file"):
    lines.read_object(tmp_path / "config.json")
