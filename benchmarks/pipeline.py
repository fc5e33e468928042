"""Images a second that the loader decodes, beside what the adaptation consumes.

`python -m benchmarks.pipeline [--episode_seconds 60]` writes JPEG files of the size that ISIC's
have, loads episodes of them without a cache, and prints one JSON object. The seconds that an
episode takes come from `benchmarks.throughput` on the same machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from mdtrap_jax.data.loader import episode_loader, task_batches
from mdtrap_jax.data.sources import FolderSource
from mdtrap_jax.data.task import all_tasks

WIDTH, HEIGHT, CLASSES, PER_CLASS = 600, 450, 5, 24
WAYS, SHOTS, QUERIES, SIZE = 5, 1, 15, 224
ENOUGH = 3.0  # times what is consumed


def write_images(folder: Path) -> None:
  """Smooth noise, so that the files have a photograph's size."""
  rng = np.random.default_rng(0)
  for label in range(CLASSES):
    (folder / f"class {label}").mkdir()
    for number in range(PER_CLASS):
      coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8))
      image = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.int16)
      noisy = image + rng.integers(-12, 13, image.shape, np.int16)
      Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(
        folder / f"class {label}" / f"{number}.jpg", quality=90
      )


def main() -> None:
  """Loads for a few seconds and prints."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--episodes", type=int, default=30)
  parser.add_argument("--threads", type=int, default=2)
  parser.add_argument("--episode_seconds", type=float, help="that adapting an episode takes")
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    write_images(Path(folder))
    load = episode_loader(FolderSource(folder), ways=WAYS, shots=SHOTS, queries=QUERIES, size=SIZE)
    tasks = all_tasks(("",), (0,), arguments.episodes)
    batches = task_batches(load, tasks, 2, threads=arguments.threads)
    started = time.perf_counter()
    images = sum(
      batch.tasks.support_labels.size + batch.tasks.query_labels.size for batch in batches
    )
    rate = images / (time.perf_counter() - started)
  report = {
    "images_per_second": rate,
    "threads": arguments.threads,
    "file": f"JPEG {WIDTH}×{HEIGHT}",
    "size": SIZE,
  }
  if arguments.episode_seconds:
    consumed = WAYS * (SHOTS + QUERIES) / arguments.episode_seconds
    report |= {
      "consumed_per_second": consumed,
      "ratio": rate / consumed,
      "enough": rate >= ENOUGH * consumed,
    }
  print(
    json.dumps(
      report | {"command": "python -m benchmarks.pipeline " + " ".join(sys.argv[1:])}, indent=2
    )
  )


if __name__ == "__main__":
  main()
