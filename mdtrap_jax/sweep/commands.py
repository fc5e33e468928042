"""`mdtrap sweep`: its options, and what it does with them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

_EPILOG = """\
The cells are all combinations of what the config lists; each is one `mdtrap run` in a folder of
its own below DIR. A field of every cell is set as in --config.episodes=10, one of the sweep as in
--config.sweep.shots="(1,5)". The same command again resumes; on several machines or GPUs at once,
with one DIR, each takes cells that nobody has."""


def add(make_command: Callable[..., argparse.ArgumentParser]) -> None:
  """Adds the command to the program's parser."""
  command = make_command("sweep", sweep, "run a table of configs, or go on with it", _EPILOG)
  command.set_defaults(takes_fields=True)
  command.add_argument(
    "config", metavar="FILE[:TABLE]",
    help="of the sweep: a file, or sweep_paper, sweep_fsl or sweep_comparison, of the library",
  )  # fmt: skip
  command.add_argument("--workdir", required=True, metavar="DIR", help="of all the cells' runs")
  command.add_argument("--part", metavar="I/N", help="the I-th of N jobs: every N-th cell, from I")
  command.add_argument("--status", action="store_true", help="say how far the cells are, and end")
  command.add_argument(
    "--table", choices=("markdown", "csv", "latex"), help="print what there is, and end"
  )


def sweep(options: argparse.Namespace) -> int:
  """Runs cells, or says how far they are; 1 if any failed."""
  from mdtrap_jax.sweep import cells as cell_lists
  from mdtrap_jax.sweep import launch, state, table
  from mdtrap_jax.sweep import place as places

  cells = cell_lists.load(options.config, options.fields)
  references = cell_lists.references(options.config, options.fields)
  if options.status or options.table:
    place = places.found(options.workdir)
    if options.status:
      print(state.table(place, cells))
    else:
      print(table.FORMATS[options.table](table.entries(place.runs(), cells, references)))
    return 0
  mine = cell_lists.part(cells, options.part) if options.part else cells
  place = places.claimed(options.workdir)
  failed = launch.run(mine, place)
  found = table.entries(place.runs(), cells, references)
  print(f"{table.format_markdown(found)}\nwritten to {table.write(place, found)}", flush=True)
  if failed:
    some = f"{len(failed)} of {len(mine)} cells failed: {', '.join(failed)}"
    print(f"error: {some}; mdtrap sweep … --status says why.", file=sys.stderr, flush=True)
  return bool(failed)
