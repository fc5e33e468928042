"""Which form of a computation serves the device it is compiled for: the one place that asks.

What helps two cores may ruin a chip, and the other way round. Where one form does not serve
both, the choice is a function here.
"""

from __future__ import annotations

import jax


def platform() -> str:
  """The platform, such as `cpu` or `tpu`, of the program being traced.

  Inside of `shard_map` that is the mesh's, which need not be one of this machine: programs can
  be compiled for an accelerator that is not there.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform
