"""Images a second from files to probabilities, beside the encoder alone on decoded images.

`python -m benchmarks.predict [--model=clip-vit-b16] [--images=96]` writes JPEG files of the size
that ISIC's have and classifies them by a zero-shot classifier of random weights, file by file as
`mdtrap predict` does and from memory, turn by turn. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks.pipeline import write_images
from mdtrap_jax import FewShotClassifier
from mdtrap_jax.data import labeled
from mdtrap_jax.data.folder_source import FolderSource
from mdtrap_jax.run import devices


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--model", default="clip-vit-b16")
  parser.add_argument("--images", type=int, default=96)
  parser.add_argument("--batch_size", type=int, default=16)
  parser.add_argument("--turns", type=int, default=3)
  arguments = parser.parse_args()
  devices.use_cpu_cores()
  with tempfile.TemporaryDirectory() as folder:
    write_images(Path(folder))
    paths = FolderSource(folder).paths
    paths = [paths[number % len(paths)] for number in range(arguments.images)]
    config = {"model.random_weights": True, "model.batch_size": arguments.batch_size}
    own = FewShotClassifier(arguments.model, "zero_shot", config=config)
    own.fit(np.zeros((2, 8, 8, 3), np.uint8), ["a", "b"])  # compiles what both measure
    setting = own._setting
    pixels = labeled.decode_all(paths, setting.preprocessing)
    rates = {"encoder": [], "predict": []}
    for _ in range(arguments.turns):
      for name, run in (
        ("encoder", lambda: setting.cosines(own._fitted, pixels)),
        ("predict", lambda: list(own.stream(paths))),
      ):
        started = time.perf_counter()
        run()
        rates[name].append(len(paths) / (time.perf_counter() - started))
  found = {name: statistics.median(values) for name, values in rates.items()}
  report = {
    "model": arguments.model,
    "device": jax.local_devices()[0].device_kind,
    "cores": devices.cpu_cores(),
    "images": len(paths),
    "images_per_second": {name: round(rate, 2) for name, rate in found.items()},
    "ratio": round(found["predict"] / found["encoder"], 3),
  }
  json.dump(report, sys.stdout, indent=2)
  print()


if __name__ == "__main__":
  main()
