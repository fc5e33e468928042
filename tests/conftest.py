"""A strict session: CPU with eight virtual devices, no silent broadcasting, no network."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"
flags = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in flags:
  os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8"

import jax  # noqa: E402 (the environment is read when JAX is first imported)

jax.config.update("jax_numpy_rank_promotion", "raise")
