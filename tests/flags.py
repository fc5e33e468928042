"""How XLA compiles in tests: fast, for compiling is most of what small tests cost."""

import importlib.util
import mmap
import os
from pathlib import Path

DEVICES = "--xla_force_host_platform_device_count"
FAST = {
  "--xla_backend_optimization_level": "0",  # without LLVM's optimizations
  "--xla_cpu_use_fusion_emitters": "false",  # what these emit takes LLVM twice as long
  "--xla_cpu_parallel_codegen_split_count": "1",  # small programs are not cut into 32 modules
}


def flags_of_tests(given: str) -> str:
  """`XLA_FLAGS` of these tests: eight devices, and what compiles fast, unless given otherwise."""
  added = [f"{DEVICES}=8"] if DEVICES not in given else []
  missing = {name: value for name, value in FAST.items() if name not in given}
  if missing:  # an unknown flag would end the process
    (jaxlib,) = importlib.util.find_spec("jaxlib").submodule_search_locations
    with open(Path(jaxlib) / "libjax_common.so", "rb") as file:
      library = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
      known = [name for name in missing if library.find(name.strip("-").encode()) >= 0]
    added += [f"{name}={missing[name]}" for name in known]
  return " ".join([given, *added])


def flags_of_commands(devices: int | None = None) -> str:
  """`XLA_FLAGS` for a process of its own, with so many devices if not with as many as it likes."""
  flags = [flag for flag in os.environ["XLA_FLAGS"].split() if not flag.startswith(DEVICES)]
  return " ".join([*flags, *([f"{DEVICES}={devices}"] if devices else [])])
