"""What devices there are, and how much memory they have."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import jax
from threadpoolctl import threadpool_limits

MEMORY_SHARE = 0.9  # of a device's memory that a batch of tasks may fill
CONTAINER = Path("/sys/fs/cgroup")  # what a container may use of its host, on Linux


def use_cpu_cores() -> None:
  """Makes every CPU core a device of its own; must come before JAX computes anything.

  A core with episodes of its own shares neither its caches nor the wait for the slowest thread
  of each small operation; `BENCHMARKS.md` says what that gains. How many of them a run uses,
  `place` decides. A number of devices that somebody asked for, by JAX's setting or XLA's flag,
  stays as it is, and accelerators do.
  """
  if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
    return
  if jax.config.jax_num_cpu_devices < 1:
    jax.config.update("jax_num_cpu_devices", cpu_cores())
  _settle_threads(max(cpu_cores(), jax.config.jax_num_cpu_devices))


def _settle_threads(devices: int) -> None:
  """Of LAPACK's routines (a Cholesky factor, a QR, eigenvalues), where cores are devices.

  XLA splits a batch of them over the pool in which the devices themselves compute, and waits there:
  with no more threads than devices all may wait for one, for ever (jaxlib 0.10.2). And scipy's
  OpenBLAS, which has the routines, takes all cores for each: a QR of 30 rows, 0.1 ms by one thread,
  took 10 on two busy cores.
  """
  if not {"NPROC", "PJRT_NPROC"} & os.environ.keys():
    os.environ["PJRT_NPROC"] = str(2 * devices)
  if "OPENBLAS_NUM_THREADS" not in os.environ:
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when it is loaded, at the first such routine
    threadpool_limits(1, user_api="blas")  # if it already is


def cpu_cores() -> int:
  """Cores that this process may use, in a container too."""
  affinity = getattr(os, "sched_getaffinity", None)
  cores = len(affinity(0)) if affinity else os.cpu_count() or 1
  quota, period = (_container_limit("cpu.max") or (cores, 1))[:2]
  return max(1, min(cores, round(quota / period)))


def _container_limit(name: str) -> tuple[int, ...] | None:
  """What a container may use by a file of its cgroup (version 2); `None` for no limit."""
  try:
    return tuple(map(int, (CONTAINER / name).read_text(encoding="utf-8").split()))
  except (OSError, ValueError):  # none, or "max"
    return None


def size_in_bytes(tree: Any) -> int:
  """Bytes of all leaves, arrays or `jax.ShapeDtypeStruct`."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def memory_limit(device: jax.Device) -> int:
  """Bytes that may be filled on a device; on a CPU, where it does not say, of the host's."""
  host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  host = min(host, *_container_limit("memory.max") or (host,))
  return int(MEMORY_SHARE * ((device.memory_stats() or {}).get("bytes_limit") or host))


def peak_memory() -> int:
  """Largest memory so far, in bytes: a device's where it counts, else this process's."""
  stats = jax.local_devices()[0].memory_stats() or {}
  resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  return int(stats.get("peak_bytes_in_use", resident))
