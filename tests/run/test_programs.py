"""Programs over tasks."""

import jax.numpy as jnp
import numpy as np

from mdtrap_jax.run.programs import over_tasks, spread, task_mesh


def test_on_a_cpu_a_program_leaves_its_arguments_memory_alone():
  mesh = task_mesh()
  state = spread(np.arange(2.0 * mesh.size, dtype=np.float32).reshape(mesh.size, 2), mesh)
  view = [np.asarray(shard.data) for shard in state.addressable_shards]
  result = over_tasks(lambda x: x + 1, mesh, (True,), donate=(0,))(state)
  assert not state.is_deleted()
  np.testing.assert_array_equal(np.concatenate(view), state)
  np.testing.assert_array_equal(result, jnp.asarray(state) + 1)
