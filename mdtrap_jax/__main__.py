"""The command line: `mdtrap COMMAND …` or `python -m mdtrap_jax COMMAND …`."""

from __future__ import annotations

import argparse
import difflib
import os
import shlex
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import NoReturn

from mdtrap_jax import buckets
from mdtrap_jax.classifier import options as classifier_options
from mdtrap_jax.run import stop
from mdtrap_jax.sweep import commands as sweep_commands

USAGE = 2  # exit code, beside 0 and 1
OVERRIDES = """\
Any field of the config can be set, as in --config.data.shots=5; --help-config lists them with
their values and meaning. The same command again resumes a run that was stopped."""


class Parser(argparse.ArgumentParser):
  """Says what is wrong in one line."""

  def __init__(self, **options):
    super().__init__(
      allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options
    )

  def error(self, message: str) -> NoReturn:
    """Ends the program."""
    self.exit(USAGE, f"error: {message} ({self.prog} --help lists what there is).\n")


def make_parser() -> Parser:
  """All commands; each names in `action` the function that does it."""
  parser = Parser(
    prog="mdtrap",
    description="Cross-domain few-shot learning with vision-language models.",
    epilog="`mdtrap COMMAND --help` says more. First try: mdtrap run --config=demo "
    "--workdir=runs/demo",
  )
  parser.add_argument("--version", action="store_true", help="print the version")
  commands = parser.add_subparsers(metavar="COMMAND", parser_class=Parser)

  def add(name: str, action: Callable[..., int], purpose: str, epilog: str | None = None):
    command = commands.add_parser(name, help=purpose, description=purpose, epilog=epilog)
    command.set_defaults(action=action, takes_fields=False, prog=f"mdtrap {name}")
    return command

  for name, config, purpose in (
    ("run", None, "run the experiment of a config, or go on with it"),
    ("pretrain", "miniature", "pretrain the small model that comes with the library"),
  ):
    command = add(name, run, purpose, OVERRIDES)
    command.set_defaults(takes_fields=True)
    command.add_argument(
      "--config", required=config is None, default=config, metavar="FILE[:METHOD]",
      help="what to run: a file, or the name of a config that comes with the library "
      "(`mdtrap config` lists them)" + (f"; {config} if not given" if config else ""),
    )  # fmt: skip
    command.add_argument("--workdir", metavar="DIR", help="of the run's files; made, or resumed")
    command.add_argument(
      "--help-config", action="store_true", help="print every field of the config and end"
    )
    command.add_argument(
      "--distributed", action="store_true",
      help="share the run with the other processes that run this same command: on all hosts of "
      "a TPU pod, or under Slurm",
    )  # fmt: skip
    command.add_argument("--coordinator", metavar="HOST:PORT", help="elsewhere: of process 0")
    command.add_argument("--num_processes", type=int, metavar="N", help="elsewhere: how many")
    command.add_argument("--process_id", type=int, metavar="I", help="elsewhere: this one, from 0")
    command.add_argument(
      "--traceback", action="store_true", help="show where in the code an error was raised"
    )

  classifier_options.add(add)
  sweep_commands.add(add)

  command = add("compare", compare, "compare runs, pair by pair on their common episodes")
  command.add_argument("paths", nargs="+", metavar="DIR", help="work directories of runs")
  command.add_argument("--format", choices=("text", "markdown", "csv"), default="text")

  command = add("compact", compact, "make one object of the parts of a run in a bucket")
  command.add_argument("path", metavar="RUN", help="gs://… or s3://…: its work directory")

  command = add("analyze", analyze, "say what adaptation did to images, texts and gradients")
  command.add_argument("run", metavar="RUN", help="work directory of a run, or of several")
  command.add_argument("--out", required=True, metavar="DIR", help="where numbers and figures go")
  command.add_argument(
    "--episodes", type=int, default=8, metavar="N",
    help="of each run, adapted again; %(default)s if not given",
  )  # fmt: skip
  command.add_argument(
    "--map", choices=("pca", "umap"), default="pca", help="of images and texts in a plane"
  )
  command.add_argument("--force", action="store_true", help="write into a folder that is not empty")

  command = add(
    "report",
    report,
    "show what runs with --config.predictions got right: confusion, calibration, classes",
  )
  command.add_argument("paths", nargs="+", metavar="DIR", help="work directories of runs")
  command.add_argument(
    "--out", metavar="DIR", help="where the report goes; `report` in each run if not given"
  )
  command.add_argument("--force", action="store_true", help="write into a folder that is not empty")

  command = add(
    "prepare", prepare, "write a target domain to disk, once",
    "isic and chestx read the unpacked official release in --manual_dir; eurosat and cropdisease\n"
    "download it, or read its class folders in --manual_dir if given. The eleven data sets of\n"
    "few-shot classification, fsl/NAME, are read in place: it says where to get one, and checks\n"
    "what is in --manual_dir.",
  )  # fmt: skip
  command.add_argument("name", help="isic, chestx, eurosat, cropdisease, or fsl/oxford_pets, …")
  command.add_argument("--data_dir", help="where to write; TFDS's default folder if not given")
  command.add_argument("--manual_dir", help="folder of the official release, unpacked")

  command = add("inspect", inspect, "say what checkpoints are and what is wrong with them")
  command.add_argument("paths", nargs="+", metavar="PATH", help="file, folder, size or hub name")

  command = add("config", show_config, "print every field of a config, or the configs there are")
  command.set_defaults(takes_fields=True)
  command.add_argument("config", nargs="?", metavar="FILE[:METHOD]")

  add("models", show_models, "list the named sizes of models")
  return parser


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs one command; returns the exit code.

  Input errors are one line on standard error, with code 1; signals are too, see `run.stop`.
  """
  for stream in (sys.stdout, sys.stderr):
    if hasattr(stream, "reconfigure"):
      stream.reconfigure(errors="replace")  # a terminal without "±" must not end a long run
  options = None
  try:
    with stop.handled():
      options = _parse(sys.argv[1:] if arguments is None else arguments)
      code = options.action(options)
      sys.stdout.flush()
      return code
  except BrokenPipeError:  # the reader of a pipe has enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
  except Exception as error:
    line = _explain(error)
    if line is None or getattr(options, "traceback", False):
      raise
    return _end(f"error: {' '.join(line.split())}", 1)


def _explain(error: Exception) -> str | None:
  """What to say of an error that the user can repair; nothing of one that is ours."""
  if "RESOURCE_EXHAUSTED" in str(error) or (isinstance(error, MemoryError) and not str(error)):
    return (
      "out of memory: lower config.episodes_per_device, config.adapt.chunk or the model's size."
    )
  if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("mdtrap_jax"):
    return f"{error}; install it with pip."
  return str(error) if isinstance(error, ValueError | OSError | MemoryError) else None


def _end(line: str, code: int) -> int:
  print(line, file=sys.stderr, flush=True)
  return code


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
  """The options of a command; `options.fields` are the config's fields that were set."""
  parser = make_parser()
  options, rest = parser.parse_known_args(arguments)
  options.command = shlex.join(["mdtrap", *arguments])  # for reports that say how they were made
  if options.version:
    options.action = show_version
  elif not hasattr(options, "action"):
    parser.error("give a command, such as run")
  options.fields = []
  while rest:
    token = rest.pop(0)
    flag, given, text = token.partition("=")
    if not (flag.startswith("--config.") and options.takes_fields):
      _refuse(parser, options, token)
    if not given:  # `--config.FIELD VALUE`, or a flag alone: true
      text = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
    options.fields.append((flag.removeprefix("--config."), text))
  return options


