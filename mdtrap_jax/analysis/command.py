"""`mdtrap analyze RUN --out=DIR`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from absl import logging
from tqdm import tqdm

from mdtrap_jax import files
from mdtrap_jax.analysis import output, projection
from mdtrap_jax.analysis.readapt import open_run, readapt, terms_of
from mdtrap_jax.analysis.summary import summarize
from mdtrap_jax.report import comparison
from mdtrap_jax.run import devices, store


def analyze(options: argparse.Namespace) -> int:
  """Adapts some episodes of each run again; writes numbers and figures, prints a table."""
  import jax

  out = Path(options.out).expanduser()
  if out.exists() and (not out.is_dir() or any(out.iterdir())) and not options.force:
    raise FileExistsError(f"{out} is not empty; give another folder, or --force.")
  if options.episodes < 1:
    raise ValueError(f"--episodes={options.episodes}: must be at least 1.")
  if options.map == "umap":
    projection.require_umap()
  logging.use_absl_handler()
  logging.set_verbosity(logging.WARNING)
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # "" there: not kept
    jax.config.update("jax_compilation_cache_dir", str(files.cache_directory() / "programs"))
  devices.use_cpu_cores()
  top = store.readable(options.run)
  runs = {path: open_run(path) for path in comparison.find_runs([top])}
  results = {}
  for path, run in runs.items():
    relative = path.relative_to(top) if path != top else Path()
    count = min(options.episodes, len(run.lines))
    found = list(tqdm(readapt(run, count), total=count, desc=str(path), leave=False))
    summary = summarize(found, terms_of(run))
    folder = out / relative
    folder.mkdir(parents=True, exist_ok=True)
    output.write(folder, str(path), found, summary, options.map)
    results[str(relative)] = summary
    if summary.agreeing < summary.tasks:
      print(
        f"{path}: {summary.tasks - summary.agreeing} of {summary.tasks} episodes now have another "
        "accuracy than the run wrote; another machine or version rounds otherwise.",
        file=sys.stderr,
      )
  print(f"{output.format_text(results)}\nwritten to {options.out}")
  return 0
