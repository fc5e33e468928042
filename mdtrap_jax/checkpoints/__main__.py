"""`python -m mdtrap_jax.checkpoints inspect PATH…` says what checkpoints are."""

from __future__ import annotations

import argparse
import collections
import sys
import warnings

from mdtrap_jax.checkpoints.inspect import inspect


def main(arguments: list[str] | None = None) -> int:
  """Prints one report a checkpoint; returns 1 if any of them cannot be used."""
  parser = argparse.ArgumentParser(
    prog="python -m mdtrap_jax.checkpoints", description="Says what checkpoints are."
  )
  commands = parser.add_subparsers(dest="command", required=True)
  command = commands.add_parser("inspect", help="family, size, layout, precision, problems")
  command.add_argument("paths", nargs="+", help="file, folder, named size or hub name")
  options = parser.parse_args(arguments)
  usable = True
  for path in options.paths:
    print(path)
    try:
      with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = inspect(path)
    except (OSError, ValueError) as error:
      print(f"  unusable    {error}")
      usable = False
      continue
    for name, value in report.lines():
      print(f"  {name:<11} {value}")
    for message, _ in collections.Counter(str(w.message) for w in caught).items():
      print(f"  note        {message}")
    usable &= not report.problems
  return 0 if usable else 1


if __name__ == "__main__":
  sys.exit(main())