def _refuse(parser: Parser, options: argparse.Namespace, token: str) -> NoReturn:
  """Ends the program because of an argument that no command takes."""
  parser.prog = getattr(options, "prog", parser.prog)
  flag = token.partition("=")[0]
  if not flag.startswith("--"):
    parser.error(f"unexpected argument {token!r}; fields are set as --config.NAME=VALUE")
  known = {name.replace("_", "-"): name for name in vars(options)}
  close = difflib.get_close_matches(flag[2:].replace("_", "-"), known, 1)
  meant = f"; did you mean --{known[close[0]]}?" if close else ""
  parser.error(f"unknown flag {flag}{meant}")


def run(options: argparse.Namespace) -> int:
  """`mdtrap run`: checks, runs, prints the table."""
  from mdtrap_jax import config as settings
  from mdtrap_jax.config import loading

  if options.help_config:
    return show_config(options)
  if not options.workdir:
    return _end("error: --workdir=DIR is missing: where the run's files go.", USAGE)
  buckets.is_bucket(options.workdir)  # another kind of store is refused now
  config = settings.resolve(loading.load(options.config, options.fields))

  import jax
  from absl import logging

  from mdtrap_jax import experiments, files
  from mdtrap_jax.run import devices, hosts

  logging.use_absl_handler()
  logging.set_verbosity(logging.WARNING)
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # "" there: not kept
    jax.config.update("jax_compilation_cache_dir", str(files.cache_directory() / "programs"))
  devices.use_cpu_cores()
  here = hosts.place(
    options.coordinator, options.num_processes, options.process_id, detect=options.distributed
  )
  with hosts.joined(here):
    table = experiments.run(config, options.workdir)
    if hosts.index() == 0:
      print(f"{table}\nwritten to {options.workdir}", flush=True)
  return 0


