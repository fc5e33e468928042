"""Reading what runs left: the lines of `episodes.jsonl` and the objects of other JSON files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mdtrap_jax.run import store


def read_episodes(path: str | Path) -> list[dict[str, Any]]:
  """The complete lines of a run's `episodes.jsonl`, by episode number, each once.

  Args:
    path: the work directory, or one's in a bucket.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a line is no episode, or one stands there twice with different results.
  """
  file = store.readable(path) / "episodes.jsonl"
  if not file.is_file():
    raise FileNotFoundError(f"{file} does not exist: is {path} the --workdir of a run?")
  with open(file, "rb") as opened:
    lines, _ = parse_episodes(opened, file)
  return [line for _, line in sorted(lines.items())]


def parse_episodes(
  raws: Iterable[bytes], name: str | Path
) -> tuple[dict[int, dict[str, Any]], int]:
  """Episodes by number, and how many bytes their lines take.

  A last line without its end is what a kill leaves, and is passed over.

  Args:
    raws: lines of the file.
    name: of the file, for messages.

  Raises:
    ValueError: names file and line of what is no episode.
  """
  lines: dict[int, dict[str, Any]] = {}
  good = 0
  for number, raw in enumerate(raws, 1):
    if not raw.endswith(b"\n"):
      break
    good += len(raw)
    line = _parse(raw, f"{name}, line {number},")
    if reason := _fault(line):
      raise ValueError(
        f"{name}, line {number}, is no episode ({reason}): remove the line to run "
        "its episode again."
      )
    if lines.setdefault(line["episode"], line) != line:
      raise ValueError(
        f"{name}, line {number}: episode {line['episode']} stands there twice with different "
        "results: remove one of the lines."
      )
  return lines, good


def read_object(path: str | Path) -> dict[str, Any]:
  """The object in a JSON file of a run, `config.json` or `summary.json`.

  Raises:
    OSError: it cannot be read.
    ValueError: it holds something else.
  """
  if Path(path).exists() and not Path(path).is_file():  # a pipe would never end
    raise OSError(f"{path} is no plain file: restore or remove it.")
  return parse_object(Path(path).read_bytes(), path)


def parse_object(text: bytes, name: str | Path) -> dict[str, Any]:
  """`read_object` of a text.

  Raises:
    ValueError: it is no object.
  """
  value = _parse(text, f"{name}")
  if not isinstance(value, dict):
    raise ValueError(
      f"{name} is damaged (a {type(value).__name__}, no object): restore or remove it."
    )
  return value


def _parse(text: bytes, where: str) -> Any:
  try:
    return json.loads(text)
  except RecursionError as error:
    raise ValueError(f"{where} is damaged (nested too deep): restore or remove it.") from error
  except ValueError as error:
    reason = str(error).splitlines()[0]
    raise ValueError(f"{where} is damaged ({reason}): restore or remove it.") from error


def _whole(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _fraction(value: Any) -> bool:
  return _number(value) and 0 <= value <= 1


def _texts(value: Any) -> bool:
  return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _term_values(value: Any) -> bool:
  return isinstance(value, dict) and all(
    isinstance(kinds, dict)
    and all(
      isinstance(numbers, list) and all(n is None or _number(n) for n in numbers)
      for numbers in kinds.values()
    )
    for kinds in value.values()
  )


# Fields that a line may have, what they are, and when; others are kept as they are.
_FIELDS = {
  "zero_shot_accuracy": (_fraction, "a number from 0 to 1"),
  "ncc_accuracy_before": (_fraction, "a number from 0 to 1"),
  "gap_before": (_number, "a number"),
  "gap_after": (_number, "a number"),
  "seed": (_whole, "a whole number"),
  "task": (_whole, "a whole number"),
  "domain": (lambda value: isinstance(value, str), "a text"),
  "class_names": (_texts, "a list of names"),
  "support": (lambda value: isinstance(value, list), "a list"),
  "query": (lambda value: isinstance(value, list), "a list"),
  "losses": (lambda value: isinstance(value, dict), "an object"),
  "terms": (_term_values, "numbers by term and kind"),
}


def _fault(line: Any) -> str | None:
  """What keeps a value from being an episode's line."""
  if not isinstance(line, dict):
    return f"{repr(line)[:40]} is no object"
  if not _whole(line.get("episode")):
    return "`episode` must be a whole number"
  if not isinstance(line.get("status"), str):
    return "`status` must be a text"
  if line["status"] == "ok" and not _fraction(line.get("accuracy")):
    return "`accuracy` must be a number from 0 to 1"
  marks = line.get("accuracy_at", {})
  if not isinstance(marks, dict) or not all(v is None or _fraction(v) for v in marks.values()):
    return "`accuracy_at` must be accuracies by step"
  for field, (right, what) in _FIELDS.items():
    if line.get(field) is not None and not right(line[field]):
      return f"`{field}` must be {what}"
  return None
