"""What a work directory in a bucket costs: seconds and requests, beside one on a disk.

  python -m benchmarks.bucket [--episodes=16] [--steps=10] [--delay=0.05]

The bucket is `fake-gcs-server` on this machine behind a proxy that counts, and delays each request.
The run is the demo's with the digits and a tiny model of random weights, two episodes a device at
once; its programs are compiled before.
"""

import argparse
import json
import os
import statistics
import tempfile
import time

from mdtrap_jax import experiments
from mdtrap_jax.config import loading
from mdtrap_jax.run import devices
from tests.stores import google_store


def main() -> None:
  """Prints one JSON object."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--episodes", type=int, default=16)
  parser.add_argument("--steps", type=int, default=10)
  parser.add_argument("--delay", type=float, default=0.0, help="seconds added to each request")
  parser.add_argument("--turns", type=int, default=3, help="of each; the median counts")
  options = parser.parse_args()
  devices.use_cpu_cores()
  config = loading.load("demo")
  config.update_from_flattened_dict(
    {
      "data.name": "digits",
      "model.name": "clip-tiny",
      "model.random_weights": True,
      "adapt.steps": options.steps,
      "episodes": options.episodes,
      "episodes_per_device": 2,
    }
  )

  def seconds(workdir: str) -> float:
    before = time.monotonic()
    experiments.run(config, workdir)
    return time.monotonic() - before

  disk, bucket, requests = [], [], []
  with google_store() as store, tempfile.TemporaryDirectory() as folder:
    os.environ.update(store.environment)
    seconds(f"{folder}/warm")
    for turn in range(options.turns):
      disk.append(seconds(f"{folder}/{turn}"))
      store.proxy.fault = lambda request: options.delay or None
      store.proxy.requests.clear()
      bucket.append(seconds(store.url()))
      requests.append(len(store.proxy.requests))
  print(
    json.dumps(
      {
        "episodes": options.episodes,
        "steps": options.steps,
        "delay_s": options.delay,
        "disk_s": round(statistics.median(disk), 2),
        "bucket_s": round(statistics.median(bucket), 2),
        "requests": statistics.median(requests),
      },
      indent=2,
    )
  )


if __name__ == "__main__":
  main()
