"""A strict session: CPU with eight virtual devices, no silent broadcasting, no network."""

import atexit
import os
import shutil
import tempfile

from tests.flags import flags_of_tests

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile the same small programs again and again: workers and commands share them.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  os.environ["JAX_COMPILATION_CACHE_DIR"] = PROGRAMS = tempfile.mkdtemp(prefix="mdtrap_jax-")
  atexit.register(shutil.rmtree, PROGRAMS, ignore_errors=True)
# Nothing of the person's who runs the tests is read or written.
CACHES = os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="mdtrap_jax-caches-")
atexit.register(shutil.rmtree, CACHES, ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ["HF_HUB_OFFLINE"] = "1"
# Where in the code an operation is from, which programs need not say here, costs time.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's threads, which wait by spinning
os.environ["XLA_FLAGS"] = flags_of_tests(os.environ.get("XLA_FLAGS", ""))

import jax  # noqa: E402 (the environment is read when JAX is first imported)

jax.config.update("jax_numpy_rank_promotion", "raise")

from hypothesis import settings  # noqa: E402

settings.register_profile("suite", deadline=None)  # a busy machine is no failure
settings.load_profile("suite")

pytest_plugins = ["tests.stores"]
