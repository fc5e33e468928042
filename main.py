"""Runs an experiment: `python main.py --config=configs/chestx.py --workdir=runs/chestx`.

The same command again resumes it. `--config=FILE:METHOD` picks a method, and any field of the
config can be set, as in `--config.data.shots=5`.
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

from mdtrap_jax import results, runner

config_flags.DEFINE_config_file(
    "config", None, "What to run: a file of configs/, maybe with :METHOD.", lock_config=True)
flags.DEFINE_string("workdir", None, "Directory of the run's files; made, or resumed.")
flags.DEFINE_bool("traceback", False, "Show where in the code an input error was raised.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}: fields are set as --config.NAME=….")
  logging.set_verbosity(logging.WARNING)
  try:
    summary = runner.run(flags.FLAGS.config, flags.FLAGS.workdir)
  except (ValueError, OSError, MemoryError) as error:
    if flags.FLAGS.traceback:
      raise
    sys.exit(f"error: {error}\n(--traceback shows where this was raised.)")
  print(results.format_summary(summary))
  print(f"written to {flags.FLAGS.workdir}")


if __name__ == "__main__":
  app.run(main)
