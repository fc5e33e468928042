"""Runs an experiment: `python main.py --config=configs/chestx.py --workdir=runs/chestx`.

The same command again resumes it. `--config=FILE:METHOD` picks a method, and any field of the
config can be set, as in `--config.data.shots=5`; configs/default.py lists them all.
"""

import os
import sys
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from mdtrap_jax import experiments
from mdtrap_jax.run import hosts, parallel, stop

config_flags.DEFINE_config_file(
  "config", None, "What to run: a file of configs/, maybe with :METHOD.", lock_config=True
)
flags.DEFINE_string("workdir", None, "Directory of the run's files; made, or resumed.")
flags.DEFINE_bool(
  "distributed",
  False,
  "Share the run with the other processes that run this "
  "same command: on all hosts of a TPU pod, or under Slurm.",
)
flags.DEFINE_string("coordinator", None, "host:port of process 0, elsewhere.")
flags.DEFINE_integer("num_processes", None, "How many processes there are, elsewhere.")
flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0, elsewhere.")
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


def keep_compiled_programs():
  """Compiled programs outlive the run; JAX_COMPILATION_CACHE_DIR says where, "" not at all."""
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(caches / "mdtrap_jax" / "programs"))


def main(argv):
  """Runs what the flags say and prints its table."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}: fields are set as --config.NAME=….")
  logging.set_verbosity(logging.WARNING)
  keep_compiled_programs()
  parallel.use_cpu_cores()
  values = flags.FLAGS
  try:
    here = hosts.place(
      values.coordinator, values.num_processes, values.process_id, detect=values.distributed
    )
    with stop.handled(), hosts.joined(here):
      table = experiments.run(values.config, values.workdir)
      if hosts.index() == 0:
        print(table)
        print(f"written to {values.workdir}")
  except (ValueError, OSError, MemoryError) as error:
    if values.traceback:
      raise
    sys.exit(f"error: {error}\n(--traceback shows where this was raised.)")


if __name__ == "__main__":
  app.run(main, flags_parser=parse_flags)