def compare(options: argparse.Namespace) -> int:
  """`mdtrap compare`."""
  from mdtrap_jax.report import agreement, comparison, tables

  paths = comparison.find_runs(options.paths)
  print(comparison.FORMATS[options.format](comparison.compare(paths)))
  if options.format != "csv" and (known := agreement.table(paths, getattr(tables, options.format))):
    print(f"\n{known}")
  return 0


def compact(options: argparse.Namespace) -> int:
  """`mdtrap compact`."""
  from mdtrap_jax.run import store

  if not buckets.is_bucket(options.path):
    raise ValueError(f"{options.path}: runs on a disk have no parts; give gs://… or s3://….")
  print(f"{store.compact(options.path)} parts of {options.path} became whole.")
  return 0


def report(options: argparse.Namespace) -> int:
  """`mdtrap report`."""
  from mdtrap_jax.report import runs

  for text in runs.write(options.paths, options.out, options.force):
    print(text)
  return 0


def analyze(options: argparse.Namespace) -> int:
  """`mdtrap analyze`."""
  from mdtrap_jax.analysis import command

  return command.analyze(options)


def prepare(options: argparse.Namespace) -> int:
  """`mdtrap prepare`."""
  from mdtrap_jax.data import prepare as module
  from mdtrap_jax.data.releases import RELEASES, check_release

  releases = {f"fsl/{name}": name for name in RELEASES}
  if options.name in releases:
    print(check_release(releases[options.name], options.manual_dir or ""))
    return 0
  if options.name not in module.TARGETS:
    known = ", ".join([*sorted(module.TARGETS), *releases])
    raise ValueError(f"prepare {options.name}: choose one of {known}.")
  home = lambda path: path and os.path.expanduser(path)
  print(f"Prepared {module.prepare(options.name, home(options.data_dir), options.manual_dir)}")
  return 0


def inspect(options: argparse.Namespace) -> int:
  """`mdtrap inspect`: 1 if any of the checkpoints cannot be used."""
  from mdtrap_jax.checkpoints.__main__ import main as report

  return report(["inspect", *map(os.path.expanduser, options.paths)])


def show_config(options: argparse.Namespace) -> int:
  """`mdtrap config` and `mdtrap run --help-config`."""
  from mdtrap_jax.config import loading

  if options.config is None:
    for name, path in loading.packaged().items():
      print(f"{name:<12} {loading.purpose(path)}")
    return 0
  for name, value, comment in loading.fields(options.config, options.fields):
    shown = value if isinstance(value, str) else repr(value)
    print(f"--config.{name}={shown}")
    print(textwrap.fill(comment, 96, initial_indent="    ", subsequent_indent="    "))
  return 0


def show_models(options: argparse.Namespace) -> int:
  """`mdtrap models`."""
  del options
  from mdtrap_jax import models

  tower = lambda part: f"{part.depth} × {part.width}"
  rows = [("name", "family", "image", "patch", "vision blocks", "text blocks", "embedding")] + [
    (
      name, size.family, f"{size.image.image_size} px", f"{size.image.patch_size} px",
      tower(size.image), tower(size.text), str(size.image.embed_dim),
    )
    for name, size in models.MODELS.items()
  ]  # fmt: skip
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  for row in rows:
    print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
  return 0


def show_version(options: argparse.Namespace) -> int:
  """`mdtrap --version`."""
  del options
  from mdtrap_jax import __version__

  print(__version__)
  return 0


if __name__ == "__main__":
  sys.exit(main())
