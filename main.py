"""Runs an experiment: `python main.py --config=configs/chestx.py --workdir=runs/chestx`.

The same command again resumes it. `--config=FILE:METHOD` picks a method, and any field of the
config can be set, as in `--config.data.shots=5`; configs/default.py lists them all.
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

from mdtrap_jax import experiments

config_flags.DEFINE_config_file(
    "config", None, "What to run: a file of configs/, maybe with :METHOD.", lock_config=True)
flags.DEFINE_string("workdir", None, "Directory of the run's files; made, or resumed.")
flags.DEFINE_bool("traceback", False, "Show where in the code an input error was raised.")
flags.mark_flags_as_required(["config", "workdir"])


def parse_flags(argv):
  """Parses the command line; a mistake in it is one line and not a stack of calls."""
  try:
    return flags.FLAGS(argv)
  except (flags.Error, AttributeError) as error:
    lines = [line.strip() for line in str(error).strip().splitlines()]
    message = lines[-1] if "Traceback" in str(error) else " ".join(lines)
    field = "unknown config field " if isinstance(error, AttributeError) else ""
    sys.exit(f"error: {field}{message}\n(--help lists the flags.)")


def main(argv):
  """Runs what the flags say and prints its table."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}: fields are set as --config.NAME=….")
  logging.set_verbosity(logging.WARNING)
  try:
    table = experiments.run(flags.FLAGS.config, flags.FLAGS.workdir)
  except (ValueError, OSError, MemoryError) as error:
    if flags.FLAGS.traceback:
      raise
    sys.exit(f"error: {error}\n(--traceback shows where this was raised.)")
  print(table)
  print(f"written to {flags.FLAGS.workdir}")


if __name__ == "__main__":
  app.run(main, flags_parser=parse_flags)
