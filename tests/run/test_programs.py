"""Programs over tasks."""

import numpy as np

from mdtrap_jax.run.programs import over_tasks, spread, task_mesh


def test_on_a_cpu_a_program_leaves_its_arguments_memory_alone():
  mesh = task_mesh()
  rows = np.arange(1024.0 * mesh.size, dtype=np.float32).reshape(mesh.size, -1)
  state = spread(rows.copy(), mesh)
  result = over_tasks(lambda x: x + 1, mesh, (True,), donate=(0,))(state)
  assert not state.is_deleted()
  np.testing.assert_array_equal(state, rows)
  np.testing.assert_array_equal(result, rows + 1)
