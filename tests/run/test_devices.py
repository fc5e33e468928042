"""Cores and memory, on a host and in a container."""

import os

import jax

from mdtrap_jax.run import devices


def test_every_core_is_a_device_unless_somebody_said_how_many(monkeypatch):
  asked = []
  monkeypatch.setattr(jax.config, "update", lambda name, value: asked.append((name, value)))
  devices.use_cpu_cores()  # these tests set the number by XLA's flag
  assert not asked
  monkeypatch.delenv("XLA_FLAGS")
  monkeypatch.setenv("PJRT_NPROC", "3")
  monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
  limited = []
  monkeypatch.setattr(devices, "threadpool_limits", lambda *given, **which: limited.append(given))
  devices.use_cpu_cores()
  assert asked == [("jax_num_cpu_devices", devices.cpu_cores())]
  assert (limited, os.environ["PJRT_NPROC"]) == ([], "3")
  monkeypatch.delenv("PJRT_NPROC")
  monkeypatch.delenv("OPENBLAS_NUM_THREADS")
  devices.use_cpu_cores()
  assert (limited, os.environ["OPENBLAS_NUM_THREADS"]) == ([(1,)], "1")
  assert int(os.environ["PJRT_NPROC"]) > devices.cpu_cores()


def test_a_container_may_use_less_than_its_host(monkeypatch, tmp_path):
  monkeypatch.setattr(devices, "CONTAINER", tmp_path)
  monkeypatch.setattr(devices.os, "sched_getaffinity", lambda process: range(8), raising=False)
  device, limit = jax.devices()[0], lambda text: int(devices.MEMORY_SHARE * text)
  assert (devices.cpu_cores(), devices.memory_limit(device) > 2**20) == (8, True)
  (tmp_path / "cpu.max").write_text("250000 100000\n")
  (tmp_path / "memory.max").write_text("1048576\n")
  assert (devices.cpu_cores(), devices.memory_limit(device)) == (2, limit(2**20))
  (tmp_path / "cpu.max").write_text("max 100000\n")
  (tmp_path / "memory.max").write_text("max\n")
  assert (devices.cpu_cores(), devices.memory_limit(device) > 2**20) == (8, True)
