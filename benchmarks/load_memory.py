"""Memory that loading a checkpoint takes beyond the weights themselves.

`python -m benchmarks.load_memory` writes a random checkpoint of a published size, loads it in a
process of its own, and prints one JSON object. TPU hosts are small: the bound is the weights
once in their final precision plus 20 %.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BOUND = 1.2
_STORED = ("float32", "float16", "bfloat16")


def write_checkpoint(folder: Path, name: str, dtype: str) -> None:
  """Writes a checkpoint of the named CLIP size with weights that are cheap to make."""
  import jax.numpy as jnp
  import numpy as np
  from flax import traverse_util

  from mdtrap_jax import checkpoints
  from mdtrap_jax.checkpoints.convert import parameter_shapes
  from mdtrap_jax.models import build

  model = build(name)
  rng = np.random.default_rng(0)
  flat = {
    path: rng.standard_normal(shape, np.float32) for path, shape in parameter_shapes(model).items()
  }
  params = traverse_util.unflatten_dict(flat, sep="/")
  checkpoints.save(folder, model, params, dtype=jnp.dtype(dtype))


def measure(folder: str, dtype: str) -> dict[str, float]:
  """Loads a checkpoint; peak memory of this process above what it had before."""
  import jax
  import jax.numpy as jnp

  from mdtrap_jax import checkpoints
  from mdtrap_jax.models import build

  jax.block_until_ready(jnp.zeros(8))  # the backend's own memory is not the loader's
  jax.eval_shape(build("clip-tiny").init, jax.random.key(0))
  before, start = _memory("VmRSS"), time.perf_counter()
  _, params = checkpoints.load(folder, dtype=jnp.dtype(dtype), tokenize=lambda texts: None)
  jax.block_until_ready(params)
  seconds = time.perf_counter() - start
  weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  peak = _memory("VmHWM") - before
  return {
    "weights_bytes": weights,
    "peak_bytes": peak,
    "ratio": peak / weights,
    "bound": BOUND,
    "seconds": seconds,
    "device": jax.devices()[0].device_kind,
  }


def _memory(field: str) -> int:
  """A field of this process's status, in bytes (Linux)."""
  lines = Path("/proc/self/status").read_text().splitlines()
  return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def main() -> int:
  """Returns 1 if the bound is exceeded."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--model", default="clip-vit-l14", help="a named CLIP size")
  parser.add_argument("--stored", default="float32", choices=_STORED)
  parser.add_argument("--loaded", default="float32", choices=_STORED)
  parser.add_argument("--folder", help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.folder:
    print(json.dumps(measure(options.folder, options.loaded)))
    return 0
  with tempfile.TemporaryDirectory() as folder:
    write_checkpoint(Path(folder), options.model, options.stored)
    command = [
      sys.executable,
      "-m",
      "benchmarks.load_memory",
      "--folder",
      folder,
      "--loaded",
      options.loaded,
    ]
    output = subprocess.run(
      command, check=True, capture_output=True, text=True, env=dict(os.environ)
    ).stdout
  result = {
    "model": options.model,
    "stored": options.stored,
    "loaded": options.loaded,
    **json.loads(output.splitlines()[-1]),
  }
  print(json.dumps(result))
  return int(result["ratio"] > BOUND)


if __name__ == "__main__":
  sys.exit(main())
